"""Sockets: WebSocket routes for Flask apps and blueprints; and the command `flask geventws`.

Knows Flask; needs one of this package's servers beneath it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from . import handshake
from .errors import ConnectionClosed, HandshakeError, MissingPackage
from .frameworks import ROUTES_JUDGE_ORIGINS, expect_disconnects, flask_apps, warn_of_foreign_end
from .gateway import log_refusal
from .options import Options, check_names
from .websocket import WebSocket

try:
    import click
    from flask import Blueprint, Flask, Request, Response, current_app, request
    from flask.blueprints import BlueprintSetupState
    from flask.cli import ScriptInfo
    from flask.globals import request_ctx
    from werkzeug.exceptions import HTTPException
    from werkzeug.routing import MapAdapter, RequestRedirect, Rule

    from . import browser
except ImportError as exc:
    raise MissingPackage(f"geventws.flask needs Flask, from 2.3 on ({exc}): pip install 'geventws[flask]'") from exc

View = TypeVar("View", bound=Callable[..., Any])
Changes = tuple[tuple[str, Any], ...]  # of options, by name

_OPTIONS = {field.name for field in dataclasses.fields(Options)}
_OPTIONS_OF_ALL = {
    "hosts": "is judged before the route is known",
    "max_connections": "counts the WebSockets of all routes",
    "max_connections_per_address": "counts the WebSockets of all routes",
    "shutdown_code": "is for all that are open when the server stops",
    "shutdown_reason": "is for all that are open when the server stops",
    "closes_per_second": "is for all that are open when the server stops",
    "hub_warning": "is for the whole process",
}
SHARED = ":websocket"  # behind the endpoint of a WebSocket view of which a page has the name
_RULE_OPTIONS = {*inspect.signature(Rule).parameters, "provide_automatic_options"}


class Sockets:
    """WebSocket routes: sockets = Sockets(app), or Sockets() and sockets.init_app(app) later.

    A Blueprint serves as app too: Sockets(blueprint). After Sockets(app) the app's plain routes take WebSocket requests
    too, if no route for WebSockets takes them. The WebSocket is in request.environ["wsgi.websocket"].

    before_wait are functions to call, with the app context, each time before a view waits for a message. They give
    back what the view needs only while it works, such as before_wait=[db.session.remove].

    client=True serves the browser's half at /geventws.js, a string at that path: url_for("geventws.client").
    """

    def __init__(
        self,
        app: Flask | Blueprint | None = None,
        *,
        before_wait: Iterable[Callable[[], object]] = (),
        client: bool | str = False,
    ) -> None:
        self._apps: list[Flask | Blueprint] = []
        self._declarations: list[Callable[[Flask | Blueprint], None]] = []
        self._wrapped: dict[tuple[Callable[..., Any], Changes], Callable[..., Any]] = {}
        self._before_wait = _one_by_one(before_wait)
        self._client_path = browser.PATH if client is True else client
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask | Blueprint) -> None:
        """Add all routes to app: those declared so far, and later ones as they come."""
        if not isinstance(app, (Flask, Blueprint)):
            raise TypeError(f"Sockets needs a Flask app or a Blueprint, not {app!r}")
        self._apps.append(app)
        _with_app(app, _guard)
        if self._client_path:
            _with_app(app, functools.partial(browser.serve, path=self._client_path))
        if isinstance(app, Flask):
            _match_also(app, websocket=True)
        for declare in self._declarations:
            declare(app)

    def route(self, rule: str, *, endpoint: str | None = None, **options: Any) -> Callable[[View], View]:
        """Declare a view that talks WebSocket: it gets the WebSocket first, then the URL's parameters.

        The view returns nothing. When it ends, so does the connection. The view may let out ConnectionClosed of its own
        connection. A page may have the same URL. If none has, a plain GET is answered with 426. options are those
        of geventws.Options, for this route alone, and those of Flask's own route(). Raises TypeError or ValueError
        naming one that is wrong.
        """
        if not isinstance(rule, str):
            raise TypeError(f'a route needs its URL first, as in @sockets.route("/path"), not {rule!r}')
        if "methods" in options or "websocket" in options:
            raise TypeError("a Sockets route is always GET and websocket=True; leave methods and websocket out")
        _checked(options)

        def decorate(view: View) -> View:
            self.add_url_rule(rule, endpoint, view, **options)
            return view

        return decorate

    def add_url_rule(
        self, rule: str, endpoint: str | None = None, view_func: Callable[..., Any] | None = None, **options: Any
    ) -> None:
        """Declare a view without a decorator, as Flask has it; methods are ignored, as a handshake is always GET."""
        if view_func is None:
            raise TypeError(f"add_url_rule({rule!r}) needs its view")
        name = endpoint or getattr(view_func, "__name__", None)
        if name is None:
            raise TypeError(f"{view_func!r} has no name: give its route endpoint=...")
        run, rule_options = self._runner(view_func, options)
        self._declare(lambda app: app.add_url_rule(rule, name, run, **rule_options))

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Register a blueprint whose views talk WebSocket, all of them, as Flask-Sockets has it.

        options are those of Flask's own register_blueprint().
        """
        if not isinstance(blueprint, Blueprint):
            raise TypeError(f"register_blueprint() needs a Blueprint, not {blueprint!r}")
        twin = self._twin(blueprint)
        self._declare(lambda app: app.register_blueprint(twin, **options))

    def _declare(self, declaration: Callable[[Flask | Blueprint], None]) -> None:
        self._declarations.append(declaration)
        for app in self._apps:
            declaration(app)

    def _runner(self, view: Callable[..., Any], options: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return what Flask is to call for a view, and which of its options are Flask's, for add_url_rule()."""
        _check_view(view)
        changes = _checked(options)
        key = view, changes
        if key not in self._wrapped:
            self._wrapped[key] = _wrap(view, changes, self._before_wait)
        rule_options = {name: options[name] for name in _RULE_OPTIONS & options.keys()}
        return self._wrapped[key], {**rule_options, "methods": ["GET"], "websocket": True}

    def _twin(self, blueprint: Blueprint) -> Blueprint:
        """Return a blueprint that adds the views of this one, and of those nested in it, as Sockets do."""
        twin: Any = copy.copy(blueprint)
        twin.make_setup_state = functools.partial(_SetupState, self._runner, twin)
        twin._blueprints = [(self._twin(nested), options) for nested, options in twin._blueprints]
        return twin  # type: ignore[no-any-return]


class _SetupState(BlueprintSetupState):
    """Registers a blueprint all of whose views talk WebSocket, except the one of its static files."""

    def __init__(self, runner: Callable[..., Any], blueprint: Blueprint, *arguments: Any) -> None:
        super().__init__(blueprint, *arguments)
        self._runner = runner

    def add_url_rule(
        self, rule: str, endpoint: str | None = None, view_func: Callable[..., Any] | None = None, **options: Any
    ) -> None:
        """Add a rule to the app, with the prefix and name of the blueprint."""
        blueprint: Any = self.blueprint
        if view_func is not None and view_func != blueprint.send_static_file and not _is_runner(view_func):
            endpoint = endpoint or view_func.__name__
            view_func, options = self._runner(view_func, options)
        super().add_url_rule(rule, endpoint, view_func, **options)


def _check_view(view: Callable[..., Any]) -> None:
    """Raise TypeError for a view that would not run when it is called."""
    function = inspect.unwrap(view)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    if not inspect.isroutine(function):
        function = type(function).__call__  # of an object, which its class makes callable
    name = getattr(view, "__name__", repr(view))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is async: a view that talks WebSocket is a plain def, and may wait")
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{name} has a yield: a view that talks WebSocket sends by ws.send()")


def _one_by_one(functions: Iterable[Callable[[], object]]) -> Callable[[], None] | None:
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
    """Return those options of a route that are not Flask's, as Options holds them."""
    options = {name: value for name, value in options.items() if name not in _RULE_OPTIONS}
    check_names(options)
    for name in options:
        if name in _OPTIONS_OF_ALL:
            raise TypeError(f"{name} {_OPTIONS_OF_ALL[name]}: it is an option of the server, not of a route")
    checked = Options(**options)
    return tuple((name, getattr(checked, name)) for name in sorted(options))


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
        _leave_refusals(app)
        _match_also(app, websocket=False)
        _share_names(app)


def _prepare() -> Response | None:
    """Give a WebSocket the options of its route. Refuse it if their origins do not allow the client."""
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
        refusal = Response(f"{exc}\n", exc.status.value, {handshake.REFUSED: exc.rule}, content_type="text/plain")
        refusal.is_refusal = True  # type: ignore[attr-defined]
        return refusal
    return None


def _leave_session(response: Response) -> Response:
    """Keep Flask from saving the session that a WebSocket began with. A logout may have changed the session since."""
    ws = request.environ.get("wsgi.websocket")
    if isinstance(ws, WebSocket) and ws.accepted:
        context: Any = request_ctx
        name = "_session" if hasattr(context, "_session") else "session"  # until Flask 3.1.2
        setattr(context, name, current_app.session_interface.make_null_session(current_app))
    return response


def _leave_refusals(app: Any) -> None:
    """Have app call no after_request for what _prepare() refuses. It may rely on a before_request, and none ran."""
    process = app.process_response

    def process_response(*arguments: Any) -> Response:
        response: Response = arguments[-1]
        return response if hasattr(response, "is_refusal") else process(*arguments)

    app.process_response = process_response


@functools.lru_cache
def _changed(options: Options, changes: Changes) -> Options:
    """Return the options with these changes, one object for all WebSockets that have them."""
    return options.replace(**dict(changes))


class _Adapter(MapAdapter):
    """Matches a request to a rule of the other kind, HTTP or WebSocket, if no rule of its own kind matches.

    Werkzeug would answer 400, or for a rule of another method 405.
    """

    def match(self, *args: Any, websocket: bool | None = None, **kwargs: Any) -> Any:
        match: Any = super().match
        kind = self.websocket if websocket is None else websocket
        try:
            return match(*args, websocket=kind, **kwargs)
        except RequestRedirect:
            raise
        except HTTPException:
            return match(*args, websocket=not kind, **kwargs)


def _match_also(app: Flask, *, websocket: bool) -> None:
    """Have app match requests of one kind, WebSocket or HTTP, to rules of the other too."""
    create = app.create_url_adapter

    def create_url_adapter(request: Request | None) -> MapAdapter | None:
        adapter = create(request)
        if adapter is not None and adapter.websocket == websocket:
            adapter.__class__ = _Adapter
        return adapter

    app.create_url_adapter = create_url_adapter  # type: ignore[method-assign]


def _is_runner(view: object) -> bool:
    return hasattr(view, "websocket_options")


def _share_names(app: Any) -> None:
    """Let a page and a WebSocket view of app have one endpoint, in either order. The view's endpoint gets a suffix."""
    add = app.add_url_rule

    def add_url_rule(rule: str, endpoint: str | None = None, view_func: Any = None, *args: Any, **options: Any) -> None:
        if view_func is not None:
            name = endpoint or view_func.__name__
            holder = app.view_functions.get(name, view_func)
            if _is_runner(view_func) and not _is_runner(holder):
                endpoint = name + SHARED
            elif _is_runner(holder) and not _is_runner(view_func):
                _rename(app, name, name + SHARED)
            if "origins" in dict(getattr(view_func, "websocket_options", ())):
                app.extensions[ROUTES_JUDGE_ORIGINS] = True
        add(rule, endpoint, view_func, *args, **options)

    app.add_url_rule = add_url_rule


def _rename(app: Any, old: str, new: str) -> None:
    """Give the rules and the view of an endpoint another one."""
    app.view_functions[new] = app.view_functions.pop(old)
    rules = app.url_map._rules_by_endpoint  # Werkzeug has no other way to
    rules[new] = rules.pop(old)
    for rule in rules[new]:
        rule.endpoint = new


def _wrap(view: Callable[..., Any], changes: Changes, before_wait: Callable[[], object] | None) -> Callable[..., Any]:
    @functools.wraps(view)
    def run(**parameters: Any) -> Any:
        if not handshake.wants_websocket(request.environ):
            return _needs_upgrade()
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


def _needs_upgrade() -> Response:
    """Tell a plain HTTP client what this URL is for. Source: RFC 9110 §15.5.22."""
    text = f"{request.path} is a WebSocket endpoint: connect with new WebSocket(...) or another client.\n"
    if handshake.has_lost_upgrade(request.environ):
        text = f"{request.path} is a WebSocket endpoint, and the request {handshake.LOST_UPGRADE}\n"
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", handshake.REFUSED: "upgrade"}
    return Response(text, 426, headers, content_type="text/plain")


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
    program = [sys.executable, "-m", "geventws", "--flask", *arguments]
    if "pydevd" in sys.modules:  # the debugger's connection ends with this program
        sys.exit(subprocess.call(program, env={"GEVENT_SUPPORT": "True", **os.environ}))
    os.execv(sys.executable, program)


def find_app() -> Flask:
    """Return the app that `flask` would find: that of FLASK_APP, or of wsgi.py or app.py here.

    Raises ClickException where there is none, and what the app's own code raises.
    """
    return ScriptInfo(os.environ.get("FLASK_APP")).load_app()
