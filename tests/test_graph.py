"""dvc.yaml says what the code does: dependencies, parameters, commands; params files are whole."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from graph import ROOT, modules_of
from ruamel.yaml import YAML

from maskdm.runtime.params import read_params
from stages.check import check

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
CODE = [*(ROOT / "maskdm").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]
PARAMS_FILES = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]
SECTIONS = ["seed", "data", "model", "diffusion", "mask", "pretrain", "finetune", "sample", "fid"]

RUN_CACHE = {"size", "nfiles"}  # dvc.stage.cache: dict_sha256(..., exclude=[...])

each_stage = pytest.mark.parametrize("stage", STAGES)
each_params_file = pytest.mark.parametrize("path", PARAMS_FILES, ids=lambda path: path.stem)


def is_code(path):
    return path.startswith(("maskdm/", "stages/"))


def names(entries):
    """Return the paths of dvc.yaml's entries, which are either a path or {path: options}."""
    return [name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)]


def sections_read(path):
    """Return the sections that a file's calls of read_section name."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {
        call.args[1].value
        for call in calls
        if getattr(call.func, "id", "") == "read_section" and isinstance(call.args[1], ast.Constant)
    }


@each_stage
def test_a_stage_depends_on_exactly_the_modules_that_it_imports(stage):
    assert sorted(filter(is_code, STAGES[stage]["deps"])) == sorted(modules_of(stage))


@each_stage
def test_a_stage_declares_exactly_the_sections_that_it_reads(stage):
    declared = STAGES[stage].get("params", [])
    if stage == "check":
        assert declared == [{"params.yaml": None}]  # all of it, parsed: comments do not count
    else:
        read = set().union(*(sections_read(ROOT / m) for m in modules_of(stage)))
        # the one key that DVC's run cache would not see within its section
        assert set(declared) == read | ({"data.size"} if "data" in read else set())


def test_no_other_parameter_has_a_name_that_the_run_cache_leaves_out():
    def keys(section, prefix=""):
        for key, value in section.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    hidden = [k for k in keys(read_params(ROOT / "params.yaml")) if k.split(".")[-1] in RUN_CACHE]
    assert hidden == ["data.size"]


@each_stage
def test_a_stage_is_a_file_and_a_command(stage):
    assert (ROOT / f"stages/{stage}.py").exists()
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"


def test_every_command_of_the_stages_is_in_the_graph():
    files = (ROOT / "stages").glob("*.py")
    commands = {path.stem for path in files if "\n    run(" in path.read_text()}
    assert commands == set(STAGES)


@each_stage
def test_all_stages_but_the_first_wait_for_the_check(stage):
    assert ("data/checked" in STAGES[stage]["deps"]) == (stage != "check")


@each_stage
def test_help_names_what_a_stage_reads_and_writes(stage, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, f"stages.{stage}", raising=False)
    monkeypatch.setattr(sys, "argv", [f"stages.{stage}", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"stages.{stage}", run_name="__main__")
    assert end.value.code == 0
    said = set(re.findall(r"[\w./-]*\w", capsys.readouterr().out))

    entries = STAGES[stage]
    written = names(
        [*entries.get("outs", []), *entries.get("metrics", []), *entries.get("plots", [])]
    )
    read = [re.sub(r"\$\{(.*)}", r"\1", dep) for dep in entries["deps"] if not is_code(dep)]
    for path in {*written, *read} - {"data/checked"}:
        assert {path, str(Path(path).parent)} & said - {"data", "models", "reports"}, path
    assert set(names(entries.get("params", []))) - {"data.size"} <= said


def test_package_files_hold_nothing_that_a_stage_uses():
    """A docstring alone; but for maskdm's own, whose ``load`` is for users."""
    for path in [*(ROOT / "maskdm").rglob("__init__.py"), *(ROOT / "stages").rglob("__init__.py")]:
        module = ast.parse(path.read_text())
        assert ast.get_docstring(module), path
        assert len(module.body) == 1 or path == ROOT / "maskdm/__init__.py", path
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "maskdm":
                assert "load" not in {alias.name for alias in node.names}, path
            assert not isinstance(node, ast.Import) or "maskdm" not in {
                alias.name for alias in node.names
            }, path


def test_imports_are_absolute():
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            assert getattr(node, "level", 0) == 0, path  # graph.modules_of follows no other


def test_the_laptop_preset_is_the_default():
    assert (ROOT / "presets/laptop.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


@each_params_file
def test_a_params_file_is_whole_and_accepted(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = read_params(path)
    assert list(params) == SECTIONS
    start = tmp_path / params["finetune"]["init"]
    if start.name == "vggface2":  # the model of another preset's run
        start.mkdir(parents=True)
        other = read_params(ROOT / "presets/vggface2.yaml")
        about = {
            "size": other["data"]["size"],
            "channels": other["data"]["channels"],
            "classes": None,
            "seed": other["seed"],
            "model": other["model"],
            "diffusion": other["diffusion"],
            "training": [],
        }
        (start / "config.json").write_text(json.dumps(about))
    check(path)


@each_params_file
def test_every_parameter_has_a_comment(path):
    keys = [line for line in path.read_text().splitlines() if re.match(r" *\w+:", line)]
    bare = [line for line in keys if "#" not in line and not line.endswith(":")]
    assert not bare
