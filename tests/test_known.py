"""Known: what is known of a WebSocket. More of it stands in test_websocket, as views see it."""

from __future__ import annotations

import pytest

from .pairs import Opener

pytestmark = pytest.mark.usefixtures("errors")


def test_request_is_known_before_the_handshake_and_the_connection_is_not(opened: Opener) -> None:
    ws, _ = opened(accept=False)
    assert (ws.path, ws.peer, ws.origin, ws.remote_address) == ("/path", "unix", None, None)
    assert (ws.accepted, ws.has_ended, ws.close_code, ws.close_reason, ws.latency) == (False, False, None, "", None)
    assert (ws.messages_received, ws.bytes_received, ws.bytes_sent) == (0, 0, 0)
    assert not ws.accepted, "asking has completed the handshake"


def test_path_and_address_are_those_that_the_server_gave(opened: Opener) -> None:
    ws, _ = opened(accept=False)
    ws.environ.update(SCRIPT_NAME="/app", PATH_INFO="/caf\xc3\xa9", REMOTE_ADDR="10.0.0.1", REMOTE_PORT="80")
    assert ws.path == "/app/café"
    assert ws.remote_address == ("10.0.0.1", 80)
    assert ws.peer == "10.0.0.1:80"


def test_what_is_known_cannot_be_set(opened: Opener) -> None:
    ws, _ = opened()
    with pytest.raises(AttributeError):
        ws.close_code = 1000  # type: ignore[misc]
