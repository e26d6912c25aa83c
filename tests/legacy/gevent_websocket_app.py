"""An app written for gevent-websocket, which it imports: the chat of its WebSocketApplication, and bare views."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import geventwebsocket
from gevent.event import Event
from geventwebsocket import Resource, WebSocketApplication, WebSocketError, WebSocketServer
from geventwebsocket.exceptions import FrameTooLargeException, ProtocolError
from geventwebsocket.handler import WebSocketHandler
from geventwebsocket.websocket import WebSocket

decision = Event()


class Chat(WebSocketApplication):  # type: ignore[misc]
    def on_open(self) -> None:
        self.ws.send("welcome")

    def on_message(self, message: str) -> None:
        asked = json.loads(message)
        if "name" in asked:
            self.ws.handler.active_client.name = asked["name"]
        else:
            self.broadcast(asked["text"])

    def broadcast(self, text: str) -> None:
        mine = self.ws.handler.server.clients[self.ws.handler.client_address]
        for client in self.ws.handler.server.clients.values():
            client.ws.send(f"{mine.name}: {text}")

    def on_close(self, reason: object) -> None:
        print(f"chat closed: {reason}", flush=True)

    @classmethod
    def protocol_name(cls) -> str:
        return "chat"


class Echo(WebSocketApplication):  # type: ignore[misc]
    def on_message(self, message: str) -> None:
        assert self.protocol.app is self and self.protocol.handler.websocket is self.ws
        assert self.protocol.server.clients.keys() == self.ws.handler.server.clients.keys()
        self.ws.send(message)


class ByProtocol(WebSocketApplication):  # type: ignore[misc]
    """Has a loop of its own, as that of gevent-websocket was."""

    def handle(self) -> None:
        self.protocol.on_open()
        while (message := self.ws.receive()) is not None:
            self.protocol.on_message(message)
        self.protocol.on_close("over")

    def on_close(self, reason: object) -> None:
        print(f"protocol closed: {reason}", flush=True)


def views(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/where":
        body = f"{geventwebsocket.WebSocketError} {WebSocketServer.__mro__} {WebSocketHandler}".encode()
    else:
        decision.set()
        body = b"page"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def pings(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    ws = environ["wsgi.websocket"]
    assert isinstance(ws, WebSocket)
    ws.send_frame("are you there", ws.OPCODE_PING)
    ws.send_frame("text", WebSocket.OPCODE_TEXT)
    ws.send_frame(b"binary", ws.OPCODE_BINARY)
    assert ws.receive() is None
    try:
        ws.send_frame("", ws.OPCODE_PING)
    except WebSocketError as exc:
        print(f"{'own' if exc.websocket is ws else 'foreign'} ping ended by {exc}", flush=True)
    assert issubclass(FrameTooLargeException, ProtocolError) and issubclass(ProtocolError, WebSocketError)
    return []


def undecided(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    print("undecided", flush=True)
    decision.wait()
    start_response("403 Forbidden", [("Content-Length", "0")])
    return []


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/pings":
        return pings(environ, start_response)
    if environ["PATH_INFO"] == "/undecided":
        return undecided(environ, start_response)
    return resource(environ, start_response)  # type: ignore[no-any-return]


resource = Resource(
    OrderedDict([("^/chat", Chat), ("^/echo", Echo), ("^/by-protocol", ByProtocol), ("^/where|^/$", views)])
)
