"""Stop signals are noted, so that the step under way ends and is saved.

They are SIGTERM, Ctrl-C and, where there is one, the SIGHUP of a terminal that closes.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

NOTED = [signal.SIGTERM, signal.SIGINT]
HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none


class StopSignals:
    """Notes signals that ask a run to stop.

    Args:
        announce: whether to say so on stderr.

    Attributes:
        received: the number of the last one, None before the first.
    """

    def __init__(self, announce: bool) -> None:
        self.announce = announce
        self.received: int | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals while the context lasts; a second Ctrl-C interrupts as usual.

        A second SIGTERM does not: launchers and queues may both send one.
        """
        usual = {int(number): signal.getsignal(number) for number in NOTED}
        # Ignored under nohup, and then it is to stay so.
        if HANG_UP is not None and signal.getsignal(HANG_UP) != signal.SIG_IGN:
            usual[HANG_UP] = signal.getsignal(HANG_UP)

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT:
                signal.signal(number, usual[number])
            if self.received is None and self.announce:
                with suppress(OSError):  # the terminal may have gone
                    # Not print: the signal may have come in the middle of one.
                    os.write(2, b"\nStopping after this step, saving first\n")
            self.received = number

        for number in usual:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)
