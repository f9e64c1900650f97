"""Signals, as a terminal sends them: what a storm or a test starts has to hear them."""

import signal
from typing import Any

USUAL: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_DFL,
}


def hear() -> None:
    """Let this process, and what it starts from now on, be stopped by SIGINT and SIGHUP.

    A shell makes the jobs that it puts into the background ignore the first, ``nohup`` the second,
    and what these start inherits that.
    """
    for number, usual in USUAL.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
