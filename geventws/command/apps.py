"""Find and load the app that the command line or `flask --app` names; say where its own code has failed.

Knows the shape of an app; knows no server.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import TracebackType
from typing import Any, NoReturn

from ..frameworks import why_no_app
from . import AppError

LOADERS = {"__main__", "geventws", "importlib", "flask", "click"}  # modules that run before the app's own code


def load_app(name: str) -> Any:
    """Return the WSGI app that MODULE:APP names; APP may be a call without arguments, `app` if left out.

    Raises AppError saying what was tried and why it failed.
    """
    module_name, colon, attribute = name.partition(":")
    attribute = attribute if colon else "app"
    factory = attribute.endswith("()")
    attribute = attribute.removesuffix("()")
    if module_name.endswith(".py"):
        hint = os.path.relpath(module_name.removesuffix(".py")).replace(os.sep, ".")
        raise AppError(f"the app must be MODULE:APP, not a file; did you mean {hint}:{attribute}?")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise AppError(f"the app must be MODULE:APP such as app:app or app:create_app(), not {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as exc:
        if isinstance(exc, ModuleNotFoundError) and _own_traceback(exc) is None:
            kind = "module" if colon else "command or module"
            raise AppError(f"there is no {kind} {module_name} in {os.getcwd()} or on the Python path") from None
        _fail(f"importing {module_name}", exc)
    try:
        app = getattr(module, attribute)
    except AttributeError:
        raise AppError(f"module {module_name} has no attribute {attribute}") from None
    except (Exception, SystemExit) as exc:  # of the module's own __getattr__()
        _fail(f"importing {name}", exc)
    if factory:
        try:
            app = app()
        except (Exception, SystemExit) as exc:
            _fail(f"calling {name}", exc)
    if why := why_no_app(app, name):
        raise AppError(why)
    return app


def load_flask_app() -> Any:
    from ..flask import find_app

    try:
        return find_app()
    except (Exception, SystemExit) as exc:
        if not hasattr(exc, "format_message"):
            _fail("loading the Flask app", exc)
        # One of click's, which say all themselves. Flask makes one of an ImportError inside of the app, too.
        if isinstance(exc.__context__, ImportError) and _own_traceback(exc.__context__) is not None:
            _fail("loading the Flask app", exc.__context__)
        raise AppError(exc.format_message()) from None


def debugged(app: Any) -> Any:
    """Return app with Werkzeug's debugger for its pages; what a view of a WebSocket raises is logged anyway."""
    from werkzeug.debug import DebuggedApplication

    class Debugger(DebuggedApplication):
        def __call__(self, environ: Any, start_response: Any) -> Any:
            if "wsgi.websocket" in environ:
                return self.app(environ, start_response)
            return super().__call__(environ, start_response)

    return Debugger(app, evalex=True)


def _fail(doing: str, exc: BaseException) -> NoReturn:
    """Raise AppError for what the app's own code raised."""
    own = _own_traceback(exc)
    where = "" if own is None or isinstance(exc, SyntaxError) else f" ({_where(own)})"
    exits = isinstance(exc, SystemExit)  # on purpose: its text says all
    summary = exc if exits else str(exc).partition("\n")[0]
    is_shown = not exits and (own is not None or isinstance(exc, SyntaxError))
    raise AppError(f"{doing} failed: {type(exc).__name__}: {summary}{where}") from (
        exc.with_traceback(own) if is_shown else None
    )


def _own_traceback(exc: BaseException) -> TracebackType | None:
    """Return the traceback of exc from the first frame of the app's own code on; None where it has none."""
    found = exc.__traceback__
    while found is not None and found.tb_frame.f_globals.get("__name__", "").partition(".")[0] in LOADERS:
        found = found.tb_next
    return found


def _where(own: TracebackType) -> str:
    """Return the file and line of the last frame that is in the current directory, or of the last of all."""
    frames = traceback.extract_tb(own)
    here = os.getcwd() + os.sep
    near = [frame for frame in frames if frame.filename.startswith(here) and "site-packages" not in frame.filename]
    frame = (near or frames)[-1]
    return f"{os.path.basename(frame.filename)}, line {frame.lineno}"
