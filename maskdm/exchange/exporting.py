"""From a model folder to one that diffusers loads, with all the code that it needs.

``model_index.json`` names the pipeline (``pipeline.py``) and its components, each in a folder with
config, weights in safetensors and the source of its network. diffusers itself is not needed here.
"""

import json
from collections.abc import Mapping
from inspect import isclass
from pathlib import Path
from typing import Any

from maskdm.backbones.model_folder import ModelConfig, Weights, load_config
from maskdm.backbones.registry import BACKBONES
from maskdm.exchange.bundle import PACKAGE, Bundle
from maskdm.exchange.card import model_card
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import replacing, require_empty, write_json, write_tensors, write_text
from maskdm.runtime.reading import read_small
from maskdm.sampling.model import check_guide, load
from maskdm.sampling.sampler import SampleParams

PIPELINE = "pipeline"  # the name that diffusers looks for
DENOISER, GUIDE = "denoiser", "guide"
PIPELINE_CLASS, DENOISER_CLASS = "MaskDMPipeline", "MaskDMDenoiser"
ABOUT = "{what}, bundled from maskdm's own source by maskdm export."
WEIGHTS = "diffusion_pytorch_model.safetensors"
MOST_BYTES = 2**24  # of a file of metrics, which has one or two kB
COSTS = {"network_passes"}  # which are no measure of the images
PREPARED = Path("data/prepared/dataset.json")
MEASURED = "measured.json"  # beside a file of metrics: how the images were drawn


def export_to_diffusers(
    model: Path,
    folder: Path,
    guide: Path | None = None,
    weights: Weights = "averaged",
    data: str | None = None,
    licence: str | None = None,
    metrics: Path | None = None,
) -> None:
    """Write a folder that ``DiffusionPipeline.from_pretrained`` loads, and its model card.

    Args:
        model: a model folder.
        folder: to write; empty, or made.
        guide: the folder of a worse model, which images are led away from; None for none.
        weights: averaged or raw.
        data: what the model was trained on, in words, for the card; None for what the prepared
            images say, if they are the ones it learned (``_images_of``).
        licence: of that and of the model, for the card; None for that of the images, if they say.
        metrics: what the stage fid wrote of this model, for the card; how the images were drawn is
            read from measured.json beside it.

    Raises:
        UserError: if a model is damaged, they do not fit together, the model draws latents, the
            metrics are of another model, or the folder is not empty.
    """
    require_empty(folder)
    config, folders, index = load_config(model), {DENOISER: model}, {}
    if config.latents is not None:
        raise UserError(
            f"{model} draws the latents of an autoencoder, and what is exported has no decoder for "
            "them: only models of pixels (data.autoencoder: null) can be exported."
        )
    if guide is not None:
        check_guide(load_config(guide), config)
        folders[GUIDE] = guide
    measures, drawn = ({}, None) if metrics is None else _measured(metrics, config)
    components = {name: load(place, weights, device="cpu") for name, place in folders.items()}
    sources = {name: _network_source(part.config) for name, part in components.items()}
    for name, part in components.items():
        file = f"{PACKAGE}_{part.config.model.backbone}"
        index[name] = [file, DENOISER_CLASS]
        write_text(folder / name / f"{file}.py", sources[name])
        sizes = _sizes(part.config)
        write_json(folder / name / "config.json", {"_class_name": DENOISER_CLASS, **sizes})
        parameters = part.backbone.named_parameters()
        with replacing(folder / name / WEIGHTS) as begun:
            write_tensors({f"network.{n}": p.detach().contiguous() for n, p in parameters}, begun)
    bundle = Bundle()
    bundle.add(f"{PACKAGE}.exchange.diffusers_pipeline", PIPELINE_CLASS)
    write_text(folder / f"{PIPELINE}.py", bundle.text(ABOUT.format(what="Drawing images")))
    images = _images_of(model, config)
    card = model_card(
        config, folder.name, data, licence, images, measures, drawn, guide is not None
    )
    write_text(folder / "README.md", card)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": [PIPELINE, PIPELINE_CLASS],
            **{name: index.get(name, [None, None]) for name in (DENOISER, GUIDE)},
            "size": config.size,
            "channels": config.channels,
            "patch": config.model.patch,
            "path": config.diffusion.path,
            "prediction": config.diffusion.prediction,
            "classes": config.classes,
        },
    )


def _network_source(config: ModelConfig) -> str:
    """Return the source of a model's network, as a component of diffusers."""
    name = config.model.backbone
    network = BACKBONES[name]
    if not isclass(network) or network.__module__.partition(".")[0] != PACKAGE:
        raise UserError(
            f"The backbone '{name}' is no class in a module of {PACKAGE}, so its source cannot "
            "travel with the model: put it into maskdm/backbones/ (docs/own-backbone.md)."
        )
    bundle = Bundle()
    bundle.add(network.__module__, network.__name__)
    bundle.add(f"{PACKAGE}.exchange.diffusers_denoiser", DENOISER_CLASS)
    text = bundle.text(ABOUT.format(what=f"The network {name}"))
    return f"{text}\n\n{DENOISER_CLASS}.network_class = {network.__name__}\n"


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """Return what the constructor of a model's network takes."""
    keys = ("patch", "dim", "depth", "heads", "refine")
    chosen = {key: getattr(config.model, key) for key in keys}
    return {
        "size": config.size,
        "channels": config.channels,
        **chosen,
        "classes": len(config.classes or ()),
    }


def _images_of(model: Path, config: ModelConfig) -> Mapping[str, Any]:
    """Return what the prepared images that a model learned say of themselves; nothing if unknown.

    They are looked for beside the folder ``models`` in which the model lies, and in the current
    folder, and are known by their hash, which every leg of training must have.
    """
    learned = {leg.data for leg in config.training}
    for root in (model.absolute().parent.parent, Path()):
        try:
            about = _table(root / PREPARED)
        except UserError:
            continue
        if learned == {about.get("hash")}:
            return about
    return {}


def _measured(path: Path, config: ModelConfig) -> tuple[dict[str, float], str]:
    """Return what a metrics file says of the images, and in words how the images were drawn.

    Raises:
        UserError: if it is no file of metrics, or one of a model that was trained otherwise.
    """
    content = _table(path)
    if content.get("training") != config.cost:
        raise UserError(
            f"{path} is of another model: what it says of training is "
            f"{json.dumps(content.get('training'))}, and this model's is {json.dumps(config.cost)}."
        )
    spans = content.get("manifold", {})  # precision, recall, density, coverage
    if not isinstance(spans, Mapping):
        raise UserError(f"{path} is no file of metrics: its manifold is no table.")
    numbers = {
        name: float(value)
        for name, value in (*content.items(), *spans.items())
        if name not in COSTS and isinstance(value, int | float) and not isinstance(value, bool)
    }
    beside = path.with_name(MEASURED)
    samples = _table(beside).get("samples") if beside.exists() else None
    drawn = samples if isinstance(samples, Mapping) else {}
    settings = [f"{name} {drawn[name]}" for name in SampleParams.model_fields if name in drawn]
    return numbers, ", ".join(settings) or "settings unsaid"


def _table(path: Path) -> Mapping[str, Any]:
    try:
        content: Any = json.loads(read_small(path, MOST_BYTES).decode())
        if not isinstance(content, Mapping):
            raise ValueError("it is no table")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no file of metrics, such as reports/metrics.json: {error}."
        ) from None
    return content
