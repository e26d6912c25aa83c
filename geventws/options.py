"""Options: every limit and interval of a connection, with its unit, default and reason.

Knows how to read them from GEVENTWS_* environment variables; knows nothing of who uses them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import may_travel

PREFIX = "GEVENTWS_"
OFF = frozenset({"off", "none", "never"})


def _option(default: Any, kind: str, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of one server, worker or connection.

    Sizes are int bytes, times float seconds; None switches a time off. Raises ValueError or TypeError
    for a value out of range, naming the option.
    """

    max_message_size: int = _option(
        1 << 20, "bytes", "largest message to receive; a larger one ends the connection with 1009"
    )
    max_queue: int = _option(16, "count", "received messages that may wait for the view before the peer is held back")
    max_outbox: int = _option(1 << 20, "bytes", "data waiting to be sent above which send() waits for the peer")
    send_timeout: float | None = _option(
        20.0, "seconds", "time without one byte taken by the peer after which it is given up"
    )
    ping_interval: float | None = _option(20.0, "seconds", "time between keepalive pings")
    ping_timeout: float | None = _option(20.0, "seconds", "silence after a ping after which the peer is given up")
    close_timeout: float = _option(5.0, "seconds", "time the peer has to answer a Close")
    max_connections: int | None = _option(
        None, "count", "live WebSockets of a process, 503 past it; by default what its file descriptor limit allows"
    )
    accept_after: float | None = _option(
        3.0, "seconds", "on Sockets routes, time after which a silent view gets its handshake completed"
    )
    origins: tuple[str, ...] = _option(
        ("same-host",), "origins", "origins allowed to connect: same-host, *, https://app.example, *.example.org"
    )
    subprotocols: tuple[str, ...] = _option((), "list", "subprotocols this server speaks")
    shutdown_code: int = _option(1012, "code", "close code sent when the server stops")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kind = field.metadata["kind"]
            value = _CHECKS[kind](field.name, getattr(self, field.name), field.default is None)
            object.__setattr__(self, field.name, value)

    def replace(self, **changes: Any) -> Options:
        """Return a copy with these options changed. Raises TypeError for a name that is no option."""
        check_names(changes)
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Options:
        """Return the options that GEVENTWS_* variables set, such as GEVENTWS_PING_INTERVAL=30 (or "off").

        Raises ValueError naming a variable whose value or name is wrong.
        """
        changes = {}
        for field in dataclasses.fields(cls):
            variable = PREFIX + field.name.upper()
            if variable in environ:
                changes[field.name] = parse(field.metadata["kind"], environ[variable], variable)
        known = [PREFIX + field.name.upper() for field in dataclasses.fields(cls)]
        for variable in environ:
            if variable.startswith(PREFIX) and variable not in known:
                for likely in difflib.get_close_matches(variable, known, 1, 0.85):
                    raise ValueError(f"{variable} is no option of geventws; did you mean {likely}?")
        return cls(**changes)


def check_names(names: Mapping[str, Any]) -> None:
    """Raise TypeError for the first of names that is no option, with the one probably meant."""
    known = [field.name for field in dataclasses.fields(Options)]
    for name in names:
        if name not in known:
            likely = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {likely[0]}?" if likely else f"options are {', '.join(known)}"
            raise TypeError(f"{name} is no option of geventws; {hint}")


def parse(kind: str, text: str, name: str) -> Any:
    """Return the value that text gives an option of this kind. Raises ValueError naming name."""
    text = text.strip()
    if kind in {"list", "origins"}:
        return tuple(text.replace(",", " ").split())
    if text.lower() in OFF and kind in {"seconds", "count"}:
        return None
    try:
        return float(text) if kind == "seconds" else int(text)
    except ValueError:
        wanted = "a number of seconds or off" if kind == "seconds" else "a whole number"
        raise ValueError(f"{name} must be {wanted}, not {text!r}") from None


def _check_seconds(name: str, value: Any, optional: bool) -> float | None:
    if value is None and name != "close_timeout":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be seconds as a number, not {value!r}")
    if not 0 < value < 1e9:
        off = "" if name == "close_timeout" else "; None switches it off"
        raise ValueError(f"{name} must be more than 0 seconds, not {value!r}{off}")
    return float(value)


def _check_whole(name: str, value: Any, optional: bool) -> int | None:
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _check_code(name: str, value: Any, optional: bool) -> int:
    if not isinstance(value, int) or not may_travel(value):
        raise ValueError(f"{name} must be a close code that may be sent, such as 1001, 1012 or 4000, not {value!r}")
    return int(value)


def _check_list(name: str, value: Any, optional: bool) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else tuple(value)
    for item in items:
        if not isinstance(item, str) or not item:
            raise TypeError(f"{name} must be strings, not {item!r}")
    return items


def _check_origins(name: str, value: Any, optional: bool) -> tuple[str, ...]:
    items = _check_list(name, value, optional)
    for item in items:
        if "/" in item.partition("://")[2] or ("/" in item and "://" not in item):
            raise ValueError(
                f"{name}: {item!r} must end after host or port, such as https://app.example or *.example.org"
            )
    return items


_CHECKS: dict[str, Callable[[str, Any, bool], Any]] = {
    "bytes": _check_whole,
    "count": _check_whole,
    "seconds": _check_seconds,
    "code": _check_code,
    "list": _check_list,
    "origins": _check_origins,
}
