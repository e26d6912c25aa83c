"""A chat room for everyone who opens the page.

Run it as one worker process, whose memory holds the room: gunicorn -k geventws.Worker app:app
"""

import json
import time
import unicodedata
from collections import deque
from hashlib import sha256
from typing import Any, NamedTuple

from flask import Flask, render_template

from geventws import Prepared, WebSocket
from geventws.flask import Sockets

MAX_NAME, MAX_TEXT = 24, 1000  # characters

app = Flask(__name__)
sockets = Sockets(app)
members: dict[str, "Member"] = {}  # by name, case folded
history: deque[dict[str, Any]] = deque(maxlen=50)


class Refused(Exception):
    """A person's mistake, answered in words; a program's mistake closes the connection."""


class Member(NamedTuple):
    """A person in the room."""

    ws: WebSocket
    who: dict[str, str]

    def post(self, event: str | Prepared) -> None:
        """Send an event without waiting: a slow reader holds up nobody else."""
        if not self.ws.post(event):
            self.ws.close(1013, "reading too slowly")


@app.get("/")
def page() -> str:
    return render_template("chat.html", max_name=MAX_NAME, max_text=MAX_TEXT)


@sockets.route("/chat")
def chat(ws: WebSocket) -> None:
    ws.accept(max_message_size=16_384)  # bytes: MAX_TEXT characters of any kind, and more
    member = None
    try:
        for message in ws:
            event = json.loads(message)
            try:
                match event:
                    case {"join": str(name), "key": str(key)} if not member:
                        member = join(ws, name, key)
                    case {"say": str(text), "id": str(id)} if member:
                        say(member, text, id)
                    case {"ping": True} if member:
                        member.post('{"type": "pong"}')
                    case _:
                        raise ValueError("not a message of this chat")
            except Refused as error:
                ws.send_json({"type": "error", "text": str(error), "id": event.get("id")})
    except (ValueError, RecursionError):
        ws.close(1008, "not a message of this chat")
    finally:
        if member:
            leave(member)


def join(ws: WebSocket, name: str, key: str) -> Member:
    name = " ".join(unicodedata.normalize("NFKC", name).split())
    if not name.isprintable() or not 1 <= len(name) <= MAX_NAME:
        raise Refused(f"A name has 1 to {MAX_NAME} visible characters.")
    # The key is the browser's secret: its hash tells who returns from someone else of the same name.
    who = {"name": name, "id": sha256(f"{key} {name}".encode()).hexdigest()[:16]}
    old = members.get(name.casefold())
    if old and old.who["id"] != who["id"]:
        raise Refused(f"{old.who['name']} is here already. Please choose another name.")
    if not old:
        broadcast({"type": "joined", "who": who})
    members[name.casefold()] = member = Member(ws, who)
    everyone = [other.who for other in members.values()]
    member.post(json.dumps({"type": "welcome", "you": who, "members": everyone, "history": list(history)}))
    if old:
        old.ws.close(4000, "You are in the room from another window now.")
    return member


def say(member: Member, text: str, id: str) -> None:
    if not 1 <= len(text.strip()) <= MAX_TEXT:
        raise Refused(f"A message has 1 to {MAX_TEXT} characters.")
    history.append({"type": "said", "id": id, "who": member.who, "text": text.strip(), "time": time.time()})
    broadcast(history[-1])


def leave(member: Member) -> None:
    name = member.who["name"].casefold()
    if members.get(name) is member:  # not when another window took the place over
        del members[name]
        broadcast({"type": "left", "who": member.who})


def broadcast(event: dict[str, Any]) -> None:
    encoded = Prepared(json.dumps(event))
    for member in list(members.values()):
        member.post(encoded)
