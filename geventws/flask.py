"""Sockets: WebSocket routes for Flask apps and blueprints; and the command `flask geventws`.

Knows Flask; needs one of this package's servers beneath it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .errors import ConnectionClosed, HandshakeError, MissingPackage
from .gateway import ROUTES_JUDGE_ORIGINS, expect_disconnects, flask_apps, log_refusal, warn_of_foreign_end
from .options import Options, check_names
from .websocket import WebSocket

try:
    import click
    from flask import Blueprint, Flask, Request, Response, current_app, request
    from flask.cli import ScriptInfo
    from flask.globals import request_ctx
    from werkzeug.exceptions import HTTPException
    from werkzeug.routing import MapAdapter, RequestRedirect, Rule
except ImportError as exc:
    raise MissingPackage(f"geventws.flask needs Flask ({exc}): pip install flask") from exc

View = TypeVar("View", bound=Callable[..., Any])
Changes = tuple[tuple[str, Any], ...]  # of options, by name

_OPTIONS = {field.name for field in dataclasses.fields(Options)}
_OPTIONS_OF_ALL = {
    "max_connections": "counts the WebSockets of all routes",
    "shutdown_code": "is for all that are open when the server stops",
}
_RULE_OPTIONS = {*inspect.signature(Rule).parameters, "provide_automatic_options"}


class Sockets:
    """WebSocket routes: sockets = Sockets(app), or Sockets() and sockets.init_app(app) later.

    A Blueprint serves as app too: Sockets(blueprint). From Sockets(app) on, an app's plain routes get WebSocket
    requests too, with the WebSocket in request.environ["wsgi.websocket"], where no route for WebSockets does.

    before_wait are functions to call, with the app context, each time before a view waits for a message: they
    give back what it needs only while it works, such as before_wait=[db.session.remove].
    """

    def __init__(
        self, app: Flask | Blueprint | None = None, *, before_wait: Iterable[Callable[[], object]] = ()
    ) -> None:
        self._apps: list[Flask | Blueprint] = []
        self._routes: list[tuple[str, str, Callable[..., Any], dict[str, Any]]] = []
        self._wrapped: dict[tuple[Callable[..., Any], Changes], Callable[..., Any]] = {}
        self._before_wait = _in_turn(before_wait)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask | Blueprint) -> None:
        """Add all routes to app: those declared so far, and later ones as they come."""
        if not isinstance(app, (Flask, Blueprint)):
            raise TypeError(f"Sockets needs a Flask app or a Blueprint, not {app!r}")
        self._apps.append(app)
        _with_app(app, _guard)
        if isinstance(app, Flask):
            _open_plain_routes(app)
        for route in self._routes:
            _add(app, *route)

    def add_url_rule(
        self, rule: str, endpoint: str | None = None, view_func: Callable[..., Any] | None = None, **options: Any
    ) -> None:
        """Declare a view without a decorator, as Flask-Sockets and Flask have it."""
        if view_func is None:
            raise TypeError(f"add_url_rule({rule!r}) needs its view")
        self.route(rule, endpoint=endpoint, **options)(view_func)

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Make each rule of a blueprint a route for WebSockets, as Flask-Sockets has it; url_prefix may be given."""
        if not isinstance(blueprint, Blueprint):
            raise TypeError(f"register_blueprint() needs a Blueprint, not {blueprint!r}")
        rules: Any = _Rules(self, blueprint, options)
        for function in blueprint.deferred_functions:
            function(rules)

    def route(self, rule: str, *, endpoint: str | None = None, **options: Any) -> Callable[[View], View]:
        """Declare a view that talks WebSocket: it gets the WebSocket first, then the URL's parameters.

        It returns nothing; when it ends, so does the connection, and ConnectionClosed of its own is an end
        like others. A plain GET is answered with 426. options are those of geventws.Options, for this route
        alone, and those of Flask's own route(). Raises TypeError or ValueError naming one that is wrong.
        """
        if not isinstance(rule, str):
            raise TypeError(f'a route needs its URL first, as in @sockets.route("/path"), not {rule!r}')
        if "methods" in options or "websocket" in options:
            raise TypeError("a Sockets route is always GET and websocket=True; leave methods and websocket out")
        rule_options = {name: options.pop(name) for name in _RULE_OPTIONS & options.keys()}
        changes = _checked(options)

        def decorate(view: View) -> View:
            _check_view(view)
            key = view, changes
            if key not in self._wrapped:
                self._wrapped[key] = _wrap(view, changes, self._before_wait)
            route = (rule, endpoint or view.__name__, self._wrapped[key], rule_options)
            self._routes.append(route)
            for app in self._apps:
                _add(app, *route)
            return view

        return decorate


