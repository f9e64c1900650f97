"""Live trackers: the curves and previews of a phase, shown by other tools while it trains.

A tracker gets what the curves get, step by step, and nothing that it does reaches the training. It
first gets the history that a checkpoint restored, so that a run which goes on shows every step and
none twice. A tracker that fails is left behind with one line.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from maskdm.runtime.environment import LIVE, repository
from maskdm.runtime.errors import reason
from maskdm.training.curves import TRAINING, Curves, picture
from maskdm.training.loop import WEIGHTS

if TYPE_CHECKING:
    import numpy as np

    from maskdm.backbones.model_folder import ModelConfig
    from maskdm.training.phases import PhaseParams
    from maskdm.training.state import State

SECONDS = 5  # at least between two updates of DVCLive's report and of DVC Studio

Values = Mapping[str, float]
About = Mapping[str, Any]


class Tracker(Protocol):
    """A tool that shows a run."""

    def log(self, step: int, values: Values, preview: np.ndarray | None) -> None:
        """Take what belongs to a step, each of them once and in their order."""

    def close(self) -> None:
        """Take note that nothing more comes."""


class DVCLive:
    """DVCLive: files and a report in live/, which git ignores, and DVC Studio if it is set up.

    It saves no experiment and writes no dvc.yaml: the stage is part of DVC's pipeline already.
    """

    def __init__(self, name: str, about: About) -> None:
        live = importlib.import_module("dvclive").Live
        folder = str(_folder() / name)
        self.live = live(folder, report="html", save_dvc_exp=False, dvcyaml=None)
        self.updated = 0.0

    def log(self, step: int, values: Values, preview: np.ndarray | None) -> None:
        """Append to its files; the report follows within seconds."""
        self.live.step = step
        for name, value in values.items():
            self.live.log_metric(name, value)
        if preview is not None:
            self.live.log_image(f"previews/{step}.png", picture(preview))
        if time.monotonic() - self.updated > SECONDS:
            self.live.next_step()
            self.updated = time.monotonic()

    def close(self) -> None:
        """Write the report a last time."""
        self.live.end()


class WandB:
    """A run of Weights & Biases; its own variables (WANDB_…) apply."""

    def __init__(self, name: str, about: About) -> None:
        self.wandb = importlib.import_module("wandb")
        _folder().mkdir(exist_ok=True)
        project = os.environ.get("WANDB_PROJECT") or "maskdm"
        self.run = self.wandb.init(
            project=project, name=name, config=dict(about), dir=str(_folder())
        )

    def log(self, step: int, values: Values, preview: np.ndarray | None) -> None:
        """Log a step."""
        shown = {} if preview is None else {"previews": self.wandb.Image(picture(preview))}
        self.run.log({**values, **shown}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow:
    """A run of MLflow, where its own variables (MLFLOW_…) say."""

    def __init__(self, name: str, about: About) -> None:
        self.mlflow = importlib.import_module("mlflow")
        self.mlflow.start_run(run_name=name)
        self.mlflow.log_params(dict(about))

    def log(self, step: int, values: Values, preview: np.ndarray | None) -> None:
        """Log a step."""
        self.mlflow.log_metrics(dict(values), step=step)
        if preview is not None:
            self.mlflow.log_image(picture(preview), key="previews", step=step)

    def close(self) -> None:
        """End the run."""
        self.mlflow.end_run()


TRACKERS: dict[str, Callable[[str, About], Tracker]] = {
    "dvclive": DVCLive,
    "wandb": WandB,
    "mlflow": MLflow,
}


class Live:
    """Shows a phase in the tracker that MASKDM_LIVE asks for; nowhere if it asks for none.

    Args:
        phase: ``"pretrain"`` or ``"finetune"``.
        curves: whose rows are shown.
        config: of the model.
        params: the phase's parameters.
        is_main: whether this process is the one that writes.
    """

    def __init__(
        self, phase: str, curves: Curves, config: ModelConfig, params: PhaseParams, is_main: bool
    ) -> None:
        self.curves, self.log_every = curves, params.log_every
        self.shown = -1  # all up to this step is
        self.asked = LIVE.get() if is_main else None
        self.tracker: Tracker | None = None
        if self.asked:
            experiment = os.environ.get("DVC_EXP_NAME") or "workspace"  # as DVC calls it
            sections = {"model": config.model, "diffusion": config.diffusion, phase: params}
            about = {
                f"{name}.{key}": value
                for name, section in sections.items()
                for key, value in section.model_dump(mode="json").items()
            }
            with self._or_without():
                self.tracker = TRACKERS[self.asked](f"{experiment}/{phase}", about)

    def show(self, state: State) -> None:
        """Show what is new; to be called between steps."""
        if self.tracker is None:
            return
        step, history = state.step, state.history
        last = step == self.curves.schedule.steps
        looked_at = step in history.validations or step in history.drawn
        if not (self.shown < 0 or step % self.log_every == 0 or looked_at or last):
            return
        values: dict[int, dict[str, float]] = defaultdict(dict)
        for row in self.curves.training(history, self.log_every, max(self.shown, 0)):
            # A run that goes on may be between two rows: the next will cover these steps, too.
            if row["step"] % self.log_every == 0 or last:
                values[int(row["step"])] |= _named("training", row, TRAINING[1:])
        for row in self.curves.validation(history, self.shown):
            values[int(row["step"])] |= _named("validation", row, WEIGHTS)
        previews = {at: images for at, images in history.drawn.items() if at > self.shown}
        with self._or_without():
            for at in sorted(values.keys() | previews.keys()):
                self.tracker.log(at, values[at], previews.get(at))
        self.shown = step

    def close(self) -> None:
        """End what is shown."""
        if self.tracker is not None:
            with self._or_without():
                self.tracker.close()

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        """Go on without the tracker if it fails."""
        try:
            yield
        except Exception as error:  # each fails with errors of its own
            line = f"MASKDM_LIVE={self.asked} does not work here, going on without: {reason(error)}"
            tqdm.write(line, file=sys.stderr)
            self.tracker = None


def _named(curve: str, row: Values, columns: tuple[str, ...]) -> dict[str, float]:
    """Return a row's values in some columns under the names that trackers show."""
    return {f"{curve}/{column}": row[column] for column in columns if isfinite(row[column])}


def _folder() -> Path:
    """Return where trackers write."""
    return repository() / "live"
