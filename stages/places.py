"""Where training states are: the one place that is no output of the pipeline."""

import os
from pathlib import Path


def states_root() -> Path:
    """Return the folder of all training states.

    It is MASKDM_STATES, or ``states`` in the repository that DVC names, which it does even in the
    temporary folder of an experiment.
    """
    return Path(os.environ.get("DVC_ROOT") or ".") / (os.environ.get("MASKDM_STATES") or "states")
