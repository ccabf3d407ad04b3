"""The one base of every error that a user can mend: programs print it without a traceback."""


class UserError(ValueError):
    """What was wrong, the value or shape, what is allowed, and what to do."""
