"""reference: the features of the real images, and the yardsticks that go with them."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from maskdm.data.store import open_prepared
from maskdm.devices import choose_device
from maskdm.evaluation.features import FeatureParams, extract, load_network
from maskdm.evaluation.yardsticks import yardsticks
from maskdm.params import read_section
from maskdm.processes import join
from stages.command import run, write_json
from stages.launch import on_all_processes

PARAMS = Path("params.yaml")
PREPARED = Path("data/prepared")
REFERENCE = Path("data/reference")
YARDSTICKS = Path("reports/yardsticks.json")


def main() -> None:
    """Read params fid.features and data/prepared; write data/reference and yardsticks.json.

    data/reference holds the features of the training and of the held-out images and
    reference.json; reports/yardsticks.json says what the distances to the training images are
    for noise, the mean image, shuffled patches and the held-out images.
    """
    # Huge pages: without them page faults take a third of the CPU time of the extraction.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    params = read_section(PARAMS, "fid.features", FeatureParams)
    prepared = open_prepared(PREPARED)
    device = choose_device()
    processes = join(device)
    network = load_network(params.extractor, device)

    def features(images: np.ndarray, kind: str) -> np.ndarray:
        return extract(images, network, label=f"features: {kind} images", processes=processes)

    train, heldout = features(prepared.train, "training"), features(prepared.heldout, "held-out")
    if not processes.first:
        return
    scale = yardsticks(prepared.train, train, heldout, network)

    about = {
        "features": network.origin,
        "data": prepared.hash,
        "size": prepared.size,
        "channels": prepared.channels,
        "train": len(train),
        "heldout": len(heldout),
    }
    about["hash"] = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    REFERENCE.mkdir(parents=True, exist_ok=True)
    np.save(REFERENCE / "train.npy", train)
    np.save(REFERENCE / "heldout.npy", heldout)
    write_json(REFERENCE / "reference.json", about)
    write_json(YARDSTICKS, scale)
    for name, values in scale.items():
        print(f"{name:17}", "  ".join(f"{key} {value:g}" for key, value in values.items()))


if __name__ == "__main__":
    run(on_all_processes(main))
