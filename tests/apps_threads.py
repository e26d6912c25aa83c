"""Views that leave their WebSocket to an OS thread. Run as a program it serves itself, and nothing is patched."""

from __future__ import annotations

import gc
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import gevent
import gevent.hub
import gevent.threadpool
from flask import jsonify
from gevent import monkey

import geventws
from geventws.gateway import gateways
from tests.apps import app, sockets

start_new_thread, sleep = (
    monkey.get_original("_thread", "start_new_thread"),
    monkey.get_original("time", "sleep"),
)
executor = gevent.threadpool.ThreadPoolExecutor(20)
plain_executor = ThreadPoolExecutor(20)  # of OS threads only where nothing is patched
running: set[str] = set()  # what OS threads do now
members: set[geventws.WebSocket] = set()


def in_thread(kind: str, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run function in an OS thread of this kind; return what it does, while other greenlets run."""
    outcome: list[Any] = []

    def run() -> None:
        running.add(name)
        try:
            outcome.append(function(*arguments))
        except BaseException:
            outcome.append(traceback.format_exc())
        finally:
            running.discard(name)

    if kind == "thread":
        start_new_thread(run, ())
    elif kind == "pool":
        gevent.get_hub().threadpool.spawn(run)
    elif kind == "hub":  # a greenlet of another hub
        start_new_thread(lambda: (gevent.spawn(run).join(), gevent.get_hub().destroy()), ())
    elif kind == "callback":  # of another hub
        start_new_thread(call_back, (run,))
    else:
        (executor if kind == "executor" else plain_executor).submit(run)
    while not outcome:
        gevent.sleep(0.005)
    return outcome[0]


def call_back(function: Callable[[], None]) -> None:
    """Have function run as a callback of this thread's own hub."""
    hub = gevent.get_hub()
    hub.loop.run_callback(function)
    gevent.sleep(0)  # behind it
    hub.destroy()


@sockets.route("/<kind>/echo")
def thread_echo(ws: geventws.WebSocket, kind: str) -> None:
    def talk() -> str:
        for message in ws:
            ws.send(message)
        return f"ended with {ws.close_code}"

    print(in_thread(kind, "echo", talk), flush=True)


@sockets.route("/<kind>/calls")
def thread_calls(ws: geventws.WebSocket, kind: str) -> None:
    def talk() -> dict[str, Any]:
        ws.accept(subprotocols=["v2"])
        found: dict[str, Any] = {"path": ws.path, "closed": ws.closed, "subprotocol": ws.subprotocol}
        try:
            ws.receive(timeout=0.01)
        except TimeoutError:
            found["timeout"] = traceback.format_exc()
        ws.send("ready")
        found["latency"] = ws.ping(20) > 0
        ws.send_json(ws.receive_json())
        try:
            ws.send(1)  # type: ignore[arg-type]
        except TypeError:
            found["type"] = traceback.format_exc()
        return found

    ws.send_json(in_thread(kind, "calls", talk))
    in_thread(kind, "close", ws.close, 4001, "bye")


@sockets.route("/<kind>/frame")
def thread_frame(ws: geventws.WebSocket, kind: str) -> None:
    legacy: Any = ws  # with compat
    in_thread(kind, "frame", legacy.send_frame, b"are you there", legacy.OPCODE_PING)
    ws.receive()


@sockets.route("/<kind>/large/<int:count>")
def thread_large(ws: geventws.WebSocket, kind: str, count: int) -> None:
    def talk() -> None:
        for number in range(count):
            ws.send(bytes([number]) * (1 << 20))

    in_thread(kind, "large", talk)


@sockets.route("/<kind>/post")
def thread_post(ws: geventws.WebSocket, kind: str) -> None:
    """A thread posts until too much waits for the client, which reads nothing; then the view closes, and it posts."""

    def talk() -> list[bool]:
        posted = [ws.post(geventws.Prepared("hello"))]
        while posted[-1] and len(posted) < 1000:
            posted.append(ws.post(bytes(1 << 18)))
        ws.close()
        return [*posted, ws.post("late")]

    ws.accept(max_outbox=1 << 18)
    posted = in_thread(kind, "post", talk)
    print(f"posted {ws.path} {posted.count(True)} of {len(posted)}", flush=True)


@sockets.route("/<kind>/flood")
def thread_flood(ws: geventws.WebSocket, kind: str) -> None:
    """A thread sends and sends; the view ends at the first message, while it does."""

    def talk() -> None:
        running.add("flood")
        try:
            while True:
                ws.send(b"x" * 65536)
        except geventws.ConnectionClosed as exc:
            print(f"flood ends with {exc.code}", flush=True)
        finally:
            running.discard("flood")

    gevent.spawn(in_thread, kind, "flood's view", talk)
    ws.receive()


@sockets.route("/<kind>/waits")
def thread_waits(ws: geventws.WebSocket, kind: str) -> None:
    def talk() -> None:
        ws.send("ready")
        print(f"thread got {ws.receive()!r}, {ws.close_code}", flush=True)  # also where the view was killed

    in_thread(kind, "waits", talk)


@app.route("/kill-views")
def kill_views() -> str:
    for gateway in gateways:
        for view in list(gateway.live.values()):
            gevent.kill(view)
    return ""


@sockets.route("/member")
def member(ws: geventws.WebSocket) -> None:
    members.add(ws)
    try:
        for message in ws:
            ws.send(message)
    finally:
        members.discard(ws)


@app.route("/<kind>/broadcast/<int:threads>/<int:count>")
def broadcast(kind: str, threads: int, count: int) -> Any:
    """Have threads send so many messages each to all members, whoever comes and goes."""

    def talk(number: int) -> None:
        for line in range(count):
            for ws in list(members):
                with suppress(geventws.ConnectionClosed):
                    ws.send(f"{number} {line}")

    jobs = [gevent.spawn(in_thread, kind, f"talker {number}", talk, number) for number in range(threads)]
    gevent.joinall(jobs)
    return jsonify([job.value for job in jobs])


@app.route("/left")
def left() -> Any:
    """Tell what threads do now, and what is left of hubs and greenlets."""
    gc.collect()
    kinds = [type(item) for item in gc.get_objects()]
    greenlets = sum(issubclass(kind, gevent.hub.RawGreenlet) for kind in kinds)
    return jsonify(running=sorted(running), greenlets=greenlets)


def main() -> None:
    """Serve until SIGTERM."""
    server = geventws.WebSocketServer(("127.0.0.1", 0), app, log=None, options={"close_timeout": 1.0})
    gevent.signal_handler(signal.SIGTERM, server.stop)
    server.start()
    print(f"script serves itself on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
    print("serve_forever() has returned", flush=True)


if __name__ == "__main__":
    main()
