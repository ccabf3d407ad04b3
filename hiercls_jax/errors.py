"""Errors that a user can mend: programs print them on one line, without a traceback."""

from collections.abc import Sequence


class UserError(ValueError):
    """Base class. The message says what was wrong, the value, what is allowed and what to do."""


def one_line(error: object) -> str:
    """Return an error, or its text, on one line and with control characters escaped.

    Spaces inside a line are kept, because two of them may be the fault.

    >>> one_line("no class 'a\\nb\\x1b[2J'")
    "no class 'a b\\\\x1b[2J'"
    """
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def preview(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are.

    The names are in quotes, because a space may be the fault of one.
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
