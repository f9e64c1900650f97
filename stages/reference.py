"""reference: the features of the real images, and the yardsticks that go with them."""

import hashlib
import json
from pathlib import Path

import numpy as np

from maskdm.data.prepared import open_prepared
from maskdm.evaluation.features.extraction import extract
from maskdm.evaluation.features.registry import FeatureParams, load_network
from maskdm.evaluation.yardsticks import yardsticks
from maskdm.runtime.command import run
from maskdm.runtime.devices import choose_device
from maskdm.runtime.distributed import join
from maskdm.runtime.environment import prefer_huge_pages
from maskdm.runtime.files import write_array, write_json
from maskdm.runtime.launch import on_all_processes
from maskdm.runtime.params import read_section
from maskdm.runtime.sharded import Images

PARAMS = Path("params.yaml")
PREPARED = Path("data/prepared")
REFERENCE = Path("data/reference")
YARDSTICKS = Path("reports/yardsticks.json")


def main() -> None:
    """Read params fid.features and data/prepared; write data/reference and yardsticks.json.

    data/reference holds the features of the training and of the held-out images and
    reference.json; reports/yardsticks.json says how noise, the mean image, shuffled patches and the
    held-out images compare with the training images.
    """
    prefer_huge_pages()
    params = read_section(PARAMS, "fid.features", FeatureParams)
    prepared = open_prepared(PREPARED)
    device = choose_device()
    processes = join(device)
    network = load_network(params.extractor, device)

    def features(images: Images, kind: str) -> np.ndarray:
        return extract(images, network, label=f"features: {kind} images", processes=processes)

    train, heldout = features(prepared.train, "training"), features(prepared.heldout, "held-out")
    if not processes.is_main:
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
    write_array(REFERENCE / "train.npy", train)
    write_array(REFERENCE / "heldout.npy", heldout)
    write_json(REFERENCE / "reference.json", about)
    write_json(YARDSTICKS, scale)
    for name, values in scale.items():
        numbers = {key: value for key, value in values.items() if key != "manifold"}
        numbers |= values["manifold"]
        print(f"{name:17}", "  ".join(f"{key} {value:g}" for key, value in numbers.items()))


if __name__ == "__main__":
    run(on_all_processes(main))
