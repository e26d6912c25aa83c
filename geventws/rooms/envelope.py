"""What travels in rooms: names, the JSON of objects, and what is added to it.

Pure, and without gevent.
"""

from __future__ import annotations

import json
from typing import Any

from ..message import to_json

LONGEST_NAME = 200  # bytes of UTF-8
LARGEST_INFO = 4096  # characters of JSON
ADDED = ("id", "at")  # keys that a kept object arrives with


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
    """Return the JSON text of an object with its id and position added; text of anything else as it is."""
    if not text.startswith("{"):
        return text
    comma = "" if text == "{}" else ","
    return f'{text[:-1]}{comma}"id":"{id}","at":"{at}"}}'
