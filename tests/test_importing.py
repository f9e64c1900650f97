"""Weights that others published: the same outputs here; what does not fit is a sentence."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import maskdm
from maskdm import cli
from maskdm.backbones.model_folder import (
    Weights,
    check_start,
    load_config,
    load_model,
    load_weights,
)
from maskdm.diffusion.paths import LINEAR_BETAS, STEPS, cosine_betas
from maskdm.diffusion.tokens import all_positions
from maskdm.exchange import importing
from maskdm.exchange.importing import import_model, settings
from maskdm.runtime.errors import UserError
from tests.support import published
from tests.support.commands import given, recorded

HEADS = 2


def written(folder: Path, content: Any, name: str = "weights.pth") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


def checkpoint(weights: dict[str, Tensor], average: dict[str, Tensor], betas: Tensor) -> Any:
    """Return what MaskDM's training saves: network, average, optimiser, in its own names."""
    diffusion = {f"model.{n}": t for n, t in weights.items()} | {"betas": betas.float()}
    ema = {f"ema_model.model.{n}": t for n, t in average.items()} | {"ema_model.betas": betas}
    ema |= {f"online_model.{n}": t for n, t in diffusion.items()} | {"step": torch.tensor([7])}
    optimiser = {
        "state": {0: {"step": 3, "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 0.1}],
    }
    return {"step": 7, "model": diffusion, "ema": ema, "opt": optimiser, "scaler": None}


def as_tokens(images: Tensor, patch: int) -> Tensor:
    """Return images as tokens ``(batch, N, p·p·C)``, pixel by pixel."""
    squares = images.unfold(2, patch, patch).unfold(3, patch, patch)  # B, C, rows, columns, p, p
    return squares.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def compare(
    layout: str,
    weights: dict[str, Tensor],
    folder: Path,
    kind: Weights = "averaged",
    labels: Tensor | None = None,
) -> None:
    """Check that the model in a folder says what the published network says."""
    network, config = load_model(folder, kind)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(5, config.channels, config.size, config.size, generator=generator)
    steps = torch.tensor([0.0, 1.0, 250.0, 731.0, 999.0])
    theirs = published.predict(layout, weights, images, steps, HEADS, labels)
    tokens = as_tokens(images, config.model.patch)
    positions = all_positions(5, tokens.shape[1], tokens.device)
    with torch.no_grad():
        ours = network(tokens, positions, steps / STEPS, labels)
    assert theirs.std() > 0.1
    assert (ours - as_tokens(theirs, config.model.patch)).abs().max() < 1e-5


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["uvit", "maskdm"])
def test_an_imported_network_says_what_the_published_one_says(layout, channels, classes, tmp_path):
    weights = published.state(layout, channels=channels, half=2, classes=classes)
    path = "ddpm-cosine" if layout == "maskdm" else None
    import_model(written(tmp_path, weights), tmp_path / "model", layout, HEADS, path)
    labels = torch.tensor([0, 1, 2, 3, 4]) if classes else None
    for kind in ("raw", "averaged"):
        compare(layout, weights, tmp_path / "model", kind, labels)
    assert len(maskdm.load(tmp_path / "model").sample(1, nfe=2)) == 1


def test_no_class_is_the_published_embedding_of_no_class(tmp_path):
    weights = published.state("maskdm", classes=4)
    import_model(written(tmp_path, weights), tmp_path / "model", "maskdm", HEADS, "ddpm-linear")
    compare("maskdm", weights, tmp_path / "model", labels=None)


def test_a_masked_image_is_seen_as_the_published_network_sees_it(tmp_path):
    weights = published.state("maskdm")
    import_model(written(tmp_path, weights), tmp_path / "model", "maskdm", HEADS, "ddpm-linear")
    network, _ = load_model(tmp_path / "model", "raw")
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([10.0, 500.0])
    positions = torch.tensor([[0, 3, 7, 12], [1, 2, 14, 15]])
    visible = torch.zeros(2, 16, dtype=torch.bool).scatter(1, positions, True)
    theirs = published.predict("maskdm", weights, images, steps, HEADS, visible=visible)
    shown = as_tokens(images, 2).gather(1, positions[:, :, None].expand(-1, -1, 12))
    with torch.no_grad():
        ours = network(shown, positions, steps / STEPS)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("betas", "path"), [(LINEAR_BETAS, "ddpm-linear"), (cosine_betas(STEPS), "ddpm-cosine")]
)
def test_a_checkpoint_of_maskdm_has_both_weights_and_says_its_path(betas, path, tmp_path):
    raw, average = (published.state("maskdm", seed=seed) for seed in (1, 2))
    file = written(tmp_path, checkpoint(raw, average, betas), "model-20.pt")
    config = import_model(file, tmp_path / "model", "maskdm", HEADS)
    assert config.diffusion.path == path
    assert config.diffusion.prediction == "epsilon"
    compare("maskdm", raw, tmp_path / "model", "raw")
    compare("maskdm", average, tmp_path / "model", "averaged")


