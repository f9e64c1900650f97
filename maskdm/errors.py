"""The one kind of error that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: what was wrong, where, what is allowed, what to do.

    The text is one or two plain sentences. Stages print it without a traceback and exit with 1
    (see ``stages/command.py``); every other exception is a defect of the program.
    """
