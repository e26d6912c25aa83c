"""WebSocketServer and its handler, in this process: what pywsgi does not do by itself."""

from __future__ import annotations

import pytest

from geventws import WebSocketHandler, WebSocketServer


def test_an_unknown_argument_of_the_server_is_not_taken_for_one_of_tls() -> None:
    with pytest.raises(TypeError, match="no argument option; those of geventws go into options="):
        WebSocketServer(("127.0.0.1", 0), None, option={"ping_interval": 10})


@pytest.mark.parametrize("hook", ["run_websocket", "upgrade_connection", "upgrade_websocket"])
def test_a_handler_whose_check_would_never_run_is_refused(hook: str) -> None:
    with pytest.raises(TypeError, match=f"never calls Guarded.{hook}: refuse in the app"):
        type("Guarded", (WebSocketHandler,), {hook: lambda self: None})
