"""The kit for GPUs: it ends by itself, goes on where it was, and outlives a piece that fails."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import packages_distributions, requires
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import attention, compiling, exactness, kit, several, steps
from benchmarks.gpu.apart import apart
from benchmarks.presets import read_preset
from maskdm.runtime.execution import Execution
from tests.support.graph import ROOT
from tools.tables import gpus
from tools.tables import kit as tables

CPU = torch.device("cpu")
COMMITTED = sorted((ROOT / "reports/gpu").glob("*.json"))


@pytest.fixture(autouse=True)
def no_watchdog(monkeypatch):
    """Called in this process, it would end the tests."""
    monkeypatch.setattr(kit, "ends_within", lambda seconds: nullcontext())


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The kit with pieces of its own; what they were asked is noted."""
    asked = []

    def piece(name, value):
        def measure():
            asked.append(name)
            if isinstance(value, Exception):
                raise value
            return value

        return name, measure

    monkeypatch.setattr(kit, "REPORTS", tmp_path)
    monkeypatch.setattr(
        kit, "pieces", lambda _: [piece("a", 1.0), piece("b", ValueError("no")), piece("c", {})]
    )
    return asked


def read(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_it_goes_on_where_it_was_and_a_piece_that_fails_stops_nothing(measured, tmp_path):
    kit.main(only="a")
    assert measured == ["a"]
    kit.main()
    assert measured == ["a", "b", "c"]
    kit.main(only="c")
    assert measured == ["a", "b", "c"]
    pieces = read(tmp_path)["pieces"]
    assert pieces == {"a": 1.0, "b": {"failed": "ValueError: no"}, "c": {}}


def test_what_has_failed_is_tried_again_and_takes_no_figures_place(measured, tmp_path):
    kit.main()
    path, report = next(tmp_path.glob("*.json")), read(tmp_path)
    report["pieces"]["b"] = 2.0
    path.write_text(json.dumps(report))
    kit.main()
    assert measured == ["a", "b", "c", "b"]
    assert read(tmp_path)["pieces"]["b"] == 2.0


def test_a_report_of_another_torch_is_begun_anew(measured, tmp_path):
    kit.main()
    path, report = next(tmp_path.glob("*.json")), read(tmp_path)
    path.write_text(json.dumps(report | {"torch": "1.0"}))
    kit.main(only="c")
    assert read(tmp_path)["torch"] == torch.__version__
    assert read(tmp_path)["pieces"] == {"c": {}}


def test_after_an_error_that_loses_the_device_another_process_goes_on(
    monkeypatch, tmp_path, device_error
):
    def broken():
        raise device_error(700, "an illegal memory access was encountered")

    begun = []
    monkeypatch.setattr(kit, "REPORTS", tmp_path)
    monkeypatch.setattr(kit.os, "execv", lambda _, command: begun.append(command[1:]))
    monkeypatch.setattr(kit, "pieces", lambda _: [("a", dict), ("b", broken), ("c", dict)])
    kit.main(minutes=3, tag="-x")
    assert read(tmp_path)["pieces"] == {"a": {}}
    assert read(tmp_path)["did not end"] == ["b"]
    ((_, module, _, left, *words),) = begun
    assert (module, words) == ("benchmarks.gpu.kit", ["--only", "", "--tag", "-x", "--no-again"])
    assert 2.5 < float(left) <= 3
    kit.main(tag="-x", again=False)
    assert len(begun) == 1
    assert list(read(tmp_path)["pieces"]) == ["a", "c"]
    monkeypatch.setattr(kit, "pieces", lambda _: [("a", dict), ("b", dict), ("c", dict)])
    kit.main(tag="-x")
    assert list(read(tmp_path)["pieces"]) == ["a", "c", "b"]
    assert read(tmp_path)["did not end"] == []


def test_it_needs_the_packages_that_its_page_names_and_no_others():
    """On a machine that has PyTorch and no package index the others are not there."""
    line = (ROOT / "docs/gpu.md").read_text().split("<!-- the kit's packages -->\n")[1]
    code = "import sys, benchmarks.gpu.kit; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    providers = packages_distributions()
    there = {name for module in loaded for name in providers.get(module, ())}
    asked = {re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in requires("maskdm")}
    assert there & {name.lower() for name in asked} == set(line.splitlines()[0].split(", "))


def test_what_cannot_be_recorded_is_a_piece_that_fails_and_loses_nothing(
    monkeypatch, tmp_path, device_error
):
    def refused():
        raise device_error(900, "operation not permitted when stream is capturing")

    monkeypatch.setattr(kit, "REPORTS", tmp_path)
    monkeypatch.setattr(kit, "pieces", lambda _: [("a", refused), ("b", dict)])
    kit.main()
    assert kit.failed(read(tmp_path)["pieces"]["a"])
    assert read(tmp_path)["pieces"]["b"] == {}


def test_there_are_committed_reports():
    assert COMMITTED


@pytest.mark.parametrize("path", COMMITTED, ids=[path.stem for path in COMMITTED])
def test_it_goes_on_with_every_committed_report(path, measured, monkeypatch, tmp_path):
    """They were written by older kits, which noted less of what they did."""
    kept = json.loads(path.read_text())
    there = {key: value for key, value in kept.items() if key in kit.about(CPU)}
    monkeypatch.setattr(kit, "about", lambda _: there)
    monkeypatch.setattr(kit, "device_slug", lambda _: path.stem)
    shutil.copy(path, tmp_path)
    kit.main()
    assert measured == ["a", "b", "c"]
    assert kept["pieces"].items() < read(tmp_path)["pieces"].items()


def test_what_has_no_figure_comes_before_what_older_code_has_measured(
    measured, monkeypatch, tmp_path
):
    kit.main(only="a")
    path, report = next(tmp_path.glob("*.json")), read(tmp_path)
    path.write_text(json.dumps(report | {"code": {"a": "another"}, "notes": ["of a"]}))
    kit.main(only="c")
    assert "notes" in read(tmp_path)
    measured.clear()
    kit.main()
    assert measured == ["b", "a"]
    assert "notes" in read(tmp_path)  # b has failed
    monkeypatch.setattr(kit, "pieces", lambda _: [("b", dict)])
    kit.main()
    assert "notes" not in read(tmp_path)


def test_what_other_code_has_measured_stays_until_it_is_measured_anew(measured, tmp_path):
    kit.main()
    path, report = next(tmp_path.glob("*.json")), read(tmp_path)
    report["code"]["c"] = "another"
    del report["code"]["a"]
    path.write_text(json.dumps(report))
    kit.main(only="a")
    assert measured == ["a", "b", "c", "a"]
    assert read(tmp_path)["pieces"]["c"] == {}
    kit.main(only="c")
    assert measured == ["a", "b", "c", "a", "c"]


def test_what_compiles_is_not_begun_shortly_before_the_end(measured, monkeypatch, capsys):
    pieces = [("a", dict), ("b, compiled", dict), ("c", dict)]
    monkeypatch.setattr(kit, "pieces", lambda _: pieces)
    kit.main(minutes=1.0)
    said = capsys.readouterr().out
    assert "a: " in said
    assert "The time is over before 'b, compiled'" in said
    assert "c: " in said  # which takes less


def test_it_begins_nothing_when_the_time_is_over(measured, tmp_path, capsys):
    kit.main(minutes=0.0)
    assert measured == []
    assert "run it again to go on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda", ["replayed", "compiled, replayed", "launched"]),
        ("mps", ["launched"]),
        ("cpu", ["launched"]),
    ],
)
def test_its_pieces_have_names_of_their_own_and_what_training_does_comes_first(
    device, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    pieces = dict(kit.pieces(Execution(torch.device(device), strict=True)))
    assert len(pieces) == len(list(kit.pieces(Execution(torch.device(device)))))
    ways = [found["way"] for name in pieces if (found := tables.STEPS.fullmatch(name))]
    assert list(dict.fromkeys(ways)) == expected
    assert len(ways) == len(expected) * (2 * len(kit.RATES) + 2)
    # What only CUDA can do is not tried elsewhere, and nothing else is measured in its name.
    words = ("compil", "2 GPUs as by default", "1024 tokens")
    for word in words:
        assert any(word in name for name in pieces) == (device == "cuda")
    for piece in pieces.values():
        for given in piece.args:
            assert not isinstance(given, Execution) or given.strict


def test_apples_gpu_is_measured_where_there_is_one_unless_another_device_is_asked_for(
    measured, monkeypatch, tmp_path, capsys
):
    monkeypatch.delenv("MASKDM_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kit.main(only="a")
    assert "There is no GPU here" in capsys.readouterr().out
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    kit.main(only="a")
    assert "There is no GPU here" not in capsys.readouterr().out
    assert {path.stem for path in tmp_path.glob("*.json")} == {"cpu", "mps"}
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    before = (tmp_path / "cpu.json").stat().st_mtime_ns
    kit.main(only="b")
    assert "There is no GPU here" not in capsys.readouterr().out  # as asked
    assert (tmp_path / "cpu.json").stat().st_mtime_ns > before


HANGS = """
import pathlib, sys, time, torch
from benchmarks.gpu import kit
torch.compiler.reset()  # what takes seconds the first time, before the clock starts
kit.code_of_the_kit = lambda: "code"
kit.REPORTS, kit.GRACE = pathlib.Path(sys.argv[1]), -40  # pieces begin for 60 s, end in 20
hangs = ("b", lambda: time.sleep(60))
kit.pieces = lambda _: [("a", dict), hangs, ("c", dict)]
kit.LEAST = {"": 0}
kit.main(minutes=float(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_piece_that_hangs_ends_with_the_call_and_comes_last_in_the_next(tmp_path):
    def call(minutes):
        return subprocess.run(
            [sys.executable, "-c", HANGS, str(tmp_path), minutes], capture_output=True, text=True
        )

    ended = call("1")
    assert ended.returncode == 1
    assert "in <lambda>" in ended.stderr  # where it hung
    assert read(tmp_path)["pieces"] == {"a": {}}
    assert call("1").returncode == 1
    report = read(tmp_path)
    assert report["pieces"] == {"a": {}, "c": {}}
    assert report["did not end"] == ["b"]


@pytest.mark.parametrize(
    ("there", "together"), [(1, []), (2, [2]), (3, [2]), (4, [2, 4]), (6, [2, 4]), (8, [2, 4, 8])]
)
def test_as_many_gpus_as_there_are_compute_together(there, together, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert kit.counts(torch.device("cuda")) == together
    assert kit.counts(CPU) == []


def test_sets_in_one_sequence_attend_as_sets_alone_do(monkeypatch):
    """The kernel is CUDA's: what stands for it here attends to one set after the other."""
    split = torch.randn(3, 4, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    packed = split.transpose(2, 3).reshape(3, 4 * 5, 2, 8)
    ends = torch.arange(5, dtype=torch.int32) * 5

    def varlen(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k):
        assert cu_seq_q is cu_seq_k
        assert max_q == max_k == 5
        sets = [[t[a:b].transpose(0, 1) for t in (q, k, v)] for a, b in pairwise(cu_seq_q)]
        return torch.cat([attention.plain(*one).transpose(0, 1) for one in sets])

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    alone = attention.plain(*split).transpose(1, 2).reshape(4 * 5, 2, 8)
    torch.testing.assert_close(attention.in_one(ends, 5, *packed), alone)


@pytest.mark.slow
def test_attention_is_timed_way_by_way_and_what_does_not_work_says_why():
    found = attention.attention(7, heads=1, device=CPU, tokens=70)
    assert found["as chosen"] > 0
    assert found["math"] > 0
    assert set(found) == {"as chosen", *attention.KERNELS, "packed"}
    assert "CUDA" in found["packed"] or "backend" in found["packed"]


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one_with_its_losses(monkeypatch):
    for name in ("PATIENCE", "PATIENCE_COMPILING"):
        monkeypatch.setattr(several, name, 900)
    found = several.compare(2, "tiny", 0.5, launched=True)
    rates = {
        *("images/s, batch shared", "of 2 times one, batch shared"),
        *("images/s, batch each", "of 2 times one, batch each"),
    }
    assert found.keys() == rates | {"difference of a loss"}
    assert all(value > 0 for value in found.values())
    assert found["difference of a loss"] < 1e-4
    assert several.compare(2, "tiny", 0.5, launched=False).keys() == rates


@pytest.mark.slow
def test_processes_that_fail_say_why(monkeypatch):
    monkeypatch.setattr(several, "PATIENCE", 900)
    with pytest.raises(RuntimeError, match=r"several failed: .*no preset 'nothing'"):
        several.on_processes(1, "nothing", 0.0, 1, launched=True)


def test_the_compiler_finds_nothing_first_and_then_what_it_made(monkeypatch):
    seen = []

    def apart(module, words, environment):
        assert module == "benchmarks.gpu.compiling"
        folder = Path(environment[compiling.CACHE])
        assert environment[compiling.TRITONS_CACHE] is None
        seen.append(sorted(path.name for path in folder.iterdir()))
        (folder / "compiled").touch()
        return {"seconds": float(len(seen))}

    monkeypatch.setattr(compiling, "apart", apart)
    found = compiling.compiling("tiny", 0.0)
    assert found == {"cold, s": 1.0, "from the cache, s": 2.0}
    assert seen == [[], ["compiled"]]


@pytest.mark.slow
def test_what_was_compiled_is_found_and_not_compiled_again(tmp_path):
    """In processes of their own, which keep it in the folder that they are given."""
    words = ["--preset", "tiny", "--rate", "0.5"]
    environment = {compiling.CACHE: str(tmp_path), compiling.TRITONS_CACHE: None}
    kept = []
    for _ in range(2):
        found = apart("benchmarks.gpu.compiling", words, environment, patience=600)
        assert found.keys() == {"seconds"}
        kept.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")})
    assert kept[0]
    assert kept[1] == kept[0]


WRITES = """
import json, os, pathlib, sys, time
if sys.argv[2] == "hangs":
    time.sleep(60)
found = {"is": os.environ.get("IS"), "was": "WAS" in os.environ}
pathlib.Path(sys.argv[1]).write_text(json.dumps(found))
"""


def test_a_process_apart_has_the_environment_that_it_is_given(monkeypatch, tmp_path):
    (tmp_path / "writes.py").write_text(WRITES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WAS", "here")
    assert apart("writes", [""], {"IS": "1", "WAS": None}) == {"is": "1", "was": False}
    with pytest.raises(RuntimeError, match=r"writes did not end within 1 s"):
        apart("writes", ["hangs"], {}, patience=1)


@pytest.mark.slow
def test_batches_come_and_weights_are_compared():
    preset = read_preset("tiny")
    mask, params = steps.masked(preset, 0.5)
    assert steps.batches_a_second(preset, mask, params, CPU) > 0
    assert set(steps.autocast_and_bf16(preset, mask, params, CPU)) == {"autocast, s", "bf16, s"}


@pytest.mark.slow
def test_exactness_holds_on_a_cpu():
    found = exactness.exactness(Execution(CPU))
    assert found["two runs the same"]
    assert found["stopped and gone on the same"]
    assert found["losses finite"]
    assert found["against launched and not compiled"] == 0
    assert found["averages against launched"] == 0
    assert 0 < found["micro-batches"] < 1e-4


def test_a_difference_is_seen():
    one = {"a": torch.ones(3), "history.losses": torch.tensor([1.0, 2.0])}
    other = {"a": torch.ones(3), "history.losses": torch.tensor([1.0, 2.5])}
    assert exactness.same(one, one)
    assert not exactness.same(one, other)
    assert exactness.difference(one["history.losses"], other) == pytest.approx(0.25)
    weights = exactness.averages({"averaged.a": torch.ones(2, 2), "a": torch.zeros(9)})
    assert exactness.distance(weights, 2 * weights) == pytest.approx(0.5)


def test_what_a_preset_was_measured_to_do_stands_beside_what_it_is_computed_to(
    monkeypatch, tmp_path
):
    def steps_of(images, flops):
        return {"images/s": images, "FLOP/s": flops}

    pieces = {
        "steps, MaskDM-small, 64 px, 90%, bf16, launched": steps_of(1000.0, 1e13),
        "steps, MaskDM-small, 64 px, 90%, bf16, replayed": steps_of(2000.0, 2e13),
        "steps, MaskDM-base, 256 px, 0%, bf16, launched": {"failed": "RuntimeError: no"},
        "steps, demo, 0%, bf16, launched": steps_of(5.0, 1e9),
    }
    (tmp_path / "a.json").write_text(json.dumps({"device": "A", "pieces": pieces}))
    monkeypatch.setattr(tables, "REPORTS", tmp_path)
    *_, row = gpus.measured().splitlines()
    computed = gpus.two_digits(gpus.FLOPS_PER_SECOND / 1e10)
    assert row == f"| `celeba64` | 90% | {computed} | A | 2,000 | replayed |"
    assert gpus.measured().count("\n") == 2


def test_the_tables_say_what_the_report_says(monkeypatch, tmp_path):
    report = {
        "device": "A", "torch": "2", "cpu": "B",
        "pieces": {
            "multiply, bf16": 4e12,
            "multiply, fp32": {"failed": "RuntimeError: no"},
            "exactness, fp32": {"two runs the same": False, "micro-batches": 2e-7},
            "batches, demo, 75%": 30.0,
            "steps, demo, 75%, bf16, replayed": {
                "images a step": 64, "steps/s": 200.0, "images/s": 12800.0, "FLOP/s": 2e12,
                "peak memory, bytes": 2**30,
            },
            "steps, demo, 0%, bf16, replayed": {"failed": "RuntimeError: no"},
            "batches, demo, 50%": {"failed": "RuntimeError: no"},
            "steps, demo, 50%, fp32, launched": {
                "images a step": 32, "steps/s": 100.0, "images/s": 3200.0, "FLOP/s": 2e12,
                "peak memory, bytes": None,
            },
            "2 GPUs, demo": {"of 2 times one, batch each": 0.95},
            "attention, sets of 7": {"flash": 0.25, "cudnn": "No kernel."},
        },
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(report))
    monkeypatch.setattr(tables, "REPORTS", tmp_path)
    assert "| demo | 75% | 64 | replayed | 200 | 12,800 | 2 | 0.5 | 1 | 30 |" in tables.speed()
    assert "| demo | 50% | 32 | launched | 100 | 3,200 | 2 |  |  |  |" in tables.speed()
    assert "failed" not in tables.speed()
    assert "| two runs the same | **no** |" in tables.exactness()
    assert "| 2 GPUs, demo | of 2 times one, batch each: 0.95 |" in tables.others()
    assert "| attention, sets of 7 | flash: 0.25, cudnn: No kernel. |" in tables.others()
    (tmp_path / "a.json").unlink()
    assert tables.others() == "Nothing yet: `make gpu` measures it."