class _Rules:
    """What a blueprint's deferred functions find as the state of their registration: rules become Sockets routes."""

    def __init__(self, sockets: Sockets, blueprint: Blueprint, options: dict[str, Any]) -> None:
        self.app = sockets
        self.blueprint = blueprint
        self.options = options
        self.url_prefix: str = options.get("url_prefix") or blueprint.url_prefix or ""

    def add_url_rule(self, rule: str, endpoint: str | None = None, view_func: Any = None, **options: Any) -> None:
        name = f"{self.blueprint.name}.{endpoint or view_func.__name__}"
        self.app.add_url_rule(self.url_prefix + rule, name, view_func, **options)


def _check_view(view: Callable[..., Any]) -> None:
    """Raise TypeError for a view that would not run when it is called."""
    function = inspect.unwrap(view)
    name = getattr(view, "__name__", repr(view))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is async: a view that talks WebSocket is a plain def, and may wait")
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{name} has a yield: a view that talks WebSocket sends by ws.send()")


def _in_turn(functions: Iterable[Callable[[], object]]) -> Callable[[], None] | None:
    """Return one function that calls them all, None for none."""
    if callable(functions):
        raise TypeError(f"before_wait must be a list of functions, not {functions!r} alone")
    called = tuple(functions)
    for function in called:
        if not callable(function):
            raise TypeError(f"before_wait must be a list of functions; {function!r} cannot be called")

    def call_all() -> None:
        for function in called:
            function()

    return call_all if called else None


def _checked(options: dict[str, Any]) -> Changes:
    """Return options of a route as Options holds them."""
    check_names(options)
    for name in options:
        if name in _OPTIONS_OF_ALL:
            raise TypeError(f"{name} {_OPTIONS_OF_ALL[name]}: it is an option of the server, not of a route")
    checked = Options(**options)
    return tuple((name, getattr(checked, name)) for name in sorted(options))


def _add(
    app: Flask | Blueprint, rule: str, endpoint: str, run: Callable[..., Any], rule_options: dict[str, Any]
) -> None:
    app.add_url_rule(rule, endpoint, run, methods=["GET"], websocket=True, **rule_options)
    app.add_url_rule(rule, f"{endpoint}_needs_upgrade", _needs_upgrade, methods=["GET"], **rule_options)
    if "origins" in dict(run.websocket_options):  # type: ignore[attr-defined]
        _with_app(app, lambda app: app.extensions.update({ROUTES_JUDGE_ORIGINS: True}))


def _with_app(app: Flask | Blueprint, function: Callable[[Any], None]) -> None:
    """Call function with app, or with each that the blueprint is registered on."""
    if isinstance(app, Blueprint):
        app.record(lambda state: function(state.app))
    else:
        function(app)


def _guard(app: Any) -> None:
    """Have app prepare a WebSocket before anything else sees the request, and save no session after it."""
    flask_apps.add(app)
    expect_disconnects(app)
    before = app.before_request_funcs.setdefault(None, [])
    if _prepare not in before:
        before.insert(0, _prepare)
        app.after_request_funcs.setdefault(None, []).insert(0, _leave_session)  # the first is called last


def _prepare() -> Response | None:
    """Give a WebSocket the options of its route; refuse it by their origins."""
    ws = request.environ.get("wsgi.websocket")
    if not isinstance(ws, WebSocket):
        return None
    view = current_app.view_functions.get(request.endpoint or "")
    changes: Changes = getattr(view, "websocket_options", ())
    if ws.accepted and not changes:
        return None  # middleware uses it
    try:
        ws.prepare(_changed(ws.options, changes) if changes else ws.options)
    except HandshakeError as exc:
        log_refusal(exc, request.environ)
        ws.answer(f"{exc.status.value} {exc.status.phrase}")  # to whatever else runs
        return Response(f"{exc}\n", exc.status.value, content_type="text/plain")
    return None


