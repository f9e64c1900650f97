"""The deciding experiments, from reports/decision.json: tables of docs/evidence.md."""

import json
from collections.abc import Mapping, Sequence
from math import expm1
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.evidence.calibrate import PART, branches
from benchmarks.evidence.decided import AS_MUCH, HALF
from benchmarks.evidence.decided import ASKED as MEASURES_ASKED
from benchmarks.evidence.decision import ARMS, SCRATCH, SMALL, SUFFIX
from benchmarks.evidence.plan import Run
from benchmarks.evidence.regimes import EXACT, LEAST, MIXED, MOST
from benchmarks.evidence.results import read_results
from benchmarks.evidence.saved import Point, courses
from tools.tables.measured import in_markdown, number

REPORT = Path("reports/decision.json")
# The tests of which the headline speaks: tokens, pixels and width, and the masked arm: the one that
# was chosen, or of several the one named first in the plan.
ASKED = {
    "decision-8": ("64 tokens, 64×64, width 64", "block-75"),
    SMALL: ("64 tokens, 32×32, width 96 (the demo's)", "block-75"),
    "decision-4": ("256 tokens, 64×64, width 64", "patch-90"),
}
MASKS = {"block-75": "75 %, blocks of 2×2", "patch-90": "90 %, one by one"}
COMPUTE = {"half": HALF, "as much": AS_MUCH}
SIGNIFICANT = 0.025  # in either direction
NAMES = {"error": "error", "kid": "KID", "fd": "FD"}


def comparisons(part: str) -> str:
    """Return arms against scratch at all of the budget or as much, in the question's measures."""
    rows = [row for row in of_part("comparisons", part) if row["measure"] in MEASURES_ASKED]
    return in_markdown(HEAD, rows_of(rows))


def by_image() -> str:
    """Return the differences of errors measured finer, with intervals over seeds and images."""
    rows: list[tuple[str, ...]] = []
    for row in read()["by_image"]:
        scratch = mean(row["scratch"])
        middle, seeds, images = (
            " … ".join(_signed(value / scratch) for value in values) + " %"
            for values in ([row["mean"]], row["interval"], row["over_images"])
        )
        rows.append(
            (
                row["dataset"],
                f"{row['arm']}, {row['of']:.0%}",
                row["against"] + ("" if row["against_of"] == 1 else f", {row['against_of']:.0%}"),
                middle,
                seeds,
                images,
                ", ".join(map(str, row["seeds"])),
                f"{row['images']}",
            )
        )
    head = (
        "images", "arm, of the budget", "scratch", "error", "95 % over seeds", "95 % over images",
        "seeds", "images held out",
    )  # fmt: skip
    return in_markdown(head, rows)


HEADLINE = (
    "network", "images", "hidden", "FLOPs", "of scratch's", "error", "each level alike", "KID",
)  # fmt: skip


def headline() -> str:
    """Return the masked arm against the setting in which scratch is best, by measure."""
    return in_markdown(HEADLINE, headline_rows("**"))


def headline_rows(decided: str = "") -> list[tuple[str, ...]]:
    """Return the rows of the headline.

    Args:
        decided: what stands around a difference that is decided, either way.
    """
    rows: list[tuple[str, ...]] = []
    for part, (network, arm) in ASKED.items():
        for compute, shares in COMPUTE.items():
            # images → measure → against each setting of scratch
            found: dict[str, dict[str, list[dict[str, Any]]]] = {}
            for row in of_part("comparisons", part):
                if row["arm"] == arm and (row["of"], row["against_of"]) in shares:
                    found.setdefault(row["dataset"], {}).setdefault(row["measure"], []).append(row)
            for dataset, by_measure in found.items():
                error, kid = (by_measure[measure] for measure in MEASURES_ASKED)
                rows.append(
                    (
                        network,
                        dataset.partition("-")[0],
                        MASKS[arm],
                        f"{error[0]['flops'][0]:.0e}".replace("e+", "e"),
                        compute,
                        _in_per_cent(error, decided),
                        _alike(_best(error)),
                        _in_per_cent(kid, decided),
                    )
                )
    return rows


def _alike(row: Mapping[str, Any]) -> str:
    """Return the difference of a comparison where a per cent counts the same at every level."""
    named = ("dataset", "arm", "share", "of", "against", "against_of")
    (same,) = (
        one
        for one in of_part("geometric", row["part"])
        if all(one[key] == row[key] for key in named)
    )
    return _spread([expm1(value) for value in (same["mean"], *same["interval"])])


