"""The pytest fixture websocket_connect. It is connect() of geventws.testing, and closes all at the end of the test.

Knows pytest, which finds it by an entry point and loads it in each run. So it imports the rest only when used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import Client


@pytest.fixture
def websocket_connect() -> Iterator[Callable[..., Client]]:
    """geventws.testing.connect, without a with statement: each WebSocket is closed at the end of the test."""
    from .testing import connect

    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(connect(*args, **kwargs))
