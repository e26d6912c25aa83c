"""A chat of rooms, and a broadcaster that no member holds up, for tests with real servers."""

from __future__ import annotations

import os

import gevent
from flask import Flask, request

import geventws
import geventws.rooms
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)
rooms = geventws.Rooms(
    linger=float(os.environ.get("LINGER", "0.2")), lease=float(os.environ.get("LEASE", "10")), history=10_000
)
events: list[str] = []
if said := os.environ.get("SAID_AT_IMPORT"):
    rooms["lobby"].broadcast_json({"from": "import", "text": said})


@rooms.on_join
def joined(room: geventws.rooms.Room, user: str, info: object) -> None:
    events.append(f"{user} joined {room.name}")


@rooms.on_leave
def left(room: geventws.rooms.Room, user: str, info: object) -> None:
    events.append(f"{user} left {room.name}")


@sockets.route("/chat/<name>")
def chat(ws: geventws.WebSocket, name: str) -> None:
    with rooms[name].join(ws, user=request.args.get("user"), since=request.args.get("since")) as me:
        welcome = {"at": me.position, "complete": me.recovered, "here": me.room.users(), "pid": os.getpid()}
        ws.send_json(welcome)
        for text in ws:
            me.room.broadcast_json({"from": me.user, "text": text})


@sockets.route("/hear/<name>")
def hear(ws: geventws.WebSocket, name: str) -> None:
    rooms[name].join(ws)
    ws.receive()


@app.get("/users/<name>")
def users(name: str) -> list[str]:
    return sorted(rooms[name].users())


@app.get("/members/<name>")
def members(name: str) -> list[str]:
    return [member.id for member in rooms[name].members()]


@app.get("/history/<name>")
def history(name: str) -> dict[str, object]:
    history = rooms[name].history(since=request.args.get("since"))
    return {"messages": list(history), "complete": history.complete}


@app.post("/kick/<user>")
def kick(user: str) -> str:
    rooms.disconnect(user, code=4001, reason="logged in elsewhere")
    return "kicked"


@app.post("/say/<name>")
def say(name: str) -> str:
    return rooms[name].broadcast(request.get_data(as_text=True)) or ""


@app.get("/flood/<name>/<int:count>/<int:size>")
def flood(name: str, count: int, size: int) -> str:
    """Broadcast, and return by how many bytes the process has grown."""
    before = resident()
    for _ in range(count):
        rooms[name].broadcast(bytes(size))
        gevent.sleep(0.004)
    return str(resident() - before)


@app.get("/state")
def state() -> dict[str, object]:
    return {"pid": os.getpid(), "stats": rooms.stats(), "events": events, "objects": len(rooms._home.rooms)}


def resident() -> int:
    """Return the bytes of memory that this process has."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
