"""Shown: what help() and dir() show of a class whose views are not all that call it."""

from __future__ import annotations

# What servers, frameworks and rooms call on a WebSocket.
INTERNALS = {
    "abandon",
    "accept_no_more",
    "accept_soon",
    "answer",
    "belongs_to",
    "closed_error",
    "deliver",
    "end_is_told",
    "finish",
    "has_ended",
    "hub",
    "on_hub",
    "options",
    "prepare",
    "refusal",
    "session",
}


class ForViews(type):
    """A class that help() and dir() show as views may use it."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if name not in INTERNALS]
