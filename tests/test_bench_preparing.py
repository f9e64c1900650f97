"""The benchmark of preparing: what its value and its limit count."""

import os

from benchmarks.presets import read_preset
from benchmarks.speed import preparing
from benchmarks.speed.commands import workspace
from benchmarks.speed.measuring import execute
from benchmarks.speed.preparing import both, listed, save_jpegs, write
from maskdm.data.prepared import open_prepared
from maskdm.data.registry import DataParams
from maskdm.runtime.params import read_section

TINY = read_preset("tiny")


def test_the_limit_is_the_loops_rate_on_every_core(monkeypatch):
    monkeypatch.setattr(preparing, "interleaved", lambda *_, **__: {"everything": 0.25, "loop": 1})
    monkeypatch.setattr(preparing, "JPEGS", 40)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    rows = both(TINY)
    assert [row.name for row in rows] == ["prepare OpenMoji", "prepare JPEGs of 512×384"]
    assert [(row.value, row.limit, row.unit) for row in rows] == [(4, 5, "images/s")] * 2
    assert all(row.higher_is_better and row.goal == 0.8 for row in rows)


def test_what_is_timed_prepares_every_picture_and_the_loop_reads_a_sample_of_them(monkeypatch):
    monkeypatch.setattr(preparing, "JPEGS", 40)
    monkeypatch.setattr(preparing, "LOOPED", 30)
    written, fitted = [], []
    monkeypatch.setattr(
        preparing, "write", lambda *given: written.append(write(*given)) or written[-1]
    )
    monkeypatch.setattr(preparing, "fit", lambda *given: fitted.append(given))
    monkeypatch.setattr(preparing, "interleaved", lambda *_, **__: {"everything": 1, "loop": 1})
    both(TINY)
    assert [len(kept.train) + len(kept.heldout) for kept in written] == [96, 40]
    assert len(fitted) == 24 + 20  # every fourth of 96, every second of 40


def test_it_writes_the_set_that_the_stage_writes(tmp_path):
    params = read_section(TINY, "data", DataParams)
    kept = write(tmp_path, listed(params), params)
    with workspace(TINY, {}) as folder:
        execute(["python", "-m", "stages.prepare"], folder)
        assert open_prepared(folder / "data/prepared").hash == kept.hash


def test_the_photographs_are_as_large_as_their_row_says(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "JPEGS", 3)
    save_jpegs(tmp_path)
    params = read_section(TINY, "data", DataParams)
    photos = params.model_copy(
        update={"source": "folder", "path": str(tmp_path), "limit": None, "resolution": 512}
    )
    source = listed(photos)
    assert [source.read(picture.name).size for picture in source.pictures] == [(512, 384)] * 3
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert all(20_000 < size < 100_000 for size in sizes), sizes
