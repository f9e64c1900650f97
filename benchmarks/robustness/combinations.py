"""Every pair of parameters' values: ``python -m benchmarks.robustness.combinations``.

Rows of the valid values below hold every pair of them at least once (allpairspy). As many of a row
as go together are run through all stages: what ``check`` accepts, the stages can do. A pair that no
such row held is tried alone upon the usual values, so of every pair it is known whether it runs or
is refused in a sentence. One value after the other of a row is then replaced by one that makes no
sense: that must be refused by its name, whatever the others are.
"""

import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import typer

from benchmarks.presets import read_preset
from benchmarks.robustness.forks import STAGES, begin_anew, run
from benchmarks.robustness.report import REPORT, write_report
from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.params import Params, merge
from stages import check

TRAINED: dict[str, Sequence[Any]] = {  # of both phases
    "steps": (4, 0, 1),
    "batch_size": (8, 1),
    "lr": (1e-3, 1e-9),
    "warmup": (2, 0, 9),
    "cooldown": (0, 2, 9),
    "betas": ([0.9, 0.99], [0.0, 0.0]),
    "weight_decay": (0.03, 0.0),
    "clip": (1.0, None, 1e-6),
    "hflip": (0.5, 0.0, 1.0),
    "ema_images": (64, 1),
    "precision": ("fp32", "bf16"),
    "log_every": (2, 1, 10**6),
    "validate_every": (2, 10**6),
    "preview_every": (2, 0),
    "label_dropout": (0.1, 0.0, 1.0),
}
# Valid by themselves, and small: what they are together is found out. The first is the usual one.
VALUES: dict[str, dict[str, Sequence[Any]]] = {
    "": {"seed": (0, 2**31 - 1)},
    "data": {
        "source": ("openmoji",),
        "path": (None,),
        "resolution": (32, 8, 24),
        "channels": (3, 1),
        "background": ("white", "hsl(30, 50%, 50%)"),
        "heldout": (0.1, 0.5, 0.9),
        "group": ("file",),
        "duplicates": ("near", "exact", "keep"),
        "classes": ("auto", False, True),
        "autoencoder": (None,),  # its own tests run every stage
        "limit": (96, 40),
        "max_pixels": (64_000_000,),
        "max_unreadable": (0.01, 0.0),
        "window": (None, 12),
        "shards": (None,),
    },
    "model": {
        "backbone": ("uvit", "dit", "vit"),
        "patch": (4, 1, 8),
        "dim": (32, 8),
        "depth": (3, 1, 2),
        "heads": (2, 1, 4),
        "refine": (8, 0, 1),
        "init": ("spatial", "paper"),
    },
    "diffusion": {
        "path": ("flow", "vp-linear", "vp-cosine", "ddpm-linear", "ddpm-cosine"),
        "prediction": ("x0", "epsilon", "v"),
        "loss": ("velocity", "epsilon"),
        "times": ("logit-normal", "uniform"),
        "times_mean": (0.0, 1.0, -1.0),
        "times_std": (1.0, 0.1),
    },
    "mask": {
        "strategy": ("patch", "block", "crop"),
        "rate": (0.75, 0.0, 0.5),
        "block_size": (2, 1),
        "scope": ("image", "middle"),
    },
    "pretrain": {
        **TRAINED,
        "legs": (None, [{"rate": 0.5, "steps": 2}, {"rate": 0.0, "steps": 2, "batch_size": 4}]),
        "full_share": (0.0, 0.5),
        "noise_shift": (0.0, 1.0),
    },
    "finetune": {
        **TRAINED,
        "init": ("models/pretrain",),
        "init_weights": ("averaged", "raw"),
        "optimiser": ("fresh", "kept"),
    },
    "sample": {
        "count": (24, 2),
        "solver": ("dpmpp-2m", "unipc", "heun", "ddim", "ddpm", "euler-maruyama"),
        "nfe": (4, 2, 3),
        "eta": (0.0, 1.0),
        "guidance_scale": (1.0, 0.0, 2.0),
        "guidance_interval": ([0.0, 1.0], [0.3, 0.6]),
        "guide": ("models/pretrain", None, "models/finetune"),
        "guide_scale": (1.0, 0.0, 2.0),
        "guide_interval": ([0.0, 1.0], [0.3, 0.6]),
        "guide_class": ("shown", "hidden"),
        "weights": ("averaged", "raw"),
        "seed": (0, 2**31 - 1),
    },
    "fid.features": {"extractor": ("efficientnet-lite0",)},  # the other is fetched
}
WRONG: Sequence[Any] = ([[1]], -(10**9), math.nan, math.inf, {})  # nowhere right
LONGEST = 6000  # characters: other parameters of a row may be refused as well

Key = tuple[str, ...]
Row = dict[Key, Any]
FACTORS: dict[Key, Sequence[Any]] = {
    (*section.split("."), key) if section else (key,): values
    for section, keys in VALUES.items()
    for key, values in keys.items()
}
VARIED = {key: values for key, values in FACTORS.items() if len(values) > 1}
USUAL: Row = {key: values[0] for key, values in FACTORS.items()}


