"""SIGINT, as a terminal sends it: what a storm starts has to hear it."""

import signal


def hear() -> None:
    """Let this process, and what it starts from now on, be stopped by SIGINT.

    A shell makes the jobs that it puts into the background ignore it, and so what these start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