def test_safetensors_and_half_precision_are_read(tmp_path):
    weights = {n: t.half() for n, t in published.state("uvit").items()}
    save_file(weights, tmp_path / "weights.safetensors")
    import_model(tmp_path / "weights.safetensors", tmp_path / "model", "uvit", HEADS)
    compare("uvit", {n: t.float() for n, t in weights.items()}, tmp_path / "model")


def test_heads_are_one_for_64_numbers_unless_said(tmp_path):
    file = written(tmp_path, published.state("uvit", dim=128))
    assert import_model(file, tmp_path / "model", "uvit").model.heads == 2


def test_the_last_embedding_may_be_that_of_no_class(tmp_path):
    weights = published.state("uvit", classes=3)
    config = import_model(
        written(tmp_path, weights), tmp_path / "model", "uvit", HEADS, classes=["cat", "dog"]
    )
    assert config.classes == {"cat": 1, "dog": 1}
    network, _ = load_model(tmp_path / "model", "raw")
    assert network.label_embedding is not None
    assert torch.equal(network.label_embedding.weight, weights["label_emb.weight"])


def test_where_no_class_was_none_its_embedding_is_the_mean_of_the_classes(tmp_path):
    weights = published.state("uvit", classes=3)
    import_model(written(tmp_path, weights), tmp_path / "model", "uvit", HEADS, classes=list("abc"))
    network, _ = load_model(tmp_path / "model", "raw")
    *classes, null = network.label_embedding.weight
    rows = weights["label_emb.weight"]
    assert torch.equal(torch.stack(classes), rows)
    torch.testing.assert_close(null, rows.mean(dim=0))


def test_finetuning_starts_from_an_imported_model(tmp_path):
    file = written(tmp_path, published.state("uvit", classes=2))
    config = import_model(file, tmp_path / "model", "uvit", HEADS, classes=["cat", "dog"])
    wanted = settings(config, tmp_path / "model")
    assert wanted["finetune.init"] == tmp_path / "model"
    before = load_config(tmp_path / "model")
    model = config.model.model_copy(update={"init": "spatial"})
    check_start(tmp_path / "model", before, model, config.diffusion, True, ["cat", "dog"])
    larger = config.model_copy(update={"size": 16}).backbone()
    load_weights(tmp_path / "model", "averaged", larger)


