"""Shown: help() is for views, and hides nothing else."""

from __future__ import annotations

from geventws.shown import INTERNALS, ForViews
from geventws.websocket import WebSocket


def test_what_is_hidden_is_there() -> None:
    assert type(WebSocket) is ForViews
    assert [name for name in sorted(INTERNALS) if not hasattr(WebSocket, name)] == []


def test_what_views_call_is_shown_and_nothing_that_is_internal() -> None:
    shown = set(dir(WebSocket))
    assert shown >= {"receive", "send", "post", "close", "ping", "close_code", "path"}
    assert not shown & INTERNALS
