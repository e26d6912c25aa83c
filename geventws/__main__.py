"""python -m geventws: patch the standard library, then run the command.

Patches before anything else is imported, so that the app's code cooperates.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import sys
from collections.abc import Sequence

from .command import check, live, serve

COMMANDS = {"check": check.main, "live": live.main, "serve": serve.main}


def main(words: Sequence[str]) -> int:
    """Run the command that the first word names, or serve the app that it names; return the exit status."""
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    return serve.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
