"""What the tests of live compression need beyond tests.apps_hostile: views with options of their own, and a page."""

from __future__ import annotations

import gevent

import geventws

from .apps_hostile import app, sockets

PAGE = "<!doctype html><title>compression</title><link rel=icon href=data:,>"


@app.route("/page")
def page() -> str:
    return PAGE


@sockets.route("/plain")
def without_compression(ws: geventws.WebSocket) -> None:
    ws.accept(deflate=False)
    _echo(ws)


@sockets.route("/takeover")
def with_context_takeover(ws: geventws.WebSocket) -> None:
    ws.accept(deflate_context_takeover=True, deflate_threshold=1)
    _echo(ws)


@sockets.route("/narrow")
def with_a_small_window(ws: geventws.WebSocket) -> None:
    ws.accept(deflate_window_bits=9, deflate_level=9, deflate_memory_level=1)
    _echo(ws)


@sockets.route("/sleeps")
def sleeps(ws: geventws.WebSocket) -> None:
    ws.accept(ping_interval=0.2)  # which finds out soon that a peer is gone who is not read
    while not ws.closed:
        gevent.sleep(0.02)


@sockets.route("/queued")
def tells_how_many_wait(ws: geventws.WebSocket) -> None:
    while not ws.closed and not ws.messages_received:
        gevent.sleep(0.01)
    ws.send(str(ws.messages_received))
    gevent.sleep(0.3)  # for those that should not come
    ws.send(str(ws.messages_received))


def _echo(ws: geventws.WebSocket) -> None:
    for message in ws:
        ws.send(message)
