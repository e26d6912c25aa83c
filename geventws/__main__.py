"""python -m geventws: patch the standard library, then run the command.

Patches before anything else is imported, so that the app's code cooperates.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import sys

from .command import serve

if __name__ == "__main__":
    sys.exit(serve.main(sys.argv[1:]))
