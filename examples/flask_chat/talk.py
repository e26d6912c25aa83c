"""Rooms, what is said in them, and the files that are sent there."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import live  # live
from flask import Blueprint, Response, redirect, render_template, request, url_for
from flask_login import current_user, login_required
from models import MAX_ROOM, MAX_TEXT, File, Refused, Room, db, mark_read, unread, write
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

pages = Blueprint("talk", __name__)


@pages.get("/rooms/<int:number>")
@login_required
def room(number: int, error: str = "", text: str = "") -> str:
    here = db.get_or_404(Room, number)
    since = None if "before" in request.args else live.position(number)  # live
    messages = here.messages(before=request.args.get("before", type=int))
    mark_read(current_user.id, number)
    return render_template(
        "room.html",
        room=here,
        rooms=db.session.scalars(select(Room).order_by(Room.id)).all(),
        unread=unread(current_user.id),
        messages=messages,
        earlier=bool(messages and here.messages(before=messages[0].id)),
        since=since,  # live
        key=secrets.token_hex(16),
        max_text=MAX_TEXT,
        max_room=MAX_ROOM,
        error=error,
        text=text,
    )


@pages.post("/rooms/<int:number>")
@login_required
def say(number: int) -> Any:
    db.get_or_404(Room, number)
    text, key = request.form.get("text", ""), request.form.get("key", "")
    try:
        message = write(number, current_user.id, text, key, sent_files())
    except Refused as error:
        return room(number, str(error), text), 400
    live.show(message)  # live
    return redirect(url_for(".room", number=number))


def sent_files() -> Iterator[tuple[str, bytes]]:
    """Give name and bytes of each file of a form."""
    for file in request.files.getlist("files"):
        with file.stream as stream:
            if file.filename:
                yield file.filename, stream.read()


@pages.post("/rooms")
@login_required
def add_room() -> Any:
    name = " ".join(request.form.get("name", "").split())
    if not 1 <= len(name) <= MAX_ROOM:
        return redirect(url_for("people.entrance"))
    try:
        db.session.add(Room(name=name))
        db.session.commit()
    except IntegrityError:  # it is there already
        db.session.rollback()
    found = db.session.scalars(select(Room).where(Room.name == name)).one()
    return redirect(url_for(".room", number=found.id))


@pages.get("/files/<id>")
@login_required
def file(id: str) -> Response:
    found = db.get_or_404(File, id)
    response = Response(found.data, content_type=found.type)
    response.headers["X-Content-Type-Options"] = "nosniff"
    if not found.type.startswith("image/"):
        response.headers.set("Content-Disposition", "attachment", filename=found.name)
    response.cache_control.private = True
    response.cache_control.max_age = 86_400  # seconds
    return response


def announce(text: str) -> None:
    """Say something in every room, in nobody's name. Raises Refused."""
    for number in db.session.scalars(select(Room.id)).all():
        message = write(number, None, text, secrets.token_hex(16))
        live.show(message)  # live
