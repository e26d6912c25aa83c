"""The commands of python -m geventws, a module each, and how each of them tells a mistake.

Knows none of them.
"""

from __future__ import annotations

import sys
import traceback


class AppError(Exception):
    """There is no app to serve; the message says what was tried and why it failed.

    The cause, if there is one, is an exception of the app's own code, with its traceback from the app's frames on.
    """


MISTAKES = (AppError, OSError, TypeError, ValueError)


def complain(mistake: Exception, then: str = "") -> None:
    """Say in one line what is wrong, behind the traceback where the app's own code has failed."""
    if isinstance(mistake, AppError) and mistake.__cause__ is not None:
        traceback.print_exception(mistake.__cause__)
    print(f"geventws: {mistake}{then}", file=sys.stderr)
