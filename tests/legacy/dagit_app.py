"""How dagit and flexx declare their pages and WebSockets, with geventws.flask in the place of Flask-Sockets.

dagit has a page and a WebSocket of one URL and one name, a page for any other URL, and app_protocol. flexx registers a
blueprint of pages and one of WebSockets, the second below a URL that the first takes whole.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Flask

from geventws.flask import Sockets

app = Flask("dagster-ui")
sockets = Sockets(app)
app.app_protocol = lambda environ_path_info: "graphql-ws"  # type: ignore[attr-defined]


def subscriptions(ws: Any) -> list[str]:
    while (message := ws.receive()) is not None:
        ws.send(message)
    return []


app.add_url_rule("/graphql", "graphql", lambda: "the page of graphql", methods=["GET", "POST"])
sockets.add_url_rule("/graphql", "graphql", subscriptions)
app.add_url_rule("/<path:_path>", "index_catchall", lambda _path: "the index")

pages: Any = Blueprint("FlexxApps", __name__)
websockets: Any = Blueprint("flexxWS", __name__)


@websockets.route("/ws/<path:path>")  # type: ignore[untyped-decorator]
def ws_handler(ws: Any, path: str) -> None:
    while not ws.closed:
        if (message := ws.receive()) is not None:
            ws.send(f"{path}: {message}")


@pages.route("/", defaults={"path": ""})  # type: ignore[untyped-decorator]
@pages.route("/<path:path>")  # type: ignore[untyped-decorator]
def page_handler(path: str) -> str:
    return f"flexx {path}"


app.register_blueprint(pages, url_prefix="/flexx")
sockets.register_blueprint(websockets, url_prefix="/flexx")