def _best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the comparison with the setting in which scratch is best."""
    return min(rows, key=lambda row: mean(row["scratch"]))


def _in_per_cent(rows: Sequence[Mapping[str, Any]], decided: str) -> str:
    """Return the difference to scratch's best setting in per cent, marked if it is decided.

    Better is what is better than scratch in each of its settings. That an arm is worse than the
    best of them, which is picked by what is compared, is corrected for their number.

    Args:
        rows: the comparisons with each setting.
        decided: the mark.
    """
    row = _best(rows)
    better = max(one.get("p_holm", 1.0) for one in rows)
    worse = row.get("p_worse_holm", 1.0) * len(rows)
    mark = decided if min(better, worse) < SIGNIFICANT else ""
    return _spread(_shares(row), mark)


def _spread(shares: Sequence[float], mark: str = "") -> str:
    """Return shares in per cent: the mean, with a mark on either side, and its interval."""
    middle, low, high = map(_signed, shares)
    return f"{mark}{middle} %{mark} ({low} … {high})"


def _signed(share: float, digits: int = 1) -> str:
    """Return a share in per cent, without the sign of it."""
    return f"{100 * share:+.{digits}f}".replace("-", "−")


def _shares(row: Mapping[str, Any]) -> list[float]:
    """Return a comparison's mean and interval as shares of what scratch ended with."""
    return [value / mean(row["scratch"]) for value in (row["mean"], *row["interval"])]


HEAD = (
    "images", "arm, of the budget", "scratch", "measure", "arm's", "scratch's",
    "difference, 95 %", "p", "Holm", "Holm: worse", "seeds", "steps", "epochs",
)  # fmt: skip


