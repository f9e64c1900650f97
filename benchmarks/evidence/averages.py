"""Which average of the weights? Finetuning once, with averages of every length afterwards.

``python -m benchmarks.evidence.averages`` finetunes the primer in models/pretrain as params.yaml
says (so ``dvc repro`` comes first), keeps two averages whose horizon grows with training (power
functions, Karras et al. 2024, arXiv 2312.02696, section 3) sixteen times on the way, puts averages
of other lengths together from these by least squares (their appendix C), and measures each: the
error on held-out images and the kernel distance of samples drawn as the demo's. Beside them stand
the last weights and the average that the pipeline keeps. ``--cooldown 0`` does the same with a
learning rate that stays constant. Every value is kept in
reports/averages.json as soon as it is there.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from benchmarks.speed.solver_nfe import PARAMS, REFERENCE, begun, compared
from maskdm.backbones.model_folder import load_config, load_weights, weights_hash
from maskdm.data.prepared import open_prepared
from maskdm.diffusion.loss import DiffusionParams
from maskdm.runtime.command import run
from maskdm.runtime.execution import Execution
from maskdm.runtime.files import write_json
from maskdm.runtime.params import Seed, read_section
from maskdm.sampling.model import TrainedModel, load
from maskdm.sampling.sampler import SampleParams
from maskdm.training.ema import applied, update
from maskdm.training.loop import train
from maskdm.training.phases import FinetuneParams, finetuning_schedule
from maskdm.training.setup import set_up

REPORT = Path("reports/averages.json")
KEPT_WIDTHS = (0.05, 0.10)  # of the averages that are kept on the way, relative to its length
WIDTHS = (0.02, 0.05, 0.10, 0.15, 0.25)  # of those that are put together
SNAPSHOTS = 16
COUNT = 400  # samples of a cell

Weights = dict[str, Tensor]


def exponent(width: float) -> float:
    """Return γ of the average whose weights spread over this share of the run: ``σ_rel``.

    ``σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3))`` (arXiv 2312.02696, equation 123), solved for γ.
    """
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def products(some: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the scalar products of averages' profiles, ``(n, m)``.

    The profile of an average is the weight that it gives to every moment τ of the run,
    ``(γ + 1) τ^γ / t^(γ + 1)`` up to its end t.

    Args:
        some: ``(n, 2)``, an average's end t and its γ a row.
        others: ``(m, 2)``, likewise.
    """
    (t, g), (u, h) = some[:, None].T.swapaxes(1, 2), others[None].T.swapaxes(1, 2)
    least = np.minimum(t, u)
    # By logarithms of t / min and u / min, since t to the power of γ overflows.
    scale = np.exp((g + 1) * np.log(least / t) + (h + 1) * np.log(least / u))
    return np.asarray((g + 1) * (h + 1) / (g + h + 1) / least * scale, np.float64)


def combination(kept: Sequence[tuple[int, float]], end: int, gamma: float) -> NDArray[np.float64]:
    """Return the factors of kept averages whose sum is nearest to the average asked for.

    Args:
        kept: end and γ of every kept average.
        end: of the average asked for, in steps.
        gamma: its γ.
    """
    rows = np.array(kept, np.float64)
    wanted = products(rows, np.array([[end, gamma]], np.float64))[:, 0]
    factors = np.linalg.lstsq(products(rows, rows), wanted, rcond=None)[0]
    return np.asarray(factors / factors.sum(), np.float64)  # or the weights would shrink


def main(
    cooldown: Annotated[
        int | None, typer.Option(help="steps of it; by default params.yaml's")
    ] = None,
    count: Annotated[int, typer.Option(help="samples of a cell")] = COUNT,
) -> None:
    """Finetune once; measure the last weights, the pipeline's average, and power functions."""
    params = read_section(PARAMS, "finetune", FinetuneParams)
    if cooldown is not None:
        params = params.model_copy(update={"cooldown": cooldown})
    drawn = read_section(PARAMS, "sample", SampleParams).model_copy(update={"count": count})
    reference = json.loads((REFERENCE / "reference.json").read_text(encoding="utf-8"))
    common = {
        "primer": weights_hash(Path(params.init)),
        "reference": reference["hash"],
        "steps": params.steps,
        "images": params.steps * params.batch_size,
        "samples": count,
        "seed": read_section(PARAMS, "seed", Seed),
        "finetune": params.model_dump(mode="json", exclude={"cooldown"}),
        "sample": drawn.model_dump(mode="json", exclude={"count"}),
    }
    report = begun(REPORT, common)
    report["cells"] = [cell for cell in report["cells"] if cell["cooldown"] != params.cooldown]
    for cell in cells(params, drawn, reference["features"]["extractor"]):
        report["cells"].append({"cooldown": params.cooldown, **cell})
        write_json(REPORT, report)
        print(report["cells"][-1], file=sys.stderr)


def cells(params: FinetuneParams, drawn: SampleParams, extractor: str) -> Iterator[dict[str, Any]]:
    """Finetune, and yield what every average measures."""
    diffusion = read_section(PARAMS, "diffusion", DiffusionParams)
    prepared, init = open_prepared(Path("data/prepared")), Path(params.init)
    config = load_config(init)
    backbone = config.backbone()
    load_weights(init, params.init_weights, backbone)
    schedule = finetuning_schedule(params, config.grid)
    execution = Execution.from_environment(params.precision)
    setup = set_up("finetune", backbone, config, prepared, schedule, params, "", execution)
    weights = dict(backbone.named_parameters())
    averages = {
        exponent(width): {name: weight.detach().clone() for name, weight in weights.items()}
        for width in KEPT_WIDTHS
    }
    snapshots: dict[tuple[int, float], Weights] = {}
    steps = train(setup.state, setup.batches, setup.validator, diffusion, params, execution)
    for step in tqdm(steps, total=schedule.steps, unit="step", mininterval=10):
        for gamma, average in averages.items() if step else ():
            beta = (1 - 1 / step) ** (gamma + 1)
            update(average.values(), weights.values(), 1 - beta)
            if step % max(1, schedule.steps // SNAPSHOTS) == 0 or step == schedule.steps:
                snapshots[step, gamma] = {name: w.clone() for name, w in average.items()}

    candidates: dict[str, Weights] = {
        "the last weights": {name: weight.detach().clone() for name, weight in weights.items()},
        f"over {params.ema_images} images": setup.state.averaged,
    }
    for width in WIDTHS:
        factors = combination(list(snapshots), schedule.steps, exponent(width))
        candidates[f"power function, {width:g}"] = weighted(snapshots.values(), factors)

    model = TrainedModel(backbone.eval(), config, execution.device)
    if drawn.guide is not None and drawn.guided:
        model = model.guided_by(load(drawn.guide, drawn.weights))
    for name, candidate in candidates.items():
        with applied(weights, candidate):
            error = setup.validator.errors(backbone)["mean"]
            found = compared(model, drawn, extractor)
        yield {"average": name, "error": round(error, 5), **found}


def weighted(sets: Iterable[Weights], factors: NDArray[np.float64]) -> Weights:
    """Return the sum of sets of weights times their factors, in float64 on the way."""
    total: Weights = {}
    for one, factor in zip(sets, factors, strict=True):
        for name, weight in one.items():
            part = weight.double() * float(factor)
            total[name] = total[name] + part if name in total else part
    return {name: weight.float() for name, weight in total.items()}


if __name__ == "__main__":
    run(main)