def _leave_session(response: Response) -> Response:
    """Have Flask not save the session that a WebSocket began with: it may have changed since, by a logout."""
    ws = request.environ.get("wsgi.websocket")
    if isinstance(ws, WebSocket) and ws.accepted:
        context: Any = request_ctx
        name = "_session" if hasattr(context, "_session") else "session"  # until Flask 3.1.2
        setattr(context, name, current_app.session_interface.make_null_session(current_app))
    return response


@functools.lru_cache
def _changed(options: Options, changes: Changes) -> Options:
    """Return the options with these changes, one object for all WebSockets that have them."""
    return options.replace(**dict(changes))


class _Adapter(MapAdapter):
    """Matches a WebSocket request as plain HTTP where no rule of websocket=True is for it.

    Werkzeug would answer 400, or for a rule of another method 405.
    """

    def match(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().match(*args, **kwargs)
        except RequestRedirect:
            raise
        except HTTPException:
            self.websocket = False
            return super().match(*args, **kwargs)


def _open_plain_routes(app: Flask) -> None:
    """Have app route a WebSocket request to plain routes too."""
    create = app.create_url_adapter

    def create_url_adapter(request: Request | None) -> MapAdapter | None:
        adapter = create(request)
        if adapter is not None and adapter.websocket:
            adapter.__class__ = _Adapter
        return adapter

    app.create_url_adapter = create_url_adapter  # type: ignore[method-assign]


def _wrap(view: Callable[..., Any], changes: Changes, before_wait: Callable[[], object] | None) -> Callable[..., Any]:
    @functools.wraps(view)
    def run(**parameters: Any) -> Any:
        ws = _websocket()
        ws.before_wait = before_wait
        ws.accept_soon()
        answer = None
        try:
            # Python 3.10 and 3.11 make a detour through C for **, which would be 368 bytes of each idle view's stack.
            answer = view(ws, **parameters) if parameters else view(ws)
        except ConnectionClosed as exc:
            if exc.websocket not in {None, ws}:
                warn_of_foreign_end(ws)
        finally:
            ws.accept_no_more()
        if answer is not None and not ws.accepted:
            return answer  # a refusal, or any other answer in HTTP
        if not ws.accepted:
            ws.accept()
        return Response(status=101)  # nothing of it goes out, but middleware and hooks see what the client saw

    run.websocket_options = changes  # type: ignore[attr-defined]
    return run


def _websocket() -> WebSocket:
    ws = request.environ.get("wsgi.websocket")
    if ws is None:
        server = request.environ.get("SERVER_SOFTWARE", "this server")
        raise RuntimeError(
            f"{server} gives no WebSocket: run the app with `gunicorn -k geventws.Worker module:app` "
            "or `python -m geventws module:app`, and in tests with geventws.testing.connect(app, path)"
        )
    assert isinstance(ws, WebSocket)
    return ws


def _needs_upgrade(**parameters: Any) -> Response:
    """Tell a plain HTTP client what this URL is for. Source: RFC 9110 §15.5.22."""
    text = f"{request.path} is a WebSocket endpoint: connect with new WebSocket(...) or another client.\n"
    return Response(text, 426, {"Upgrade": "websocket", "Connection": "Upgrade"}, content_type="text/plain")


@click.command(
    "geventws",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
    short_help="Serve this app and its WebSockets.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Serve this app and its WebSockets."""
    info = context.ensure_object(ScriptInfo)
    if info.create_app is not None:
        raise click.UsageError("a program with a FlaskGroup of its own: use flask --app MODULE:APP geventws")
    if info.app_import_path:
        os.environ["FLASK_APP"] = info.app_import_path
    # A new program, as plugins of flask were imported by now which gevent must be patched before.
    os.execv(sys.executable, [sys.executable, "-m", "geventws", "--flask", *arguments])


def find_app() -> Flask:
    """Return the app that `flask` would find: that of FLASK_APP, or of wsgi.py or app.py here.

    Raises ClickException where there is none, and what the app's own code raises.
    """
    return ScriptInfo(os.environ.get("FLASK_APP")).load_app()
