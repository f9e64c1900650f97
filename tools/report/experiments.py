"""What a run of the pipeline wrote, in the workspace or at any revision or experiment."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from maskdm.runtime.errors import UserError

WORKSPACE = "workspace"
PHASES = {"pretrain": "masked pretraining", "finetune": "finetuning"}


@dataclass(frozen=True)
class Experiment:
    """A run of the pipeline.

    Attributes:
        name: what the user calls it: a revision, an experiment, or the workspace.
        read: the content of a file, by its path from the root, None if there is no such file.
    """

    name: str
    read: Callable[[str], bytes | None]

    def params(self) -> dict[str, Any]:
        """Return its parameters by dotted names, ``{"mask.rate": 0.75, …}``."""
        found = YAML(typ="safe", pure=True).load(self.read("params.yaml") or b"{}")
        return _flat(found)

    def json(self, path: str) -> dict[str, Any]:
        """Return what a JSON file holds, an empty dict if there is none."""
        return dict(json.loads(self.read(path) or b"{}"))

    def metrics(self) -> dict[str, Any]:
        """Return its metrics, and what was measured and how, by dotted names."""
        return _flat(self.json("reports/measured.json") | self.json("reports/metrics.json"))

    def yardsticks(self) -> dict[str, dict[str, Any]]:
        """Return what its yardsticks measure, each by dotted names."""
        found = self.json("reports/yardsticks.json")
        return {name: _flat(measured) for name, measured in found.items()}

    def curve(self, file: str, column: str) -> list[dict[str, Any]]:
        """Return a column of both phases' TSV files, over one axis each of compute.

        Args:
            file: ``training`` or ``validation``.
            column: of it.

        Returns:
            Rows of ``phase, flops, images, seconds, value``. Seconds are those of the phase's steps
            as they were timed; None where they were not.
        """
        rows: list[dict[str, Any]] = []
        images, seconds = 0, 0.0
        for phase, title in PHASES.items():
            text = (self.read(f"reports/{phase}/{file}.tsv") or b"").decode()
            found = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
            step_time = self._step_time(phase, int(found[-1]["step"])) if found else None
            for row in found:
                rows.append(
                    {
                        "phase": title,
                        "flops": int(row["flops"]),
                        "images": images + int(row["images"]),
                        "seconds": step_time and seconds + step_time * int(row["step"]),
                        "value": float(row[column]) if row[column] else None,
                    }
                )
            if found:
                images = rows[-1]["images"]
                seconds = rows[-1]["seconds"] or seconds
        return rows

    def _step_time(self, phase: str, steps: int) -> float | None:
        """Return the seconds of a step: of all that were made, whichever command made them."""
        seconds = self.json(f"reports/timing/{phase}.json").get("seconds")
        return seconds / steps if seconds and steps else None


def experiments(names: list[str], root: Path) -> list[Experiment]:
    """Return the runs of these names; the workspace's if there are none.

    Args:
        names: git revisions, names of DVC experiments, or ``workspace``.
        root: of the repository.

    Raises:
        UserError: if there is no such revision, or it holds no finished run.
    """
    found = [experiment(name, root) for name in names or [WORKSPACE]]
    for one in found:
        if names and one.read("reports/metrics.json") is None:
            raise UserError(
                f"{one.name} has no reports/metrics.json: it is no finished run. Name revisions "
                "or experiments that have one (dvc exp show), or run dvc repro."
            )
    return found


def experiment(name: str, root: Path) -> Experiment:
    """Return what is at a revision, an experiment or in the workspace, finished or not.

    Raises:
        UserError: if there is no such revision.
    """
    if name == WORKSPACE:

        def from_disk(path: str) -> bytes | None:
            file = root / path
            return file.read_bytes() if file.is_file() else None

        return Experiment(name, from_disk)

    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import resolve_rev
    from scmrepo.exceptions import SCMError

    try:
        repository = Repo(str(root))
        commit = resolve_rev(repository.scm, name)
        files = Repo(str(root), rev=commit).dvcfs
    except (DvcException, SCMError) as error:
        raise UserError(
            f"There is no revision or experiment '{name}' ({error}): see git log, dvc exp list."
        ) from None

    def from_revision(path: str) -> bytes | None:
        return bytes(files.read_bytes(path)) if files.isfile(path) else None

    return Experiment(name, from_revision)


def _flat(found: Any, before: str = "") -> dict[str, Any]:
    """Return nested mappings as one, its keys dotted."""
    flat: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat
