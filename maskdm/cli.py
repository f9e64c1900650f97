"""The command ``maskdm``: what can be done with a model folder, without a repository.

What it draws is what the pipeline and ``TrainedModel.sample`` draw with the same settings.
"""

import json
import shlex
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from maskdm.runtime.command import plain_app, run_commands
from maskdm.runtime.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from maskdm.backbones.model_folder import Weights
    from maskdm.sampling.model import TrainedModel

app = plain_app()
SHOWN = 80  # images of a grid, as in reports/samples.png


def named(typed: str | Path) -> Path:
    """Return a path that was typed.

    Raises:
        UserError: if nothing was, which Python takes for the current folder.
    """
    if typed == "":
        raise UserError("A path is empty: name it, '.' for the current folder.")
    return Path(typed)


Model = Annotated[
    Path, typer.Argument(help="a model folder, such as models/finetune", parser=named)
]
Out = Annotated[Path, typer.Option(help="the folder for the images: empty, or made", parser=named)]
Seed = Annotated[int, typer.Option(help="of the noise; image i is the same in any count")]
Label = Annotated[
    str | None, typer.Option(help="a class by name or number; default: as in training")
]
Nfe = Annotated[
    int | None, typer.Option(help="network evaluations an image; default: as recommended")
]
Eta = Annotated[float, typer.Option(help="noise that ddim adds, 0 to 1")]
GuidanceScale = Annotated[float, typer.Option(help="towards the class; 1: none")]
Guide = Annotated[
    Path | None,
    typer.Option(help="a worse model to be led away from: models/pretrain", parser=named),
]
GuideScale = Annotated[float | None, typer.Option(help="by that model; default: 3")]
GuideClass = Annotated[
    str, typer.Option(help="what that model sees: shown, or hidden, which leads towards it")
]
Times = Annotated[
    tuple[float, float],
    typer.Option(help="two times between which it acts, from 0 (image) to 1 (noise)"),
]
Decoder = Annotated[
    Path | None,
    typer.Option(
        help="the folder of the autoencoder, if the model draws latents and it was moved",
        parser=named,
    ),
]
WhichWeights = Annotated[str, typer.Option(help="averaged or raw")]


def _say_version(asked: bool) -> None:
    if asked:
        print(f"maskdm {version('maskdm')}")
        raise typer.Exit


@app.callback()
def about(
    asked: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which version this is.", callback=_say_version, is_eager=True
        ),
    ] = False,
) -> None:
    """What can be done with a trained model; COMMAND --help says how."""


@app.command()
def sample(
    model: Model,
    count: Annotated[int, typer.Option(help="how many images")] = 16,
    out: Out = Path("samples"),
    seed: Seed = 0,
    label: Label = None,
    solver: Annotated[str, typer.Option(help="dpmpp-2m, unipc, heun, ddim, ddpm, …")] = "dpmpp-2m",
    nfe: Nfe = None,
    eta: Eta = 0.0,
    guidance_scale: GuidanceScale = 1.0,
    guidance_interval: Times = (0.0, 1.0),
    guide: Guide = None,
    guide_scale: GuideScale = None,
    guide_interval: Times = (0.2, 0.8),
    guide_class: GuideClass = "hidden",
    weights: WhichWeights = "averaged",
    autoencoder: Decoder = None,
) -> None:
    """Draw images from a model.

    Writes 00000.png …, grid.png (of the first 80) and samples.json, which says how they were made.

    maskdm sample models/finetune --count 64 --guide models/pretrain --solver ddpm --nfe 25
    """
    settings: dict[str, Any] = {
        "solver": solver,
        "nfe": nfe,
        "eta": eta,
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "guide_scale": guide_scale,
        "guide_interval": guide_interval,
        "guide_class": guide_class,
    }
    trained = _loaded(model, guide, weights, out, autoencoder)
    drawn = trained.sample(count, seed, label=_class(trained, label), **settings)
    how = trained.settings(count, seed, **settings).model_dump(mode="json")
    _write(drawn, out, {"model": f"{model}", **how, **_origin(trained, guide, label)})


