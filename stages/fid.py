"""fid: how far the samples are from the real images."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from maskdm.evaluation.distances import FidParams, measure
from maskdm.evaluation.extrapolation import extrapolated
from maskdm.evaluation.features.extraction import extract
from maskdm.evaluation.features.registry import load_network
from maskdm.evaluation.manifold import manifold
from maskdm.runtime.command import run
from maskdm.runtime.devices import choose_device
from maskdm.runtime.distributed import join
from maskdm.runtime.environment import prefer_huge_pages
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.launch import on_all_processes
from maskdm.runtime.params import read_section

PARAMS = Path("params.yaml")
SAMPLES = Path("data/samples")
REFERENCE = Path("data/reference")
METRICS = Path("reports/metrics.json")  # numbers alone: DVC compares all that stands there
MEASURED = Path("reports/measured.json")
COSTS = ("network_passes", "training")


def main() -> None:
    """Read params fid, data/samples and data/reference; write two reports.

    reports/metrics.json has the measures, and what training and a sample cost;
    reports/measured.json what was measured, and how.

    Distances to the training images stand under their plain names, those to the held-out images
    end in _heldout. A Fréchet distance is left out where there are not more images than features;
    beside it stands what infinitely many samples would have (_infinity), with its interval.
    Precision, recall, density and coverage stand under manifold.
    """
    prefer_huge_pages()
    params = read_section(PARAMS, "fid", FidParams)
    samples, about = load(SAMPLES / "samples.npy"), load(SAMPLES / "samples.json")
    reference = load(REFERENCE / "reference.json")
    train, heldout = (load(REFERENCE / f"{part}.npy") for part in ("train", "heldout"))

    device = choose_device()
    processes = join(device)
    network = load_network(params.features.extractor, device)
    shape = (reference["size"], reference["size"], reference["channels"])
    if reference["features"] != network.origin or samples.shape[1:] != shape:
        raise UserError(
            f"{REFERENCE} holds {reference['features']['extractor']} features of {shape} images, "
            f"but {samples.shape[1:]} samples are to be measured by {network.extractor.name}, or "
            "its side or weights have changed. Run the reference stage again: dvc repro reference."
        )
    features = extract(samples, network, label="features: samples", processes=processes)
    if not processes.is_main:
        return
    to_train = measure(features, train, network.extractor)
    to_heldout = measure(features, heldout, network.extractor)
    frechet, kernel = network.extractor.frechet, network.extractor.kernel
    for name, least in ((kernel, 2), (frechet, network.extractor.count + 1)):
        if name not in to_train:
            print(
                f"{name} is left out: it needs at least {least} images on both sides, not "
                f"{len(features)} samples and {len(train)} real images."
            )
    if kernel in to_train and kernel not in to_heldout:
        print(f"Distances to the held-out images are left out: there is only {len(heldout)}.")
    spans = manifold(features, train)
    limit = extrapolated(features, train, network.extractor)
    metrics = {
        **to_train,
        **limit,
        "manifold": spans,
        **{f"{name}_heldout": value for name, value in to_heldout.items()},
        **{name: about.pop(name) for name in COSTS},
    }
    how = {
        "features": {"extractor": network.extractor.name, "side": network.extractor.side},
        "reference": {"hash": reference["hash"][:12], "train": len(train), "heldout": len(heldout)},
        "samples": about,
    }
    write_json(METRICS, metrics)
    write_json(MEASURED, how)
    print("  ".join(f"{key} {value}" for key, value in (to_train | limit | spans).items()))


def load(path: Path) -> Any:
    """Return what a .npy (mapped) or a .json file holds."""
    if not path.exists():
        raise UserError(f"There is no {path}: run dvc repro.")
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(on_all_processes(main))
