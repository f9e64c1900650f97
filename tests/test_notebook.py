"""The notebook runs from its first cell to its last, and shows what it says it shows."""

import base64
import os
from io import BytesIO

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.support.clones import ROOT, SMALLER, clone_tree

NOTEBOOK = ROOT / "docs/notebook.ipynb"


def test_no_outputs_are_kept_that_could_be_stale():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in cells if cell.outputs or cell.execution_count] == []


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_the_images_that_it_names_are_those_of_the_run(tmp_path, monkeypatch, own):
    """The cells that train, where dvc and python only say what they were asked for."""
    (tmp_path / "bin").mkdir()
    for name in ("dvc", "python"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    names = ("PRESET = ", "%%bash -s")
    settings, train = notebook.cells = [c for c in notebook.cells if c.source.startswith(names)]
    if own:
        settings.source = settings.source.replace("DATA = None", f'DATA = "{tmp_path}/my images"')
    NotebookClient(notebook, kernel_name="python3", iopub_timeout=60).execute()
    said = "".join(output.text for output in train.outputs)
    images = f"-S data.source=folder -S data.path={tmp_path}/my images " if own else ""
    assert said == f"python -m tools.preset tiny\ndvc exp run --quiet {images}finetune\n"


@pytest.mark.slow
def test_the_notebook_trains_draws_interpolates_and_inpaints(tmp_path):
    clone = clone_tree(tmp_path / "clone", SMALLER)
    before = clone.git("status", "--porcelain")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        iopub_timeout=60,
        kernel_name="python3",
        resources={"metadata": {"path": clone.path / "docs"}},
    )
    client.execute(env=clone.environment | {"TMPDIR": str(tmp_path), "MASKDM_DEVICE": "cpu"})
    pictures = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                with Image.open(BytesIO(base64.b64decode(output.data["image/png"]))) as image:
                    pictures[cell.source.splitlines()[-1]] = np.asarray(image)
    step, scale = 34, 4  # 32 pixels and a gap, enlarged
    sizes = {
        code: (p.shape[1] // scale - 2, p.shape[0] // scale - 2) for code, p in pictures.items()
    }
    assert sizes == {
        "images": (8 * step, 2 * step),
        'model.sample(16, seed=0, solver="ddpm", nfe=25)': (8 * step, 2 * step),
        "model.interpolate(0, 1, count=8)": (8 * step, step),
        "Images([image, *answers])": (8 * step, step),
    }
    first, *answers = (
        pictures["Images([image, *answers])"][2 * scale :: scale, (2 + n * step) * scale :: scale]
        for n in range(8)
    )
    for answer in answers:
        assert np.array_equal(answer[:32, :16], first[:32, :16])
        assert not np.array_equal(answer[:32, 16:32], first[:32, 16:32])
    assert clone.git("status", "--porcelain") == before == ""
