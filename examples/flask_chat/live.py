"""The live half: what pages hear while they are open, and say without a reload.

One WebSocket a page, and one for each file on its way. GEVENTWS_BUS=redis://… joins the rooms of several workers.
"""

from __future__ import annotations

import json
from typing import Any

from flask import Blueprint, abort, current_app, render_template, request, session
from flask_login import current_user, login_required
from models import Message, Refused, Room, check_size, db, mark_read, type_of, unread, write

from geventws import BusUnavailable, Rooms, WebSocket
from geventws.flask import Sockets

ROOM = "room "  # with its number, the name of one; the others are `everyone`, and one for each login
CHUNK = 64 << 10  # bytes that a page sends of a file at a time

pages = Blueprint("live", __name__)
sockets = Sockets(pages, before_wait=[db.session.remove], client=True)
rooms = Rooms()
everyone = rooms["everyone"]


def topic(number: int) -> Any:
    """Return the live room of a room."""
    return rooms[f"{ROOM}{number}"]


def position(number: int) -> str:
    """Return how far a room has come: a page that goes on from here misses nothing."""
    position: str = topic(number).history(limit=0).position
    return position


@sockets.route("/rooms/<int:number>/live", max_message_size=16_384)
def listen(ws: WebSocket, number: int) -> None:
    if not current_user.is_authenticated:
        abort(401)
    db.get_or_404(Room, number)
    me, name, counts, room = current_user.id, current_user.name, unread(current_user.id), topic(number)
    with (
        everyone.join(ws, name),
        rooms[session["login"]].join(ws),
        room.join(ws, name, info=me % 8, since=request.args.get("since")) as member,
    ):
        here = {present.user: present.info for present in room.members()}
        welcome = {"at": member.position, "recovered": member.recovered, "here": here, "unread": counts}
        ws.send_json({"type": "welcome", **welcome})
        try:
            for text in ws:
                match json.loads(text):
                    case {"say": str(text), "key": str(key)}:
                        say(ws, number, me, text, key)
                    case {"typing": True}:
                        room.broadcast_json({"type": "typing", "who": name}, exclude=[ws], keep=False)
                    case {"read": True}:
                        mark_read(me, number)
                    case _:
                        raise ValueError("not a message of this chat")
        except (ValueError, RecursionError):
            ws.close(1008, "not a message of this chat")


def say(ws: WebSocket, number: int, author: int, text: str, key: str) -> None:
    try:
        show(write(number, author, text, key))
    except Refused as error:
        ws.send_json({"type": "refused", "key": key, "text": str(error)})


def show(message: Message) -> None:
    """Have all pages know of a message. They show it once, however often they hear of it.

    Where Redis is away for too long, those that are open see it when they are loaded again.
    """
    html = render_template("message.html", message=message)
    author = message.author.name if message.author else ""
    elsewhere = {"type": "elsewhere", "room": message.room_id, "number": message.id, "who": author}
    try:
        topic(message.room_id).broadcast_json({"type": "said", "html": html})
        everyone.broadcast_json(elsewhere, keep=False)
    except BusUnavailable as error:
        current_app.logger.warning("message %s is kept, and not told: %s", message.id, error)


@pages.get("/rooms/<int:number>/after/<int:last>")
@login_required
def missed(number: int, last: int) -> str:
    """Return what was said behind a message, for a page whose gap the live room cannot fill."""
    messages = db.get_or_404(Room, number).messages(after=last)
    return "".join(render_template("message.html", message=message) for message in messages)


@rooms.on_join
def joined(room: Any, user: str, info: Any) -> None:
    if room.name.startswith(ROOM):
        room.local.broadcast_json({"type": "joined", "who": user, "hue": info})


@rooms.on_leave
def left(room: Any, user: str, info: Any) -> None:
    if room.name.startswith(ROOM):
        room.local.broadcast_json({"type": "left", "who": user})


@sockets.route("/rooms/<int:number>/upload", max_message_size=CHUNK)
def upload(ws: WebSocket, number: int) -> None:
    """Take one file: {name, size, key}, then its bytes. To cancel is to close."""
    if not current_user.is_authenticated:
        abort(401)
    db.get_or_404(Room, number)
    author = current_user.id
    with rooms[session["login"]].join(ws, current_user.name):  # ends with the login
        try:
            match ws.receive_json():
                case {"name": str(name), "size": int(size), "key": str(key)}:
                    data = receive(ws, size)
                case _:
                    raise ValueError("not the beginning of a file")
            if data is not None:
                show(write(number, author, "", key, [(name, data)]))
                ws.send_json({"done": True})
        except Refused as error:
            ws.send_json({"refused": str(error)})
        except ValueError:
            ws.close(1008, "not a file")


def receive(ws: WebSocket, size: int) -> bytes | None:
    """Return the bytes of a file, None if the page has cancelled. Raises Refused at the first that are wrong."""
    check_size(size)
    data = bytearray()
    while len(data) < size:
        match ws.receive():
            case None:
                return None
            case bytes(piece):
                data += piece
            case _:
                raise ValueError("text among the bytes of a file")
        if len(data) > size:
            raise ValueError("more bytes than the file was said to have")
        type_of(data)
        ws.send_json({"got": len(data)})
    return bytes(data)
