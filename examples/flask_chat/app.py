"""A chat: people log in, and talk in rooms.

Its data are in the directory `instance`, or in that of the variable CHAT_INSTANCE.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import Any

import click
import live  # live
import people
import talk
from flask import Flask, Response
from flask.cli import with_appcontext
from models import MAX_FILE, Refused, Room, User, db
from sqlalchemy import select
from werkzeug.security import generate_password_hash

ROOMS = ("Lobby", "Garden")


def create_app(**config: Any) -> Flask:
    """Return the app. A variable CHAT_X sets X of its config, as CHAT_ONE_LOGIN=false."""
    app = Flask(__name__, instance_path=os.environ.get("CHAT_INSTANCE"))
    app.config.update(
        SQLALCHEMY_DATABASE_URI="sqlite:///chat.db",
        SESSION_COOKIE_SAMESITE="Lax",  # other sites cannot post in somebody's name
        MAX_CONTENT_LENGTH=4 * MAX_FILE,
        ONE_LOGIN=True,  # a login ends those elsewhere; False: two windows are fine
    )
    app.config.from_prefixed_env("CHAT")
    app.config.update(config)
    db.init_app(app)
    people.logins.init_app(app)
    app.register_blueprint(people.pages)
    app.register_blueprint(talk.pages)
    app.register_blueprint(live.pages)  # live
    app.register_error_handler(OverflowError, lambda error: ("There is no such number.", 404))  # of SQLite
    app.after_request(forbid_scripts_from_elsewhere)
    app.cli.add_command(announce)
    prepare(app)
    return app


def forbid_scripts_from_elsewhere(response: Response) -> Response:
    response.headers.setdefault(
        "Content-Security-Policy", "default-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return response


def prepare(app: Flask) -> None:
    """Make what is not there yet: the secret that signs sessions, tables, rooms and two people to try it with."""
    folder = Path(app.instance_path)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock, app.app_context():
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers start together
        secret = folder / "secret"
        if not secret.exists():
            secret.touch(0o600)
            secret.write_text(secrets.token_hex(32))
        app.secret_key = app.secret_key or secret.read_text()
        db.create_all()
        if not db.session.scalars(select(User.id)).first():
            for name, password in people.DEMO.items():
                db.session.add(User(name=name, password=generate_password_hash(password)))
            db.session.add_all(Room(name=name) for name in ROOMS)
            db.session.commit()
        db.session.remove()
        db.engine.dispose()  # a connection must not be shared with the workers of a --preload


@click.command("announce")
@click.argument("text")
@with_appcontext
def announce(text: str) -> None:
    """Say TEXT in every room."""
    try:
        talk.announce(text)
    except Refused as error:
        raise click.ClickException(str(error)) from None


app = create_app()
