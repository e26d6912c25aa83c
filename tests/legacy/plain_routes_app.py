"""A Flask app of the time when a plain route served both, the page and its WebSocket: only Sockets(app) is new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Response, abort, redirect, request, url_for

from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)
blueprint = Blueprint("blueprint", __name__)


def echo() -> str:
    ws = request.environ.get("wsgi.websocket")
    if ws is None:
        return f"page of {request.path}"
    ws.send(f"{request.path} {request.endpoint} {url_for(str(request.endpoint))}")
    for message in ws:
        ws.send(message)
    return ""


app.route("/")(echo)
app.route("/slash/", endpoint="slash")(echo)
app.get("/form", endpoint="form")(echo)
blueprint.route("/echo")(echo)
app.register_blueprint(blueprint, url_prefix="/blueprint")


@app.post("/form")
def save() -> str:
    return "saved"


@app.post("/only-post")
def only_post() -> str:
    return "posted"


@app.route("/both")
def both() -> str:
    return "page beside a WebSocket"


@sockets.route("/both", endpoint="both_by_websocket")
def both_by_websocket(ws: Any) -> None:
    ws.send("the route for WebSockets")


@sockets.route("/rooms/<int:number>")
def room(ws: Any, number: int) -> None:
    ws.send(f"room {number}")


@app.route("/rooms/<path:rest>")
def rest(rest: str) -> str:
    ws = request.environ["wsgi.websocket"]
    ws.send(f"rest {rest}")
    return ""


@app.route("/members-only")
def members_only() -> Response:
    if "user" not in request.cookies:
        abort(403)
    return redirect(url_for("echo"))  # type: ignore[return-value]


@app.route("/urls")
def urls() -> str:
    return f"{url_for('echo')} {url_for('both_by_websocket')} {url_for('slash', _external=True)}"


without = Flask("without")
without.route("/")(echo)


def by_host() -> Flask:
    """The same of an app that serves two hosts."""
    app = Flask("by_host", host_matching=True, static_host="localhost")
    Sockets(app)
    view: Callable[[], str] = echo
    app.add_url_rule("/", "mine", view, host="localhost")
    app.add_url_rule("/", "other", lambda: "other", host="other.example")
    return app
