"""Does the model copy? The training images nearest to its samples, as a picture and a number."""

from pathlib import Path

import numpy as np

from maskdm.data.prepared import open_prepared, spread
from maskdm.evaluation.features.extraction import extract
from maskdm.evaluation.features.registry import FeatureParams, load_network
from maskdm.evaluation.neighbours import copying, nearest
from maskdm.figures import rows, save
from maskdm.runtime.command import run
from maskdm.runtime.devices import choose_device
from maskdm.runtime.files import write_json
from maskdm.runtime.params import read_section

PARAMS = Path("params.yaml")
SAMPLES = Path("data/samples/samples.npy")
REFERENCE = Path("data/reference")
MEASURED, SHOWN, NEIGHBOURS = 300, 8, 7


def main() -> None:
    """Find the training images nearest to samples, in the features of fid.features.

    Reads params fid.features, data/samples, data/prepared and data/reference. Writes
    reports/neighbours.png (samples at the left, their nearest training images beside them) and
    reports/neighbours.json (mean distance to the nearest training image, of samples and of
    held-out images, their ratio: about 0 for a model that copies, and between what values it would
    be for images that are as new as the held-out ones).
    """
    params = read_section(PARAMS, "fid.features", FeatureParams)
    network = load_network(params.extractor, choose_device())
    train = np.load(REFERENCE / "train.npy", mmap_mode="r")
    heldout = np.load(REFERENCE / "heldout.npy", mmap_mode="r")
    heldout = heldout[spread(len(heldout), MEASURED)]
    samples = np.load(SAMPLES, mmap_mode="r")[:MEASURED]
    features = extract(samples, network, label="features: samples")

    images = open_prepared(Path("data/prepared")).train
    indices, distances = nearest(features[:SHOWN], train, min(NEIGHBOURS, len(train)))
    picture = [
        (f"{distance[0]:.1f}", np.concatenate([sample[None], np.array(images[index])]))
        for sample, index, distance in zip(samples[:SHOWN], indices, distances, strict=True)
    ]
    save(rows(picture, scale=2), Path("reports/neighbours.png"))
    about: dict[str, object] = {
        "features": params.extractor,
        "samples": len(features),
        "heldout": len(heldout),
    }
    found = copying(features, heldout, train)
    write_json(Path("reports/neighbours.json"), about | found)
    ratio, null = found["ratio"], found["ratio_null"]
    of_chance = f" (new images: {null[0]:.2f} to {null[1]:.2f})" if null else ""
    print(
        f"nearest training image: samples {found['distance']:.2f}, held-out images "
        f"{found['distance_heldout']:.2f}, "
        + ("every held-out image is a training image" if ratio is None else f"ratio {ratio:.2f}")
        + of_chance
    )


if __name__ == "__main__":
    run(main)