@app.command()
def inpaint(
    model: Model,
    image: Annotated[Path, typer.Argument(help="of the size that the model draws", parser=named)],
    mask: Annotated[
        Path, typer.Argument(help="of that size, white where to draw anew", parser=named)
    ],
    count: Annotated[int, typer.Option(help="how many answers")] = 1,
    out: Out = Path("inpainted"),
    seed: Seed = 0,
    label: Label = None,
    solver: Annotated[str | None, typer.Option(help="default: ddpm")] = None,
    nfe: Annotated[
        int | None, typer.Option(help="network evaluations an image; default: 50, or the solver's")
    ] = None,
    guidance_scale: GuidanceScale = 1.0,
    guide: Guide = None,
    guide_scale: GuideScale = None,
    weights: WhichWeights = "averaged",
) -> None:
    """Draw a part of an image anew, so that it fits the rest, which stays as it is.

    Writes 00000.png …, grid.png (of the first 80) and samples.json, which says how they were made.

    maskdm inpaint models/finetune emoji.png mask.png --count 8
    """
    from maskdm.data.images import open_image
    from maskdm.sampling.model import for_inpainting

    given = {"solver": solver, "nfe": nfe}
    settings: Any = {name: value for name, value in given.items() if value is not None}
    settings |= {"guidance_scale": guidance_scale, "guide_scale": guide_scale}
    trained = _loaded(model, guide, weights, out)
    name = _class(trained, label)
    known, wanted = open_image(image), open_image(mask)
    drawn = trained.inpaint(known, wanted, count, seed, label=name, **settings)
    how = trained.settings(count, seed, **for_inpainting(settings)).model_dump(mode="json")
    how |= {"image": f"{image}", "mask": f"{mask}"}
    _write(drawn, out, {"model": f"{model}", **how, **_origin(trained, guide, label)})


def _loaded(
    model: Path, guide: Path | None, weights: str, out: Path, decoder: Path | None = None
) -> "TrainedModel":
    """Return a model with its guide, once it is clear that images can be written."""
    from maskdm.runtime.files import require_empty
    from maskdm.sampling.model import load

    require_empty(out)
    chosen = cast("Weights", weights)  # load refuses others
    trained = load(model, chosen, autoencoder=decoder)
    if guide is None:
        return trained
    return trained.guided_by(load(guide, chosen, autoencoder=decoder))


def _origin(model: "TrainedModel", guide: Path | None, label: str | None) -> dict[str, Any]:
    """Return what samples.json says beside the settings: whose images these are."""
    led = None if guide is None else f"{guide}"
    return {"guide": led, "label": label, "training": model.config.cost}


def _class(model: "TrainedModel", label: str | None) -> int | str | None:
    """Return what was typed as a class: a name if there is such a one, else a number."""
    by_name = label is None or label in model.classes or not label.isdecimal()
    return label if by_name else int(label or 0)


def _write(images: "Iterable[Image.Image]", folder: Path, about: dict[str, Any]) -> None:
    """Write images one by one, a grid of the first, and how they were made."""
    from maskdm.figures import save
    from maskdm.runtime.files import write_json
    from maskdm.sampling.images import Images

    shown, count = Images(), 0
    for image in images:
        save(image, folder / f"{count:05}.png")
        if count < SHOWN:
            shown.append(image)
        count += 1
    save(shown.grid(), folder / "grid.png")
    write_json(folder / "samples.json", about)
    print(f"{count} images, grid.png and samples.json in {folder}")


@app.command()
def unpack(
    samples: Annotated[
        Path, typer.Argument(help="what the stage sample wrote: data/samples", parser=named)
    ] = Path("data/samples"),
    out: Out = Path("unpacked"),
) -> None:
    """Write the samples that the pipeline drew, which are one array, as images.

    Writes 00000.png …, grid.png (of the first 80) and samples.json, which says how they were made.

    maskdm unpack data/samples --out pictures
    """
    import numpy as np

    from maskdm.runtime.files import require_empty
    from maskdm.sampling.images import pictures

    require_empty(out)
    try:
        array = np.load(samples / "samples.npy", mmap_mode="r")
        about = json.loads((samples / "samples.json").read_text(encoding="utf-8"))
        _write(pictures(array), out, dict(about))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"There is no {error.filename}: dvc repro draws samples.") from None
    except (ValueError, TypeError, EOFError, AttributeError) as error:
        raise UserError(
            f"{samples} is damaged ({error}): dvc repro -f sample draws it anew."
        ) from None


