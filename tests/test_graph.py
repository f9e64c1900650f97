"""dvc.yaml says what the code does: dependencies, parameters, commands; imports point one way."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from maskdm.runtime.params import read_params
from maskdm.training.checkpoints.fingerprint import imports
from tests.support.graph import ROOT, STAGES, lies_under, modules_of

CODE = [*(ROOT / "maskdm").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]

RUN_CACHE = {"size", "nfiles"}  # keys that it ignores: dvc.stage.cache, dict_sha256(exclude=...)
MOST_DEPS, MOST_LINES = 8, 200

# Room of maskdm -> the rooms that it may import from.
ROOMS = {
    "runtime": set(),
    "diffusion": {"runtime"},
    "backbones": {"diffusion", "runtime"},
    "data": {"runtime"},
    "training.checkpoints": {"runtime"},
    "training": {"backbones", "data", "diffusion", "runtime", "training.checkpoints"},
    "sampling": {"backbones", "diffusion", "runtime"},
    "evaluation": {"runtime"},
    "figures": {"runtime"},
}
ROOMS["examples"] = set(ROOMS)
ROOMS["exchange"] = {"backbones", "diffusion", "runtime", "sampling"}
ROOMS["cli"] = {"backbones", "data", "exchange", "figures", "runtime", "sampling"}
OURS = ("maskdm", "stages", "benchmarks", "tools", "tests")
# What a stranger sees first; whatever else lies there is somebody's leftover.
TOP = {
    *OURS, "data", "docs", "models", "presets", "reports",
    "Makefile", "dvc.lock", "dvc.yaml", "params.yaml", "pyproject.toml", "requirements.lock",
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md",
}  # fmt: skip

each_stage = pytest.mark.parametrize("stage", STAGES)


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


def outputs(stage):
    """Return the paths that a stage writes."""
    kinds = ("outs", "metrics", "plots")
    return names(entry for kind in kinds for entry in STAGES[stage].get(kind, []))


def before(stage):
    """Return the stages that run before a stage, because it needs what they write."""
    params = read_params(ROOT / "params.yaml")
    found = set()
    for dep in STAGES[stage]["deps"]:
        path = dep.replace("${finetune.init}", params["finetune"]["init"])
        for other in STAGES:
            written = outputs(other)
            if any(lies_under(path, out) or lies_under(out, path) for out in written):
                found |= {other} | before(other)
    return found


@each_stage
def test_whatever_a_stage_imports_lies_under_one_of_its_deps(stage):
    deps = [dep for dep in STAGES[stage]["deps"] if is_code(dep)]
    missing = [
        module for module in modules_of(stage) if not any(lies_under(module, dep) for dep in deps)
    ]
    assert missing == []


@each_stage
def test_of_whatever_code_a_stage_depends_on_it_imports_something(stage):
    deps = [dep for dep in STAGES[stage]["deps"] if is_code(dep)]
    needless = [
        dep for dep in deps if not any(lies_under(module, dep) for module in modules_of(stage))
    ]
    assert needless == []
    assert [dep for dep in deps for other in deps if dep != other and lies_under(dep, other)] == []
    assert [dep for dep in deps if not (ROOT / dep).exists()] == []


def test_the_graph_can_be_read_in_one_sitting():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < MOST_LINES
    assert {
        stage: len(entry["deps"])
        for stage, entry in STAGES.items()
        if len(entry["deps"]) > MOST_DEPS
    } == {}


@each_stage
def test_a_stage_declares_exactly_the_sections_that_it_reads(stage):
    declared = STAGES[stage].get("params", [])
    if stage == "check":
        assert declared == [{"params.yaml": None}]  # all of it, parsed: comments do not count
    else:
        assert set(declared) == set().union(*(sections_read(ROOT / m) for m in modules_of(stage)))


def test_no_parameter_has_a_name_that_the_run_cache_ignores():
    def keys(section):
        for key, value in section.items():
            yield key
            if isinstance(value, dict):
                yield from keys(value)

    assert RUN_CACHE.isdisjoint(keys(read_params(ROOT / "params.yaml")))


def test_all_code_and_nothing_compiled_is_part_of_a_dependency():
    """DVC ignores what .dvcignore names: a room by mistake, and editing it would rerun nothing."""
    with Repo(ROOT) as repo:
        seen = {
            Path(path)
            for folder in ("maskdm", "stages")
            for path in repo.dvcignore.find(repo.fs, str(ROOT / folder))
        }
        ignored = repo.dvcignore.is_ignored_dir(str(ROOT / "maskdm/training/__pycache__"))
    assert set(CODE) <= seen
    assert {path.suffix for path in seen} <= {".py", ".typed"}
    assert ignored


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
    assert ("check" in before(stage)) == (stage != "check")


@each_stage
def test_help_names_what_a_stage_reads_and_writes(stage, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, f"stages.{stage}", raising=False)
    monkeypatch.setattr(sys, "argv", [f"stages.{stage}", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"stages.{stage}", run_name="__main__")
    assert end.value.code == 0
    said = set(re.findall(r"[\w./-]*\w", capsys.readouterr().out))

    entries = STAGES[stage]
    read = [re.sub(r"\$\{(.*)}", r"\1", dep) for dep in entries["deps"] if not is_code(dep)]
    for path in {*outputs(stage), *read} - {"data/checked"}:
        assert {path, str(Path(path).parent)} & said - {"data", "models", "reports"}, path
    assert set(names(entries.get("params", []))) <= said


def test_package_files_hold_nothing_that_a_stage_uses():
    """A docstring alone; but for ``maskdm.load``, former names, and what torch must find."""
    for path in [*(ROOT / "maskdm").rglob("__init__.py"), *(ROOT / "stages").rglob("__init__.py")]:
        module = ast.parse(path.read_text())
        assert ast.get_docstring(module), path
        if path == ROOT / "stages/__init__.py":
            names = [node.names[0].name for node in module.body if isinstance(node, ast.ImportFrom)]
            assert names == ["bound_spinning", "refuse_renamed"]
        elif path != ROOT / "maskdm/__init__.py":
            assert len(module.body) == 1, path
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "maskdm":
                assert "load" not in {alias.name for alias in node.names}, path
            assert not isinstance(node, ast.Import) or "maskdm" not in {
                alias.name for alias in node.names
            }, path


def room(module):
    """Return the room of maskdm that a module is in, or what it is in besides."""
    top, *below = module.split(".")
    if top != "maskdm":
        return top
    return "training.checkpoints" if below[:2] == ["training", "checkpoints"] else below[0]


def test_nothing_further_stands_at_the_top():
    """Whatever begins with a dot aside; a copy that is no repository has nothing to tell apart."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    found = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in found if not name.startswith(".")} in (TOP, set())


def test_imports_point_one_way():
    arrows = set()
    for path in (ROOT / "maskdm").rglob("*.py"):
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        ours = {name for name in imports(path) if name.split(".")[0] in OURS}
        if path != ROOT / "maskdm/__init__.py":
            arrows |= {(room(module), room(name)) for name in ours}
    wrong = {(here, there) for here, there in arrows if there not in {here, *ROOMS[here]}}
    assert wrong == set()
    assert {here for here, _ in arrows} | {there for _, there in arrows} == set(ROOMS)


def test_nothing_leads_back_to_a_room_that_imports_it():
    def below(room):
        return ROOMS[room].union(*(below(other) for other in ROOMS[room]))

    assert [room for room in ROOMS if room in below(room)] == []


def test_stages_import_the_library_and_no_other_stage():
    for path in (ROOT / "stages").glob("*.py"):
        ours = {name for name in imports(path) if name.split(".")[0] in OURS}
        assert [name for name in ours if not name.startswith("maskdm.")] == [], path


def test_imports_are_absolute():
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            assert getattr(node, "level", 0) == 0, path  # graph.modules_of follows no other
