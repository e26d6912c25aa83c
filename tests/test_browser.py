"""How a Flask app serves geventws.js."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from flask import Blueprint, Flask, request, url_for
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from geventws.flask import Sockets
from geventws.testing import Refused, connect

SCRIPT = files("geventws").joinpath("static", "geventws.js").read_bytes()


def link(app: Flask) -> str:
    with app.test_request_context():
        return url_for("geventws.client")


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    Sockets(app, client=True)
    return app


def test_url_of_this_version_is_kept_for_a_year(app: Flask) -> None:
    assert re.fullmatch(r"/geventws\.js\?v=[0-9a-f]{16}", link(app))
    response = app.test_client().get(link(app))
    assert response.data == SCRIPT
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("query", ["", "?v=", "?v=0123456789abcdef"])
def test_any_other_url_is_asked_for_again(app: Flask, query: str) -> None:
    response = app.test_client().get(f"/geventws.js{query}")
    assert response.data == SCRIPT
    assert response.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("is_versioned", [False, True])
def test_who_has_it_gets_304(app: Flask, is_versioned: bool) -> None:
    url = link(app) if is_versioned else "/geventws.js"
    first = app.test_client().get(url)
    again = app.test_client().get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    for name in ("ETag", "Cache-Control"):
        assert again.headers[name] == first.headers[name]
    other = app.test_client().get(url, headers={"If-None-Match": '"another"'})
    assert (other.status_code, other.data) == (200, SCRIPT)


def test_head_is_a_get_without_the_script(app: Flask) -> None:
    response = app.test_client().head("/geventws.js")
    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["Content-Length"] == str(len(SCRIPT))


def test_it_is_served_only_when_asked_for() -> None:
    app = Flask(__name__)
    Sockets(app)
    assert app.test_client().get("/geventws.js").status_code == 404


def test_its_path_may_be_chosen() -> None:
    app = Flask(__name__)
    Sockets(app, client="/assets/ws.js")
    assert link(app).startswith("/assets/ws.js?v=")
    assert app.test_client().get("/assets/ws.js").data == SCRIPT
    assert app.test_client().get("/geventws.js").status_code == 404


def test_a_path_without_a_slash_is_an_error() -> None:
    with pytest.raises(ValueError, match="slash"):
        Sockets(Flask(__name__), client="ws.js")


def test_each_app_serves_it_by_init_app() -> None:
    sockets = Sockets(client=True)
    for app in (Flask("one"), Flask("two")):
        sockets.init_app(app)
        assert app.test_client().get(link(app)).data == SCRIPT


def test_blueprints_share_one() -> None:
    app = Flask(__name__)
    for name in ("one", "two"):
        blueprint = Blueprint(name, __name__)
        Sockets(blueprint, client=True)
        app.register_blueprint(blueprint, url_prefix=f"/{name}")
    assert link(app).startswith("/geventws.js?v=")
    assert app.test_client().get(link(app)).data == SCRIPT


def test_url_counts_where_the_app_is_mounted(app: Flask) -> None:
    @app.get("/")
    def page() -> str:
        return url_for("geventws.client")

    mounted = Client(DispatcherMiddleware(Flask("outer"), {"/below": app}))
    url = mounted.get("/below/").text
    assert url.startswith("/below/geventws.js?v=")
    assert mounted.get(url).data == SCRIPT


def test_other_urls_have_no_version(app: Flask) -> None:
    app.add_url_rule("/page", "page", lambda: "")
    with app.test_request_context():
        assert url_for("page") == "/page"
        assert url_for("geventws.client", v="mine") == "/geventws.js?v=mine"


def test_hooks_of_the_app_see_it_as_a_page(app: Flask) -> None:
    @app.before_request
    def guard() -> tuple[str, int] | None:
        return None if request.endpoint == "geventws.client" else ("log in", 401)

    assert app.test_client().get("/geventws.js").status_code == 200


def test_it_is_no_websocket(app: Flask) -> None:
    with pytest.raises(Refused) as refused:
        connect(app, "/geventws.js")
    assert (refused.value.status, refused.value.body) == (200, SCRIPT)
