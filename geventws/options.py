"""Options: every limit and interval of a connection, with its unit, default and reason.

Knows how to read them from GEVENTWS_* environment variables; knows nothing of who uses them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import may_travel

log = logging.getLogger("geventws")

PREFIX = "GEVENTWS_"
OTHER_VARIABLES = {"GEVENTWS_BUS", "GEVENTWS_COMPAT", "GEVENTWS_LIVE", "GEVENTWS_PURE"}  # that are no options
OFF = frozenset({"off", "none", "never"})
SWITCH = {"on": True, "yes": True, "true": True, "1": True, "off": False, "no": False, "false": False, "0": False}
LONGEST = 1e9  # seconds
LARGEST = (1 << 63) - 1  # that C compares with
LONGEST_REASON = 123  # bytes; RFC 6455 §5.5 leaves a control frame 125, of which the code takes 2


# Grammar that options share with what comes on the wire.
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 §5.6.2
SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"  # RFC 3986 §3.1
_token = re.compile(TOKEN)
IP_LITERAL = r"\[[0-9A-Fa-f:.]+\]"
HOST = rf"({IP_LITERAL}|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::([0-9]{{0,5}}))?"  # and port; RFC 3986 §3.2.2
# An option may not hold all of these: a ; or & there stands between two origins that were to be two entries.
_NAME = r"[A-Za-z0-9._-]+"
_HOST = rf"({IP_LITERAL}|{_NAME})(:[0-9]{{1,4}}|:[1-6][0-9]{{4}})?"
_hosts = re.compile(rf"\*|(\*\.)?{_NAME}|{IP_LITERAL}")
_REST = r"[!-)+\--~]*"  # of an origin that is taken literally: no comma, which parts the entries, and no *
_ORIGIN = re.compile(
    rf"\*|null|same-host|({SCHEME}://)?(\*\.)?{_HOST}"
    rf"|https?://{_HOST}/(?!$){_REST}|(?!(?i:https?|wss?):){SCHEME}://{_REST}"
)

LISTS = {  # the kinds of options that are lists, with what an entry may be
    "origins": (_ORIGIN, "same-host, *, https://app.example, *.example.org or file://"),
    "hosts": (_hosts, "*, loopback, app.example, *.example.org or [::1], without a port"),
    "tokens": (_token, "chat or v2.example.org"),
}


def _option(
    default: Any, kind: str, help: str, *, optional: bool = False, least: int = 1, most: int | None = None
) -> Any:
    metadata = {"kind": kind, "help": help, "optional": optional, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


class _Settings:
    """What all settings do: they are checked when made, and may come from GEVENTWS_* variables."""

    __slots__ = ()

    def __post_init__(self: Any) -> None:
        for field in dataclasses.fields(self):
            value = check(field, getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)

    @classmethod
    def _set_by(cls: Any, environ: Mapping[str, str]) -> dict[str, Any]:
        """Return the values that variables give. Raises ValueError naming a variable whose value is wrong."""
        variables = {PREFIX + field.name.upper(): field for field in dataclasses.fields(cls)}
        return {
            field.name: parse(field, environ[variable], variable)
            for variable, field in variables.items()
            if variable in environ
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits(_Settings):
    """What a request head may be to a server without gunicorn, in gunicorn's names. Raises as Options does."""

    limit_request_line: int = _option(8190, "bytes", "longest request line; a longer one is answered 414", most=8190)
    limit_request_fields: int = _option(100, "count", "most header lines; more are answered 431", most=32_768)
    limit_request_field_size: int = _option(8190, "bytes", "longest header line; a longer one is answered 431")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> RequestLimits:
        """Return the limits that GEVENTWS_LIMIT_REQUEST_* set. Raises ValueError naming one whose value is wrong."""
        return cls(**cls._set_by(environ))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(_Settings):
    """Settings of one server, worker or connection.

    Sizes are int bytes, times float seconds; None switches a time off. Raises ValueError or TypeError
    for a value out of range, naming the option.
    """

    max_message_size: int = _option(
        1 << 20, "bytes", "largest message to receive; a larger one ends the connection with 1009"
    )
    max_queue: int = _option(16, "count", "received messages that may wait for the view before the peer is held back")
    max_message_rate: int | None = _option(
        None, "count", "messages a second above which the peer is held back, and closed with 1008", optional=True
    )
    max_outbox: int = _option(1 << 20, "bytes", "data waiting to be sent above which send() waits for the peer")
    send_timeout: float | None = _option(
        20.0, "seconds", "give a peer up that takes no byte of what is sent for this long", optional=True
    )
    ping_interval: float | None = _option(20.0, "seconds", "time between keepalive pings", optional=True)
    ping_timeout: float | None = _option(
        20.0, "seconds", "give a peer up that stays silent for this long after a ping", optional=True
    )
    close_timeout: float = _option(5.0, "seconds", "time the peer has to answer a Close")
    max_connections: int | None = _option(
        None,
        "count",
        "live WebSockets of a process, 503 past it; by default what its file descriptor limit allows",
        optional=True,
    )
    max_connections_per_address: int | None = _option(
        None, "count", "live WebSockets of one client's address, 429 past it; IPv6 counts by /64", optional=True
    )
    accept_after: float | None = _option(
        3.0, "seconds", "time after which a silent view gets its handshake completed", optional=True
    )
    origins: tuple[str, ...] = _option(
        ("same-host",),
        "origins",
        "origins allowed to connect: same-host, *, https://app.example, *.example.org, file://, null",
    )
    hosts: tuple[str, ...] = _option(
        ("*",),
        "hosts",
        "hosts that clients may ask for: *, app.example, *.example.org, loopback; --debug on localhost sets loopback",
    )
    subprotocols: tuple[str, ...] = _option((), "tokens", "subprotocols this server speaks")
    deflate: bool = _option(True, "switch", "compress messages for peers that offer permessage-deflate")
    deflate_threshold: int = _option(192, "bytes", "smallest message to compress")
    deflate_level: int = _option(4, "count", "zlib's level, from 1, the fastest, to 9, the smallest", most=9)
    deflate_window_bits: int = _option(
        15, "count", "base-2 logarithm of the bytes that compression looks back", least=9, most=15
    )
    deflate_memory_level: int = _option(8, "count", "zlib's memory level", most=9)
    deflate_context_takeover: bool = _option(
        False, "switch", "let compression look back at earlier messages, at the cost of memory for each connection"
    )
    shutdown_code: int = _option(1012, "code", "close code sent when the server stops, or max_lifetime is over")
    shutdown_reason: str = _option("server restarting", "text", "close reason sent when the server stops")
    closes_per_second: int = _option(
        1000, "count", "WebSockets closed in a second when the server stops, or more where its time is short"
    )
    max_lifetime: float | None = _option(
        None, "seconds", "time after which a connection is closed, or up to a fifth earlier", optional=True
    )
    expiry_code: int = _option(4401, "code", "close code sent at the moment that ws.accept(expires_at=...) names")
    hub_warning: float | None = _option(
        None, "seconds", "warn of what blocks the hub for this long, with its stack; --debug sets 0.5", optional=True
    )

    def replace(self, **changes: Any) -> Options:
        """Return a copy with these options changed. Raises TypeError for a name that is no option."""
        check_names(changes)
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Options:
        """Return the options that GEVENTWS_* variables set, such as GEVENTWS_PING_INTERVAL=30 (or "off").

        Raises ValueError naming a variable whose value is wrong, or whose name is nearly an option's.
        """
        known = [PREFIX + field.name.upper() for field in _all_fields()]
        for variable in environ:
            if variable.startswith(PREFIX) and variable not in known:
                for likely in difflib.get_close_matches(variable, known, 1, 0.85):
                    raise ValueError(f"{variable} is no option of geventws; did you mean {likely}?")
                if variable not in OTHER_VARIABLES:
                    _warn_of(variable)
        return cls(**cls._set_by(environ))