def rows_of(comparisons: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return what ``benchmarks.evidence.decided.comparisons`` returns as rows of a table."""
    rows: list[tuple[str, ...]] = []
    for row in comparisons:
        rows.append(
            (
                row["dataset"],
                f"{row['arm']}, {row['of']:.0%}",
                row["against"] + ("" if row["against_of"] == 1 else f", {row['against_of']:.0%}"),
                NAMES[row["measure"]],
                number(mean(row["values"])),
                number(mean(row["scratch"])),
                _spread(_shares(row)),
                f"{row['p']:.2g}",
                *(f"{row[key]:.2g}" if key in row else "" for key in ("p_holm", "p_worse_holm")),
                f"{len(row['seeds'])}",
                " / ".join(_phases(steps, ",") for steps in row["steps"]),
                " / ".join(_phases(epochs, ".1f") for epochs in row["epochs"]),
            )
        )
    return rows


def factors() -> str:
    """Return how many times scratch's compute is an arm's at equal error, with every seed's."""
    bounds = {EXACT: "", LEAST: "≥ ", MOST: "≤ ", MIXED: "≈ "}
    rows = []
    for part, (network, _) in ASKED.items():
        for row in of_part("factors", part):
            spread = " ({:.2f} … {:.2f})".format(*row["interval"]) if row["interval"] else ""
            each = zip(row["values"], row["bounds"], strict=True)
            rows.append(
                (
                    network,
                    row["dataset"].partition("-")[0],
                    row["arm"],
                    f"{bounds[row['bound']]}{row['mean']:.2f}{spread}",
                    ", ".join(f"{bounds[bound]}{value:.2f}" for value, bound in each),
                )
            )
    head = ("network", "images", "arm", "scratch's FLOPs ÷ the arm's (95 %)", "by seed")
    return in_markdown(head, rows)


def by_level() -> str:
    """Return the headline's differences of the error by noise level, in per cent."""
    rows: list[tuple[str, ...]] = []
    levels: list[str] = []
    for part, (network, arm) in ASKED.items():
        errors = {
            (row["dataset"], row["arm"], row["tuning"], row["of"]): row["errors"]
            for row in of_part("levels", part)
        }
        against: dict[tuple[str, float, float], list[dict[str, Any]]] = {}
        for row in of_part("comparisons", part):
            asked = (row["of"], row["against_of"]) in HALF | AS_MUCH
            if asked and row["arm"] == arm and row["measure"] == "error":
                key = row["dataset"], row["of"], row["against_of"]
                against.setdefault(key, []).append(row)
        for (dataset, of, against_of), compared in against.items():
            own = next(
                found
                for (images, name, _, share), found in errors.items()
                if (images, name, share) == (dataset, arm, of)
            )
            scratch = errors[dataset, SCRATCH, _best(compared)["against"], against_of]
            levels = sorted(own, key=float)
            off = (own[level] / scratch[level] - 1 for level in levels)
            rows.append(
                (
                    network,
                    dataset.partition("-")[0],
                    "half" if (of, against_of) in HALF else "as much",
                    *(_signed(share, digits=0) for share in off),
                )
            )
    head = ("network", "images", "of scratch's", *(level.replace("-", "−") for level in levels))
    return in_markdown(head, rows)


def _phases(counts: Sequence[float], form: str) -> str:
    return " + ".join(f"{count:{form}}" for count in counts)


def tuning(part: str) -> str:
    """Return the best cells of a tuning, for each set and arm, scratch's networks apart."""
    cells = of_part("tuning", part)
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for cell in cells:
        # Scratch may choose another patch: that row stands for itself.
        key = cell["dataset"].removesuffix("-tuning"), cell["arm"], f"patch {cell['patch']}"
        if key not in best or _rank(cell) < _rank(best[key]):
            best[key] = cell
    rows = [
        (
            dataset,
            f"{arm}, {kind}",
            f"{cell['of']:.0%}",
            cell["tuning"],
            f"{cell['share']:.0%}" if cell["share"] else "–",
            f"{cell['steps']:,}",
            _phases(cell["epochs"], ".1f"),
            f"{cell['error']:.4f}",
        )
        for (dataset, arm, kind), cell in sorted(
            best.items(), key=lambda item: (item[0][0], item[1]["error"])
        )
    ]
    return in_markdown(
        ("images", "arm", "of the budget", "its best of", "masked", "steps", "epochs", "error"),
        rows,
    )


def _rank(cell: Mapping[str, Any]) -> tuple[float, str]:
    """Return by what the best is chosen: of equal errors the first by name, as the test has it."""
    of_run = ("part", "dataset", "arm", "tuning", "share", "of")
    return cell["error"], Run(**{key: cell[key] for key in of_run}, seed=0).name


def cells(part: str) -> str:
    """Return the errors of all cells of a tuning: a setting a row, a set and arm a column."""
    found: dict[str, dict[tuple[str, str, float], float]] = {}
    for cell in of_part("tuning", part):
        arm = cell["dataset"].removesuffix("-tuning"), cell["arm"], cell["of"]
        found.setdefault(cell["tuning"], {})[arm] = cell["error"]
    arms = list(dict.fromkeys(arm for row in found.values() for arm in row))
    best = {arm: min(row[arm] for row in found.values() if arm in row) for arm in arms}
    rows = [
        (
            tuning,
            *(
                ("**{:.4f}**" if row[arm] == best[arm] else "{:.4f}").format(row[arm])
                if arm in row
                else ""
                for arm in arms
            ),
        )
        for tuning, row in found.items()
    ]
    head = ("setting", *(f"{dataset}: {arm}, {of:.0%}" for dataset, arm, of in arms))
    return in_markdown(head, rows)


def arms() -> str:
    """Return what changes to a masked arm do to its error, in the setting that did best for it."""
    found: dict[str, dict[str, dict[str, Any]]] = {}  # arm → images → its cell
    for cell in of_part("tuning", ARMS):
        found.setdefault(cell["arm"], {})[cell["dataset"].removesuffix(SUFFIX)] = cell
    _, plain = ASKED["decision-8"]  # what the others change
    rows = [
        (
            arm,
            *(
                text
                for dataset, cell in cells.items()
                for text in (
                    f"{cell['error']:.4f}",
                    f"{_signed(cell['error'] / found[plain][dataset]['error'] - 1)}%"
                    if arm != plain
                    else "",
                    _phases(cell["epochs"], ".1f"),
                )
            ),
        )
        for arm, cells in found.items()
    ]
    heads = (
        (f"{dataset}: error", f"against {plain}", "epochs") for dataset in found.get(plain, {})
    )
    return in_markdown(("arm", *(text for head in heads for text in head)), rows)


def saved() -> str:
    """Return what arms have saved of scratch's compute after their first phase, and in the end."""
    rows = [
        (
            course.dataset.removesuffix("-tuning"),
            f"{course.tokens}",
            f"{course.arm}, {course.tuning}",
            f"{course.primed:.2g}",
            _saved(course.after_priming),
            _saved(course.last),
            f"{course.last.flops:.2g}" if course.last else "",
            f"{course.seeds}",
        )
        for course in courses()
    ]
    head = (
        "images", "tokens", "arm", "first phase, FLOPs", "saved at its end", "saved last", "at",
        "seeds",
    )  # fmt: skip
    return in_markdown(head, rows)


def _saved(point: Point | None) -> str:
    if point is None:
        return ""
    deviation = f" ± {point.deviation:.1g}" if point.deviation else ""
    return f"{'' if point.exact else '≥ '}{point.saved:+.2g}{deviation}"


def of_part(kind: str, part: str) -> list[dict[str, Any]]:
    """Return what the report holds of a part of the matrix."""
    return [row for row in read()[kind] if row["part"] == part]


def read() -> Any:
    """Return what reports/decision.json holds."""
    return json.loads(REPORT.read_text(encoding="utf-8"))


def by_branches() -> str:
    """Return what masked phases of several lengths have saved, read after a branch."""
    results = read_results(PART)
    datasets = dict.fromkeys(result.run.dataset for result in results)
    rows = [
        (
            dataset.removesuffix(SUFFIX),
            branch.arm,
            f"{branch.masked:.2g}",
            f"{branch.flops:.3g}",
            f"{branch.error:.4f}",
            "never" if branch.scratch is None else f"{branch.scratch:.3g}",
            "" if branch.saved is None else f"{branch.saved:+.2g}",
        )
        for dataset in datasets
        for branch in branches(results, dataset)
    ]
    head = ("images", "arm", "masked, FLOPs", "in all", "error", "scratch is there after", "saved")
    return in_markdown(head, [tuple(cell.replace("e+", "e") for cell in row) for row in rows])
