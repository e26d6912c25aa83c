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
rooms = geventws.Rooms(linger=0.2)
events: list[str] = []


@rooms.on_join
def joined(room: geventws.rooms.Room, user: str, info: object) -> None:
    events.append(f"{user} joined {room.name}")


@rooms.on_leave
def left(room: geventws.rooms.Room, user: str, info: object) -> None:
    events.append(f"{user} left {room.name}")


@sockets.route("/chat/<name>")
def chat(ws: geventws.WebSocket, name: str) -> None:
    with rooms[name].join(ws, user=request.args.get("user"), since=request.args.get("since")) as me:
        ws.send_json({"at": me.position, "complete": me.recovered, "here": me.room.users()})
        for text in ws:
            me.room.broadcast_json({"from": me.user, "text": text})


@sockets.route("/hear/<name>")
def hear(ws: geventws.WebSocket, name: str) -> None:
    rooms[name].join(ws)
    ws.receive()


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
    return {"stats": rooms.stats(), "events": events, "objects": len(rooms._home.rooms)}


def resident() -> int:
    """Return the bytes of memory that this process has."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
