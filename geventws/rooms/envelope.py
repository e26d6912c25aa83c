"""What travels in rooms: names, the JSON of objects and what is added to it, and the bytes of messages on a bus.

Pure, and without gevent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..message import Sendable, to_json

LONGEST_NAME = 200  # bytes of UTF-8
LARGEST_INFO = 4096  # characters of JSON
ADDED = ("id", "at")  # keys that a kept object arrives with

# Kinds of messages on a bus.
TEXT, BINARY, JSON = "t", "b", "j"  # to members; JSON gets its keys added when it arrives
CAME, LEFT = "+", "-"  # a person, into or from a room
KICK, CLOSE = "k", "c"  # to all processes: close the sockets of a person, of a room
BEAT = "*"  # to the process itself


def check_name(name: object, what: str) -> str:
    """Return the name of a room or user. Raises TypeError for what is no str, ValueError by its length or content."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a {what} is a str, not {type(name).__name__}")
    size = len(name.encode())  # UnicodeEncodeError is a ValueError: half a character has no UTF-8
    if not 1 <= size <= LONGEST_NAME:
        raise ValueError(f"the name of a {what} has 1 to {LONGEST_NAME} bytes of UTF-8, not {size}")
    return name


def check_info(info: object) -> Any:
    """Return info as it comes out of JSON. Raises TypeError or ValueError for what cannot be JSON, or is too large."""
    if info is None:
        return None
    text = to_json(info)
    if len(text) > LARGEST_INFO:
        raise ValueError(f"info has at most {LARGEST_INFO} characters of JSON, not {len(text)}")
    return json.loads(text)


def check_keys(obj: object) -> None:
    """Raise ValueError for an object that has a key of its own where one is added."""
    if isinstance(obj, dict):
        for key in ADDED:
            if key in obj:
                raise ValueError(f'a kept object gets the key "{key}" added, and this one has it already: rename yours')


def with_keys(text: str, id: str, at: str) -> str:
    """Return the JSON text of an object with its id and position added; text of anything else as it is.

    An empty position, as of a message that the bus does not have yet, is not added.
    """
    if not text.startswith("{"):
        return text
    comma = "" if text == "{}" else ","
    position = f',"at":"{at}"' if at else ""
    return f'{text[:-1]}{comma}"id":"{id}"{position}}}'


# Messages on a bus: position, the position before it, key, bytes of the topic so far and header, a line of ASCII; then
# the body. The key is the publisher's name and a number that grows.

_member_id = re.compile(r"[0-9a-f]{12}-[0-9]{1,19}")
_line = re.compile(r"(-|[0-9]{1,20}-[0-9]{1,20}) (-|[0-9]{1,20}-[0-9]{1,20}) ([0-9a-f]{12})-([0-9]{1,19}) [0-9]+ "
                   r"([tbjkc*+-])([0-9a-f,-]*)")  # fmt: skip


_NOBODY = frozenset[str]()


class Message(NamedTuple):
    """A message as a bus brings it."""

    position: str  # empty where it is not kept
    before: str  # position of the one before it
    publisher: str
    number: int
    kind: str
    excluded: frozenset[str]  # ids of members
    body: bytes

    @property
    def key(self) -> str:
        """What tells it from all others, wherever it stands."""
        return f"{self.publisher}-{self.number}"

    @property
    def for_members(self) -> str | bytes | None:
        """What members get, None where it is not for them."""
        if self.kind == BINARY:
            return self.body
        if self.kind == JSON:
            return with_keys(self.body.decode(), self.key, self.position)
        return self.body.decode() if self.kind == TEXT else None


def content(kind: str, body: bytes, excluded: Iterable[str] = ()) -> bytes:
    """Return the header and body of a message. What is no member's id excludes nobody."""
    ids = ",".join(id for id in excluded if _member_id.fullmatch(id))
    return b"%s%s\n%s" % (kind.encode(), ids.encode(), body)


def parse_message(data: bytes) -> Message:
    """Return the message that a bus brings. Raises ValueError for anything else."""
    line, _, body = data.partition(b"\n")
    match = _line.fullmatch(line.decode("latin-1"))
    if not match:
        raise ValueError(f"no message of a room: {data[:80]!r}")
    position, before, publisher, number, kind, excluded = match.groups()
    ids = frozenset(excluded.split(",")) if excluded else _NOBODY
    if kind in (TEXT, JSON):
        body.decode()
    return Message(position.strip("-"), before, publisher, int(number), kind, ids, body)


def body_of(message: Sendable) -> tuple[str, bytes]:
    """Return the kind and body of what an app sends. Raises TypeError or ValueError for what is no message."""
    if isinstance(message, str):
        return TEXT, message.encode()
    if isinstance(message, (bytes, bytearray, memoryview)):
        return BINARY, bytes(message)
    raise TypeError(f"a message is str or bytes, not {type(message).__name__}; broadcast_json() sends other values")


# Who is in a room: whether they linger, the length of the name, the name, and the JSON of info.

_value = re.compile(rb"([hl])([0-9]*) (.*)", re.DOTALL)


def member_value(user: str | None, info: Any, *, lingers: bool = False) -> bytes:
    """Return what a bus keeps of a member."""
    name = b"" if user is None else user.encode()
    length = b"" if user is None else b"%d" % len(name)
    return b"%s%s %s%s" % (b"l" if lingers else b"h", length, name, to_json(info).encode())


def parse_member(value: bytes) -> tuple[str | None, Any, bool]:
    """Return user, info and whether they linger. Raises ValueError for what no member_value() gave."""
    match = _value.fullmatch(value)
    if not match:
        raise ValueError(f"no member of a room: {value[:80]!r}")
    length = int(match[2] or 0)
    user = match[3][:length].decode() if match[2] else None
    return user, json.loads(match[3][length:]), match[1] == b"l"
