"""Frameworks: what the gateway finds out about an app without importing what it is made with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import pytest
from flask import Flask, request

from geventws import ConnectionClosed, frameworks
from geventws.flask import Sockets
from geventws.frameworks import (
    expect_disconnects,
    explain_mismatch,
    flask_apps_in,
    is_beside_view,
    routes_judge_origins,
    why_no_app,
)
from geventws.testing import connect
from geventws.websocket import WebSocket


def test_the_dictionaries_of_flask_1_take_the_handler_of_disconnects() -> None:
    app = Flask("app")
    app.error_handler_spec = {}  # as Flask 1 makes it
    expect_disconnects(app)
    assert ConnectionClosed in app.error_handler_spec[None][None]


class Middleware:
    """WSGI middleware that keeps its app in an attribute."""

    def __init__(self, name: str, app: Any, **more: Any) -> None:
        vars(self).update({name: app, **more})

    def __call__(self, environ: Any, start_response: Any) -> Any:
        raise NotImplementedError


def closed(app: Any) -> Any:
    """Return middleware that does not show what it wraps."""
    return lambda environ, start_response: app(environ, start_response)


# Which Flask apps there are


def test_flask_apps_are_found_behind_middleware_that_shows_them() -> None:
    one, two = Flask("one"), Flask("two")
    assert flask_apps_in(one) == [one]
    assert flask_apps_in(one.wsgi_app) == [one]
    assert flask_apps_in(Middleware("app", Middleware("wsgi_app", one))) == [one]
    mounted = Middleware("app", one, mounts={"/two": two, "/again": one})
    assert set(flask_apps_in(mounted)) == {one, two}


def test_middleware_around_wsgi_app_is_the_apps_own() -> None:
    one, two = Flask("one"), Flask("two")
    one.wsgi_app = closed(one.wsgi_app)  # type: ignore[method-assign]
    Sockets(two)
    assert flask_apps_in(one) == [one]
    one.wsgi_app = Middleware("app", two)  # type: ignore[method-assign]
    assert flask_apps_in(one) == [one, two]


def test_where_middleware_does_not_show_what_it_wraps_all_apps_with_sockets_count() -> None:
    plain, declared = Flask("plain"), Flask("declared")
    Sockets(declared)
    found = flask_apps_in(closed(declared))
    assert declared in found
    assert plain not in found


def test_middleware_in_a_circle_ends() -> None:
    circle = Middleware("app", None)
    vars(circle)["app"] = circle
    assert flask_apps_in(circle) == []
    expect_disconnects(circle)


def test_only_a_route_with_origins_of_its_own_judges_them() -> None:
    app = Flask("app")
    sockets = Sockets(app)
    assert not routes_judge_origins(app)

    @sockets.route("/open", origins=["*"])
    def view(ws: WebSocket) -> None: ...

    assert routes_judge_origins(Middleware("app", app))


# What is no app


def factory() -> Any: ...
def one_argument(environ: Any) -> Any: ...
def with_a_default(environ: Any = None, start_response: Any = None) -> Any: ...
def app(environ: Any, start_response: Any) -> Any: ...
def any_arguments(*arguments: Any) -> Any: ...


@pytest.mark.parametrize(
    "good", [app, any_arguments, Middleware("app", app), Flask("app"), functools.partial(app), max]
)
def test_what_can_be_called_as_an_app_is_one(good: Any) -> None:
    assert why_no_app(good, "the app") is None


@pytest.mark.parametrize(
    ("wrong", "name", "why"),
    [
        (5, "app:five", "app:five is no WSGI app: it is int, which cannot be called"),
        (one_argument, "app:one", "app:one is no WSGI app: it cannot be called with environ and start_response"),
        (
            factory,
            "app:make",
            "cannot be called with environ and start_response; if it makes the app, write app:make()",
        ),
        (with_a_default, "app:make", "if it makes the app, write app:make()"),
        (factory, "app:make()", "app:make() is no WSGI app: it cannot be called with environ and start_response"),
    ],
)
def test_what_is_no_app_is_told_in_words(wrong: Any, name: str, why: str) -> None:
    told = why_no_app(wrong, name)
    assert told is not None
    assert told.endswith(why)


# What Flask runs


@pytest.mark.parametrize(("where", "is_beside"), [("hook", True), ("view", False), ("no flask", False)])
def test_a_hook_of_flask_may_still_refuse_and_a_view_does_not(where: str, is_beside: bool) -> None:
    app = Flask("app")
    pause: Callable[[], Any] = gevent.event.Event().wait
    if where == "hook":
        app.before_request(pause)
    app.add_url_rule("/", view_func=pause)
    call = functools.partial(app.test_client().get, "/") if where != "no flask" else pause
    running = gevent.spawn(call)
    gevent.idle()
    try:
        assert is_beside_view(running) is is_beside
    finally:
        running.kill()


def test_a_plain_view_of_flask_ends_by_the_end_of_its_websocket_without_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Flask("app")

    @app.route("/", websocket=True)
    def view() -> str:
        ws = request.environ["wsgi.websocket"]
        while True:
            ws.receive()

    for wrapped in (app, closed(app)):
        with connect(wrapped, "/") as ws:
            ws.send("hello")
    assert caplog.records == []


def test_a_send_to_a_websocket_that_is_gone_is_an_error_of_a_page_and_a_warning_of_a_view(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Flask("app")

    @app.route("/page")
    @app.route("/ws", websocket=True)
    def say() -> str:
        if ws := request.environ.get("wsgi.websocket"):
            ws.accept()
        error = ConnectionClosed(1001)
        error.websocket = object()
        raise error

    expect_disconnects(app)
    assert app.test_client().get("/page").status_code == 500
    assert "Exception on /page [GET]" in caplog.text
    with pytest.raises(ConnectionClosed, match="1000"), connect(app, "/ws") as ws:
        ws.receive()
    assert "/ws view ended because another's WebSocket, to which it sent, had closed" in caplog.text


def test_an_own_handler_of_disconnects_is_left_in_place() -> None:
    app = Flask("app")

    @app.errorhandler(ConnectionClosed)
    def own(exc: ConnectionClosed) -> str:
        return "mine"

    expect_disconnects(app)
    assert app.error_handler_spec[None][None][ConnectionClosed] is own


def test_a_route_for_http_alone_is_explained_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frameworks, "_explained", [])
    mismatch = type("WebsocketMismatch", (Exception,), {})()
    environ = {"PATH_INFO": "/page", "werkzeug.request": SimpleNamespace(routing_exception=mismatch)}
    explain_mismatch("404 NOT FOUND", environ)
    explain_mismatch("400 BAD REQUEST", {"PATH_INFO": "/other"})
    assert caplog.records == []
    for _ in range(2):
        explain_mismatch("400 BAD REQUEST", environ)
    assert caplog.text.count("/page answered a WebSocket request with 400 because its route is for HTTP only") == 1