def _all_fields() -> list[dataclasses.Field[Any]]:
    return [*dataclasses.fields(Options), *dataclasses.fields(RequestLimits)]


@functools.lru_cache
def _warn_of(variable: str) -> None:
    """Say once that a variable means nothing, with the option whose name has most of its words."""
    words = variable.removeprefix(PREFIX).lower().split("_")

    def likeness(field: dataclasses.Field[Any]) -> tuple[int, float]:
        shared = len({*words} & {*field.name.split("_")})
        return shared, difflib.SequenceMatcher(None, "_".join(words), field.name).ratio()

    likely = PREFIX + max(_all_fields(), key=likeness).name.upper()
    log.warning("%s is no option of geventws and changes nothing; the nearest is %s", variable, likely)


def check_names(names: Mapping[str, Any]) -> None:
    """Raise TypeError for the first of names that is no option, with the one probably meant."""
    known = [field.name for field in dataclasses.fields(Options)]
    for name in names:
        if name not in known:
            likely = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {likely[0]}?" if likely else f"options are {', '.join(known)}"
            raise TypeError(f"{name} is no option of geventws; {hint}")


def parse(field: dataclasses.Field[Any], text: str, name: str) -> Any:
    """Return the value that text gives an option. Raises ValueError naming it as name."""
    kind, text = field.metadata["kind"], text.strip()
    if kind in LISTS:
        return check(field, text.replace(",", " ").split(), name)
    if kind == "text":
        return check(field, text, name)
    if kind == "switch":
        if text.lower() not in SWITCH:
            raise ValueError(f"{name} must be on or off, not {text!r}")
        return SWITCH[text.lower()]
    try:
        if field.metadata["optional"] and text.lower() in OFF:
            return None
        return check(field, float(text) if kind == "seconds" else int(text), name)
    except ValueError as exc:
        if str(exc).startswith(name):
            raise
        wanted = "a number of seconds" if kind == "seconds" else "a whole number"
        raise ValueError(f"{name} must be {wanted}{_or_off(field, name)}, not {text!r}") from None