@app.command()
def info(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="all of its config, as JSON")] = False,
) -> None:
    """Say what is in a model folder: network, classes, how it was trained and what that cost.

    maskdm info models/finetune
    """
    from maskdm.backbones.model_folder import load_config

    config = load_config(model)
    if as_json:
        print(json.dumps(config.model_dump(mode="json"), indent=2))
        return
    network = config.outline()
    count = sum(parameter.numel() for parameter in network.parameters())
    kind = "colour" if config.channels == 3 else "grey"
    print(
        f"{config.model.backbone}, width {config.model.dim}, depth {config.model.depth}, patches "
        f"of {config.model.patch}: {count / 1e6:.2f} M weights\n"
        f"{config.size}x{config.size} {kind} images, path {config.diffusion.path}, predicts "
        f"{config.diffusion.prediction}\n"
        f"classes: {', '.join(config.classes) if config.classes else 'none'}"
    )
    if config.latents:
        size, channels = config.network_size, config.network_channels
        print(
            f"latents of {size}x{size}x{channels}, decoded by the autoencoder "
            f"{config.latents.autoencoder} ({config.latents.hash[:12]})"
        )
    for leg in config.training:
        print(
            f"{leg.phase}: {leg.steps} steps of {leg.batch_size} images, {leg.mask} mask, "
            f"{leg.mask_rate:.0%} hidden, {leg.flops:.2g} FLOPs, images {leg.data[:12]}"
        )


@app.command("import")
def import_model(
    file: Annotated[
        Path, typer.Argument(help="a checkpoint or state dictionary: .pth, .pt, …", parser=named)
    ],
    out: Annotated[Path, typer.Argument(help="the model folder to make", parser=named)],
    layout: Annotated[str, typer.Option(help="whose: uvit (baofff/U-ViT) or maskdm")],
    heads: Annotated[int | None, typer.Option(min=1, help="default: one for 64 numbers")] = None,
    path: Annotated[
        str | None, typer.Option(help="diffusion.path it was trained on; default: as it says")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="a file with the names of its classes, one a line", parser=named),
    ] = None,
) -> None:
    """Make a model folder of weights that U-ViT or MaskDM published.

    Nothing in the file is run. Says how to finetune the model.

    maskdm import cifar10_uvit_small.pth models/cifar10 --layout uvit
    """
    from maskdm.exchange.importing import import_model, names_in, settings

    names = None if classes is None else names_in(classes)
    config = import_model(file, out, layout, heads, path, names)
    changes = " ".join(
        f"-S {shlex.quote(f'{key}={value}')}" for key, value in settings(config, out).items()
    )
    print(f"{out} is a model of {config.size}x{config.size} pixels. To finetune it:")
    print(f"dvc exp run {changes}")


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="the folder to make", parser=named)],
    to: Annotated[str, typer.Option(help="for whom: diffusers")] = "diffusers",
    guide: Guide = None,
    weights: WhichWeights = "averaged",
    data: Annotated[
        str | None, typer.Option(help="for the card: the images, in words; default: as prepared")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="for the card: cc-by-sa-4.0, …; default: the images'")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="for the card: reports/metrics.json", parser=named)
    ] = None,
) -> None:
    """Make a folder that diffusers loads, with a model card and all code that it needs.

    The card takes images and licence from data/prepared, if the model learned those.

    maskdm export models/finetune --to diffusers emoji --guide models/pretrain
    """
    from maskdm.exchange.exporting import export_to_diffusers

    if to != "diffusers":
        raise UserError(f"--to is '{to}': the one that is known is diffusers.")
    chosen = cast("Weights", weights)  # load refuses others
    export_to_diffusers(model, out, guide, chosen, data, licence, metrics)
    print(f"{out} is a pipeline of diffusers. Read {out / 'README.md'} before it goes anywhere.")


@app.command()
def push(
    folder: Annotated[
        Path, typer.Argument(help="what maskdm export made, its card read", parser=named)
    ],
    repo: Annotated[str, typer.Argument(help="NAME or OWNER/NAME; made if it is not there")],
    public: Annotated[
        bool, typer.Option("--public", help="one that is made may be seen by all")
    ] = False,
) -> None:
    """Upload an exported folder to a model hub; private, unless it is to be public.

    maskdm push emoji OWNER/emoji
    """
    from maskdm.exchange.pushing import push_to_hub

    print(push_to_hub(folder, repo, public))


def main() -> None:
    """Run the command."""
    run_commands(app)


if __name__ == "__main__":
    main()
