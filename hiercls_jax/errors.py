"""The one base of every error that a user can mend: programs print it without a traceback."""

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


def preview(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are.

    In quotes, as a space may be what is wrong with one.
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
