"""What every command line shares."""

import os
import re
import signal
import sys


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
