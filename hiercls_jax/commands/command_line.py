"""What all commands share: flags of their own, errors in one line, and exit statuses."""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from hiercls_jax.errors import UserError, one_line
from hiercls_jax.files import cache_folder
from hiercls_jax.runtime.signals import exit_status


class HelpRequested(Exception):
    """The arguments ask for help; the message is the text to print."""


class CommandFlags:
    """The flags of one command, among them `--help`. It accepts no flags of other modules.

    Args:
      module: the command's `__name__`; `--help` prints its docstring before the flags.
    """

    def __init__(self, module: str) -> None:
        self.values = flags.FlagValues()
        self._module = module
        self.define(flags.DEFINE_bool, "help", False, "Show this help.")

    def define(
        self, kind: Callable[..., flags.FlagHolder], name: str, *args: Any, **kwargs: Any
    ) -> flags.FlagHolder:
        """Define a flag: `define(flags.DEFINE_string, "out", None, "Folder to write.")`."""
        return kind(name, *args, flag_values=self.values, module_name=self._module, **kwargs)

    def define_config(
        self, argv: Sequence[str], compose: Callable[[str], ConfigDict], text: str
    ) -> tuple[flags.FlagHolder, list[str]]:
        """Define `--config` with all its fields as flags, or take the config from the first word.

        `train merge1:quick --config.seed=3` is `train --config=merge1.py:quick --config.seed=3`,
        but needs no file.

        Args:
          argv: the command's name, then its arguments.
          compose: returns the config that a first argument without a dash names.
          text: the help of `--config`.

        Returns:
          The flag, whose value is None if the command line has no config; and `argv` without the
          name, to be parsed.

        Raises:
          flags.Error: if there is no config of that name, or `--config` is given beside it.
        """
        name, words = (argv[1], [argv[0], *argv[2:]]) if _names_config(argv) else (None, [*argv])
        own = {"help_string": text, "flag_values": self.values, "sys_argv": words}
        if name is None:
            return config_flags.DEFINE_config_file("config", None, **own), words
        if any(re.fullmatch("--?config(=.*)?", word, re.DOTALL) for word in words):
            raise flags.Error(f"'{name}' names a config, and so does --config; give one of them")
        try:
            return config_flags.DEFINE_config_dict("config", compose(name), **own), words
        except Exception as error:  # of the name, or of a field that `argv` changes
            raise flags.Error(_explain(error)) from error

    def parse(self, argv: Sequence[str], required: Sequence[str] = ()) -> list[str]:
        """Parse a command line and return its arguments that are no flags.

        Args:
          argv: the command's name, then its arguments.
          required: names of flags that must be given.

        Raises:
          HelpRequested: if `--help` is among the arguments.
          flags.Error: if a flag, or the config that one names, is wrong; the message says why.
        """
        if "--help" in argv:
            doc = sys.modules[self._module].__doc__
            raise HelpRequested(f"{doc}\n{self.values.module_help(self._module)}")
        try:
            _, *words = self.values(list(argv))
            if "config" in self.values and self.values.config is not None:
                self.values.config.to_dict()  # a config file is opened at its first use
        except BrokenPipeError:
            raise
        except Exception as error:  # a config file is a program, which may raise anything
            raise flags.Error(_explain(error)) from error
        missing = [f"--{name}" for name in required if self.values[name].value is None]
        if missing:
            raise flags.Error(
                f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
            )
        return words


def run_command(work: Callable[[], int | None], see: str, stopped: str) -> int:
    """Do a command's work and return its exit status. An error is one line on stderr.

    Args:
      work: parses the flags and does everything else; returns its exit status, None for 0.
      see: ends the line about a wrong command line: `"; see python -m hiercls_jax adapt --help"`.
      stopped: the line after Ctrl-C. If the KeyboardInterrupt has a message, that follows the word
        "stopped" instead.

    Returns:
      What `work` returned; 0 after help; 1 after a UserError or an OSError; 2 after a flags.Error,
      which stands for a wrong command line; 130 after Ctrl-C.

    Raises:
      BrokenPipeError: if stdout's reader is gone; the program then ends without a word.
    """
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file that it reads or writes
    try:
        return work() or 0
    except HelpRequested as requested:
        print(requested)
        return 0
    except flags.Error as error:
        print(f"error: {one_line(error)}{see}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # it is an OSError too
        raise
    except (UserError, OSError) as error:
        print(f"error: {one_line(_describe(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"stopped {stop}" if stop.args else stopped, file=sys.stderr)
        return exit_status(signal.SIGINT)


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs in the cache folder, for the next process that needs them."""
    import jax  # here, as it takes a second

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))


def reader_gone() -> int:
    """Return the exit status for when stdout's reader, such as `head`, has seen enough.

    What is still to be written goes nowhere; otherwise Python would complain when it flushes
    stdout at its exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_status(signal.SIGPIPE)


def _explain(error: Exception) -> str:
    """Return the part of an error in flags or in a config file that helps to mend it."""
    text = str(error)
    if "Traceback" in text:  # config_flags quotes the whole traceback of a config file
        return re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
    misspelt = re.search(r'Did you mean \\?"(.+?)\\?" instead of \\?"(.+?)\\?"', text)
    if misspelt:
        return f"the config has no field '{misspelt[2]}'; did you mean '{misspelt[1]}'?"
    unknown = re.fullmatch(r"[\"']*(\w+)[\"']*", text)  # a KeyError says no more
    if unknown:
        return f"the config has no field '{unknown[1]}'"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if isinstance(error, OSError) else " ".join(lines)


def _names_config(argv: Sequence[str]) -> bool:
    return len(argv) > 1 and not argv[1].startswith("-")


def _describe(error: UserError | OSError) -> str:
    """Return an error's text; the system's own, such as a full disk, without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
