"""python -m geventws: patch the standard library, then run the command.

Patches before anything else is imported, so that the app's code cooperates.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import os
import sys
from collections.abc import Sequence

from .command import check, live, serve

COMMANDS = {"check": check.main, "live": live.main, "serve": serve.main}
UNREAD = 141  # exit status that a shell gives a program which SIGPIPE has ended


def main(words: Sequence[str]) -> int:
    """Run the command that the first word names, or serve the app that it names; return the exit status."""
    if not words or words[0] not in COMMANDS:
        return serve.main(words)
    try:
        status = COMMANDS[words[0]](words[1:])
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # who reads what it writes has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
        return UNREAD
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