@dataclass
class Tally:
    """What became of the combinations.

    Attributes:
        run: pairs that ran through all stages, as two keys and the numbers of their values.
        refused: pairs that were refused, each alone.
        rows: parameters with which all stages ran.
        nonsense: rows with one value that makes no sense, all refused.
        faults: what went otherwise.
    """

    run: set[frozenset[tuple[Key, int]]] = field(default_factory=set)
    refused: set[frozenset[tuple[Key, int]]] = field(default_factory=set)
    rows: int = 0
    nonsense: int = 0
    faults: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Return what is written into the report."""
        return {
            "parameters": len(VARIED),
            "pairs": sum(1 for _ in pairs()),
            "pairs_run": len(self.run),
            "pairs_refused": len(self.refused - self.run),
            "rows_run": self.rows,
            "rows_with_nonsense_refused": self.nonsense,
            "faults": self.faults,
        }


def main(
    rows: Annotated[int, typer.Option(help="of about 42, to run")] = 1000,
) -> None:
    """Run every pair of values through all stages, or see it refused; write how many there are."""
    begin_anew()
    tally, array = Tally(), covering()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder).resolve() / "workspace"
        for number, row in enumerate(array[:rows]):
            refuse_nonsense(row, number, tally)
            run_all(largest_accepted(row), workspace, tally)
            _write(tally)
        for pair in pairs() if rows >= len(array) else ():
            alone = USUAL | {key: VARIED[key][number] for key, number in pair}
            if pair in tally.run:
                continue
            if refusal(alone) is None:  # the rows had refused it for something else they held
                run_all(alone, workspace, tally)
            else:
                tally.refused.add(pair)
            _write(tally)
    print(json.dumps(tally.figures()))
    if tally.faults:
        raise UserError(f"Some combinations went otherwise: see combinations in {REPORT}.")


def pairs() -> Iterator[frozenset[tuple[Key, int]]]:
    """Yield every pair of values of two parameters, by the values' numbers."""
    for (one, some), (other, more) in combinations(VARIED.items(), 2):
        for a, b in product(range(len(some)), range(len(more))):
            yield frozenset(((one, a), (other, b)))


def covering() -> list[Row]:
    """Return rows of values, every pair of which is in one of them."""
    from allpairspy import AllPairs

    numbers = AllPairs([list(range(len(values))) for values in VARIED.values()])
    return [
        USUAL | {key: VARIED[key][n] for key, n in zip(VARIED, row, strict=True)} for row in numbers
    ]


def params_of(row: Mapping[Key, Any]) -> Params:
    """Return the params of a row."""
    params: Params = merge(read_preset("tiny"))
    for key, value in row.items():
        section = params
        for part in key[:-1]:
            section = section[part]
        section[key[-1]] = value
    return params


def refusal(row: Mapping[Key, Any]) -> str | None:
    """Return what ``check`` has to say against a row; None if it accepts it.

    Raises:
        Exception: whatever it raises that is no sentence.
    """
    params = params_of(row)
    # Most of the time of a check is that of reading the file.
    instead = mock.patch.object(check, "read_params", return_value=params)
    try:
        with instead, redirect_stdout(io.StringIO()):
            check.check(Path("params.yaml"))
    except UserError as error:
        return str(error)
    return None


def largest_accepted(row: Row) -> Row:
    """Return a row that is accepted, with as many of another's values as go together."""
    kept, before = dict(row if refusal(row) is None else USUAL), None
    while kept != before:  # what was refused at first may go together with what came later
        before = kept
        for key in VARIED:
            tried = kept | {key: row[key]}
            if tried != kept and refusal(tried) is None:
                kept = tried
    return kept


def refuse_nonsense(row: Row, number: int, tally: Tally) -> None:
    """Give one parameter of a row after the other a value that makes no sense.

    Args:
        row: any.
        number: of the row: each begins with another of the values.
        tally: is told what was refused, and what was not.
    """
    for at, key in enumerate(row):
        wrong, name = WRONG[(number + at) % len(WRONG)], ".".join(key)
        said = refusal(row | {key: wrong})
        if said is None:
            tally.faults.append(f"{name}: {wrong!r} is accepted in row {number}")
        elif not (name in said and len(said) < LONGEST):
            tally.faults.append(f"{name}: {wrong!r} in row {number} is not what is named: {said}")
        else:
            tally.nonsense += 1


def run_all(row: Row, workspace: Path, tally: Tally) -> None:
    """Run all stages with a row that is accepted."""
    shutil.rmtree(workspace, ignore_errors=True)
    write_json(workspace / "params.yaml", params_of(row))  # JSON is YAML
    for name in STAGES:
        ended = run(name, workspace)
        if ended.status or "Traceback" in ended.said:
            said = f"{name} ended with {ended.status}: {ended.said[-600:]}"
            tally.faults.append(f"{_names(row)}: {said}")
            return
    tally.rows += 1
    held = [(key, values.index(row[key])) for key, values in VARIED.items()]
    tally.run |= {frozenset(pair) for pair in combinations(held, 2)}


def _names(row: Row) -> str:
    """Return in what a row differs from the usual one."""
    return ", ".join(f"{'.'.join(k)}={v}" for k, v in row.items() if v != USUAL[k]) or "the usual"


def _write(tally: Tally) -> None:
    write_report(combinations=tally.figures())


if __name__ == "__main__":
    command.run(main)
