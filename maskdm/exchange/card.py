"""The card of a model: what it is, how it was trained, how well it does, how to use it."""

import json
from collections.abc import Mapping
from typing import Any

from maskdm.backbones.model_folder import ModelConfig

UNSAID = "not said when the model was exported"
USE = """\
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{place}", trust_remote_code=True)
images = pipeline(num_images=4, seed=0).images
```

diffusers runs the Python files of this folder, therefore `trust_remote_code`: read them first. They
are the source that trained the model, and need torch, numpy and pillow besides diffusers{further}.
"""


def model_card(
    config: ModelConfig,
    name: str,
    data: str | None,
    licence: str | None,
    images: Mapping[str, Any],
    measures: Mapping[str, float],
    drawn: str | None,
    guided: bool,
) -> str:
    """Return a model card in Markdown, with the header that model hubs read.

    Args:
        config: of the model.
        name: of the model.
        data: what it was trained on, in words; None for what ``images`` say.
        licence: of that and of the model, as an SPDX identifier in lower case; None for that of the
            images alone, since what the model's is cannot be known.
        images: what data/prepared/dataset.json says of them; nothing if that is not known.
        measures: how good its images were found to be, by name.
        drawn: with what settings the images were drawn that they were measured on.
        guided: whether a guide is in the folder.
    """
    header = {"library_name": "diffusers", "tags": ["maskdm"]}
    if not config.classes:
        header["pipeline_tag"] = "unconditional-image-generation"
    if licence:
        header["license"] = licence
    # JSON is YAML.
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    model, classes = config.model, config.classes
    guide = "\n\nThe folder `guide` holds a worse model, which images are led away from." * guided
    parts = [
        f"---\n{front}\n---\n\n# {name}",
        f"Draws images of {config.size}×{config.size} pixels, "
        f"{'in colour' if config.channels == 3 else 'grey'}, {_of_classes(classes)}. The network "
        f"is a {model.backbone} of width {model.dim} and depth {model.depth} on patches of "
        f"{model.patch} pixels; path {config.diffusion.path}, predicts "
        f"{config.diffusion.prediction}.{guide}",
        USE.format(place=name, further=" and timm" if model.backbone == "vit" else "").rstrip(),
        f"## Data\n\nTrained on: {data or images.get('source') or UNSAID}.\n\n"
        f"Licence: {licence or _of_images(images) or UNSAID}.",
        f"## Training\n\n{_training(config)}",
        f"## Quality\n\n{_quality(measures, drawn)}",
    ]
    return "\n\n".join(parts) + "\n"


def _of_images(about: Mapping[str, Any]) -> str | None:
    """Return the licence of images in words, None if nothing is known of them."""
    return f"{about['licence']}, that of the images" if about.get("licence") else None


def _of_classes(classes: Mapping[str, int] | None) -> str:
    names = list(classes or ())
    if not names:
        return "without classes"
    return f"of {len(names)} classes: {', '.join(names[:20])}{' …' if names[20:] else ''}"


def _training(config: ModelConfig) -> str:
    """Return the legs of training as a table."""
    if not config.training:
        return "The weights were imported; how they were trained is not recorded in the model."
    rows = [
        f"| {leg.phase} | {leg.steps} | {leg.batch_size} | {leg.mask}, {leg.mask_rate:.0%} hidden "
        f"| {leg.flops:.3g} | {leg.data[:12]} |"
        for leg in config.training
    ]
    return "\n".join(
        [
            "By masked pretraining (arXiv 2306.11363) and finetuning on whole images. A row is a "
            "leg of it.\n",
            "| phase | steps | images a step | mask | FLOPs | hash of the images |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _quality(measures: Mapping[str, float], drawn: str | None) -> str:
    """Return what was measured as a table."""
    if not measures:
        return "Not measured when the model was exported."
    rows = [f"| {name} | {value:.6g} |" for name, value in measures.items()]
    note = (
        "Distances are named by their features; only one called `fid` is a FID. Precision and the "
        "like are measured in the same features."
    )
    table = "\n".join(["| measure | value |", "|---|---|", *rows])
    return f"{note} Drawn with {drawn}.\n\n{table}"
