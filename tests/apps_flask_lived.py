"""A Flask app as it is lived: people log in, routes have options of their own, a database has few connections."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import gevent
from flask import Flask, Response, abort, g, redirect, request, session, url_for
from flask_login import (
    LoginManager,
    UserMixin,
    current_user,
    login_required,
    login_user,
)
from flask_sqlalchemy import SQLAlchemy
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from geventws import WebSocket
from geventws.flask import Sockets

app = Flask(__name__)
app.config |= {
    "SECRET_KEY": "for tests only",
    "SQLALCHEMY_DATABASE_URI": f"sqlite:///{os.environ['LIVED_DATABASE']}",
    "SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": 2, "max_overflow": 0, "pool_timeout": 0.5},
}
db: Any = SQLAlchemy(app)
sockets = Sockets(app)
frugal = Sockets(app, before_wait=[db.session.remove])
logins = LoginManager(app)
logins.login_view = "login_page"


class User(UserMixin, db.Model):  # type: ignore[misc]
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String)


with app.app_context():
    db.create_all()
    if not db.session.query(User).count():
        db.session.add_all([User(name="ada"), User(name="grace")])
        db.session.commit()


@logins.user_loader  # type: ignore[untyped-decorator]
def load_user(number: str) -> User | None:
    user: User | None = db.session.get(User, int(number))
    return user


@app.before_request
def keep_out() -> Response | None:
    if request.path.startswith("/judged/"):
        print("before_request ran on", request.path, flush=True)
    g.before = request.path
    if request.path == "/banned":
        abort(401)
    if request.path == "/moved":
        answer = redirect(url_for("login_page"))
        answer.set_cookie("came_from", "moved")
        return answer  # type: ignore[return-value]
    return None


@app.get("/login")
def login_page() -> str:
    return "log in"


@app.get("/login/<name>")
def log_in(name: str) -> str:
    session["colour"] = "blue"
    login_user(db.session.query(User).filter_by(name=name).one())
    return "welcome"


# Who it is


@frugal.route("/me")
@login_required  # type: ignore[untyped-decorator]
def me(ws: WebSocket) -> None:
    for _ in ws:
        ws.send_json([current_user.name, session["colour"], g.before])


@login_required  # type: ignore[untyped-decorator]
@sockets.route("/decorated-above")
def decorated_above(ws: WebSocket) -> None:
    ws.send("not guarded")


@sockets.route("/banned")
def banned(ws: WebSocket) -> None:
    ws.send("never")


@sockets.route("/moved")
def moved(ws: WebSocket) -> None:
    ws.send("never")


@sockets.route("/rooms/<room>")
def urls(ws: WebSocket, room: str) -> None:
    ws.send_json(
        {
            "page": url_for("login_page"),
            "page, external": url_for("login_page", _external=True),
            "socket": url_for("urls", room="other"),
            "socket, external": url_for("urls", room=room, _external=True),
        }
    )


@app.get("/urls")
def urls_of_a_page() -> list[str]:
    return [url_for("urls", room="lobby"), url_for("login_page")]


# Options of routes


@sockets.route("/up", max_message_size=4 << 20, subprotocols=["v2"])
def up(ws: WebSocket) -> None:
    for message in ws:
        ws.send(str(len(message)))


@sockets.route("/accept-wins", max_message_size=10, subprotocols=["v1"])
def accept_wins(ws: WebSocket) -> None:
    ws.accept(max_message_size=100, subprotocols=["v2"])
    for message in ws:
        ws.send(str(len(message)))


@sockets.route("/silent", accept_after=0.1)
def silent(ws: WebSocket) -> None:
    while not ws.accepted:  # which is no use of it
        gevent.sleep(0.01)


@sockets.route("/judged/own", origins=["https://partner.example"])
def own_origins(ws: WebSocket) -> None:
    ws.send("welcome")


@sockets.route("/judged/any", origins="*")
def any_origin(ws: WebSocket) -> None:
    ws.send("welcome")


@sockets.route("/judged/none")
def no_origins(ws: WebSocket) -> None:
    print("view ran on /judged/none", flush=True)
    ws.send("welcome")


@app.route("/judged/bare", websocket=True)
def bare() -> str:
    print("view ran on /judged/bare", flush=True)
    request.environ["wsgi.websocket"].send("welcome")
    return ""


@app.route("/judged/page")
def page() -> str:
    print("view ran on /judged/page", flush=True)
    return "page"


def other_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    print("raw socket", environ.get("gunicorn.socket"), getattr(environ["wsgi.input"], "raw", None), flush=True)
    environ["wsgi.websocket"].send("welcome")
    return []


# The database


def count(ws: WebSocket) -> None:
    for name in ws:
        ws.send(str(db.session.query(User).filter_by(name=name).count()))


frugal.route("/count")(count)
sockets.route("/count-and-hold", endpoint="count_and_hold")(count)

mounted = DispatcherMiddleware(app, {"/mounted": other_app})
