"""An app that takes a second to import."""

from __future__ import annotations

import time

print("import begins", flush=True)
time.sleep(1)

from tests.apps import app as app  # noqa: E402
