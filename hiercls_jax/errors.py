"""The one base of every error that a user can mend: programs print it without a traceback."""

import os
import re
import signal
import sys
from collections.abc import Sequence


class UserError(ValueError):
    """What was wrong, the value or shape, what is allowed, and what to do."""


def one_line(error) -> str:
    """Return an error, or its text, on one line and without what a terminal would obey.

    Spaces inside a line are kept, as two of them may be what is wrong.

    >>> one_line("no class 'a\\nb\\x1b[2J'")
    "no class 'a b\\\\x1b[2J'"
    """
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are.

    In quotes, as a space may be what is wrong with one.
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def reader_gone() -> int:
    """Return the exit status where whoever read the output, such as `head`, has seen enough.

    What is still to be written goes nowhere, or Python would complain when it flushes at its exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def explain(error: Exception) -> str:
    """Return what a person needs to know of an error in the flags or in a config file."""
    text = str(error)
    if "Traceback" in text:  # config_flags quotes the whole traceback of a config file
        return re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
    misspelt = re.search(r'Did you mean \\?"(.+?)\\?" instead of \\?"(.+?)\\?"', text)
    if misspelt:
        return f"the config has no field '{misspelt[2]}'; did you mean '{misspelt[1]}'?"
    unknown = re.fullmatch(r"[\"']*(\w+)[\"']*", text)  # all that a KeyError says
    if unknown:
        return f"the config has no field '{unknown[1]}'"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if isinstance(error, OSError) else " ".join(lines)