class Runs:
    """A pickle that makes a file when it is read without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def faulty(tmp_path: Path) -> dict[str, Any]:
    """Return files that do not fit, each with layout and the sentence that it gets."""
    good, maskdm_own = published.state("uvit"), published.state("maskdm")
    shifted = checkpoint(maskdm_own, maskdm_own, LINEAR_BETAS * 0.9)
    head = {"decoder_pred.bias": torch.zeros(5)}
    whole = checkpoint(maskdm_own, maskdm_own, LINEAR_BETAS)
    return {
        "missing": ({n: t for n, t in good.items() if n != "norm.bias"}, "norm.bias is missing"),
        "unexpected": (good | {"more": torch.zeros(1)}, "more is unexpected"),
        "shape": (good | head, r"decoder_pred\.bias has shape \(5,\) instead of \(12,\)"),
        "nothing": ({}, "does not have this layout"),
        "layout": (maskdm_own, "Give another --layout: uvit, maskdm"),
        "latents": (published.state("uvit", channels=4), "images of 4 channels"),
        "time": (good | {"time_embed.0.weight": torch.zeros(1)}, "embeds time with an MLP"),
        "text": (good | {"context_embed.weight": torch.zeros(1)}, "is steered by text"),
        "oblong": (good | {"pos_embed": torch.zeros(1, 16, 16)}, "are no square of patches"),
        "endless": (
            good | {"pos_embed": torch.zeros(1, 1, 1).expand(1, 3001**2 + 1, 16)},
            "config.size is 6002",
        ),
        "integers": ({n: t.long() for n, t in good.items()}, "is int64, but weights are of type"),
        "words": (good | {"name": "mine"}, "name is no array of numbers"),
        "infinite": (good | {"norm.bias": torch.full((16,), torch.inf)}, "not finite"),
        "list": ([1, 2], "no table of tensors by name but a list"),
        "decay": (
            whole | {"ema": 0.9999},
            "a float where tensors by name belong",
        ),
        "tensor": (
            whole | {"ema": torch.ones(2)},
            "a Tensor where tensors by name",
        ),
        "numbers": ({"model": {1: torch.zeros(1)}}, "a dict where tensors by name belong"),
        "code": (good | {"x": Runs(tmp_path / "ran")}, "could run code"),
        "path": (shifted, "none of ddpm-linear and ddpm-cosine"),
        "silent": (maskdm_own, "does not say what path it was trained on"),
        "wavelets": (
            maskdm_own | {"encoder.approx_patch_embed.proj.bias": torch.zeros(1)},
            "works on wavelets",
        ),
        "decoder": (
            maskdm_own | {"encoder_to_decoder.weight": torch.zeros(1)},
            "has a decoder",
        ),
    }


OF_MASKDM = ("path", "silent", "wavelets", "decoder", "decay", "tensor", "numbers")


@pytest.mark.parametrize("fault", faulty(Path()))
def test_what_does_not_fit_is_one_sentence_and_no_folder(fault, tmp_path):
    content, sentence = faulty(tmp_path)[fault]
    layout = "maskdm" if fault in OF_MASKDM else "uvit"
    with pytest.raises(UserError, match=sentence):
        import_model(written(tmp_path, content), tmp_path / "model", layout, HEADS)
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_is_read_without_care_would_have_run(tmp_path):
    file = written(tmp_path, {"x": Runs(tmp_path / "ran")})
    torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_other_faults_are_sentences_too(tmp_path):
    file = written(tmp_path, published.state("uvit", classes=3))
    cut = tmp_path / "cut.pth"
    cut.write_bytes(file.read_bytes()[:-400])
    out = tmp_path / "model"
    for sentence, call in (
        ("There is no file", lambda: import_model(tmp_path / "none", out, "uvit")),
        ("is damaged, or no file of weights", lambda: import_model(cut, out, "uvit")),
        ("There is no layout 'dit'", lambda: import_model(file, out, "dit")),
        ("empty: name a folder that is not there", lambda: import_model(file, tmp_path, "uvit")),
        ("diffusion.path is 'x'", lambda: import_model(file, out, "uvit", HEADS, "x")),
        ("diffusion.path is ''", lambda: import_model(file, out, "uvit", HEADS, "")),
        ("model.heads is 0", lambda: import_model(file, out, "uvit", 0)),
        ("give 3 or 2 different", lambda: import_model(file, out, "uvit", 2, None, ["a"])),
        ("must be a multiple of", lambda: import_model(file, out, "uvit", 3)),
    ):
        with pytest.raises(UserError, match=sentence):
            call()
    assert not out.exists()


def test_every_option_of_the_command_reaches_the_import(tmp_path, monkeypatch):
    made = {}
    (tmp_path / "names.txt").write_text("\ufeffa cat\n\n  dog \n", encoding="utf-8")
    model = import_model(written(tmp_path, published.state("uvit")), tmp_path / "model", "uvit", 2)
    monkeypatch.setattr(importing, "import_model", recorded(import_model, made, model))
    options = {"layout": "uvit", "heads": 4, "path": "vp-cosine", "classes": tmp_path / "names.txt"}
    ended = CliRunner().invoke(cli.app, ["import", "file", "out", *given(options)])
    assert ended.exit_code == 0, ended.output
    read = {"file": Path("file"), "folder": Path("out"), "classes": ["a cat", "dog"]}
    assert made == {**options, **read}
    ended = CliRunner().invoke(cli.app, ["import", "file", "out", "--layout", "maskdm"])
    assert ended.exit_code == 0, ended.output
    assert (made["layout"], made["heads"], made["path"], made["classes"]) == ("maskdm", *[None] * 3)


def test_the_command_says_how_to_finetune(tmp_path):
    file = written(tmp_path, published.state("uvit"))
    words = ["import", file, tmp_path / "my model", "--layout", "uvit", "--heads", HEADS]
    ended = subprocess.run(
        [sys.executable, "-m", "maskdm.cli", *map(str, words)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    said = shlex.split(ended.stdout.splitlines()[-1])  # as a shell reads it
    assert f"finetune.init={tmp_path / 'my model'}" in said
    assert {"model.heads=2", "diffusion.path=vp-linear"} < set(said)
    assert load_config(tmp_path / "my model").model.heads == HEADS
