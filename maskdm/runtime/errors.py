"""The one kind of error that is meant for the person at the keyboard."""

# git compares sizes and whole seconds: a new value of equal length, written by DVC in the second in
# which git had looked, it takes for the old one, and leaves it. What is gone it always brings back.
UNDO = (
    "If this came from -S, 'rm params.yaml && git checkout params.yaml' undoes it, and every other "
    "change to params.yaml that is not committed."
)


LONGEST = 200  # characters of a value, or of a file's name, in a message


class UserError(Exception):
    """Something the user can mend: what was wrong, where, what is allowed, what to do.

    The text is one or two plain sentences. Stages print it without a traceback and exit with 1
    (see ``maskdm/runtime/command.py``); every other exception is a defect of the program.
    """


class StoppedError(UserError):
    """A run that was asked to stop, and did so in good order.

    Attributes:
        signal: the number of the signal that asked.
    """

    def __init__(self, text: str, signal: int) -> None:
        super().__init__(text)
        self.signal = signal


def reason(error: BaseException) -> str:
    """Return what an error says in one line, or what it is called if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(text: str) -> str:
    """Return a text, or the beginning of a long one, as a message can show it."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