def check(field: dataclasses.Field[Any], value: Any, name: str) -> Any:
    """Return value as an option holds it. Raises ValueError or TypeError naming it as name."""
    if value is None and field.metadata["optional"]:
        return None
    kind = field.metadata["kind"]
    if kind in LISTS:
        return _check_list(kind, value, name)
    if kind == "text":
        return _check_text(value, name)
    if kind == "switch":
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}")
        return value
    is_number = isinstance(value, (int, float) if kind == "seconds" else int) and not isinstance(value, bool)
    if not is_number:
        wanted = "a number of seconds" if kind == "seconds" else "a whole number"
        raise TypeError(f"{name} must be {wanted}{_or_off(field, name)}, not {value!r}")
    if kind == "seconds":
        if not 0 < value < LONGEST:
            bound = f"less than {LONGEST:g}" if value > 0 else "more than 0"
            raise ValueError(f"{name} must be {bound} seconds{_or_off(field, name)}, not {value!r}")
        return float(value)
    if kind == "code" and not may_travel(value):
        raise ValueError(f"{name} must be a close code that may be sent, such as 1001, 1012 or 4000, not {value}")
    least, most = field.metadata["least"], field.metadata["most"]
    if most is not None and not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}{_or_off(field, name)}, not {value}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}{_or_off(field, name)}, not {value}")
    return int(value)


def _or_off(field: dataclasses.Field[Any], name: str) -> str:
    """Return how to switch the option off: in Python None, in a variable or flag the word off."""
    return f" or {'None' if name == field.name else 'off'}" if field.metadata["optional"] else ""


def _check_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text that UTF-8 can hold, not {value!r}") from None
    if size > LONGEST_REASON:
        raise ValueError(f"{name} must be at most {LONGEST_REASON} bytes of UTF-8, not {size}: {value!r}")
    return value


def _check_list(kind: str, value: Any, name: str) -> tuple[str, ...]:
    pattern, examples = LISTS[kind]
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, (tuple, list, set, frozenset)):
        raise TypeError(f"{name} must be a list of strings such as {examples}, not {value!r}")
    for item in items:
        if not isinstance(item, str) or not pattern.fullmatch(item):
            raise ValueError(f"{name}: {item!r} is none of the form {examples}")
    return tuple(items)
