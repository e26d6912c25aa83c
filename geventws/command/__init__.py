"""The commands of python -m geventws, a module each, and how each of them tells a mistake.

Knows none of them.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from typing import NoReturn


class AppError(Exception):
    """There is no app to serve; the message says what was tried and why it failed.

    The cause, if there is one, is an exception of the app's own code, with its traceback from the app's frames on.
    """


MISTAKES = (AppError, OSError, TypeError, ValueError)


def stopping_signals() -> list[int]:
    """Return the signals that end a command; SIGHUP, of a terminal that is gone, only where nohup has not run it."""
    found: list[int] = [signal.SIGTERM, signal.SIGINT]
    hangup = getattr(signal, "SIGHUP", None)  # which Windows has not
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        found.append(hangup)
    return found


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, and where to look."""

    def error(self, message: str) -> NoReturn:
        """End the program with status 2."""
        self.exit(2, f"geventws: {message}; see {self.prog} --help\n")


def complain(mistake: Exception, then: str = "") -> None:
    """Say in one line what is wrong, behind the traceback where the app's own code has failed."""
    if isinstance(mistake, AppError) and mistake.__cause__ is not None:
        traceback.print_exception(mistake.__cause__)
    print(f"geventws: {mistake}{then}", file=sys.stderr)
