"""Orders: what a message of the control topic has every process do.

An order is for who had joined before it. That is told by positions, not by clocks: joining notes the newest order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

import gevent

from ..turns import pause
from .envelope import CLOSE, KICK, Message
from .log import parse_position

log = logging.getLogger("geventws")


def obey(home: Any, link: Any, message: Message) -> None:
    """Do what a message says, to the members here whose rooms the link joins."""
    try:
        order = json.loads(message.body)
        if message.kind == KICK:
            user, spared, code, reason = order
            members = [member for member in home.people.get(user, ()) if member.id not in spared]
        elif message.kind == CLOSE:
            name, code, reason = order
            room = home.rooms.get(name)
            members = list(room.lane.places.values()) if room is not None else []
        else:
            return
    except (TypeError, ValueError):
        log.exception("an order of rooms was not understood")
        return
    older = [member for member in members if member.room.link is link and _is_before(member.control, message.position)]
    close_all(older, code, reason)


def _is_before(joined: str, position: str) -> bool:
    """Whether who joined then is meant. What cannot be told is taken for that: nobody stays who had to go."""
    one, other = parse_position(joined), parse_position(position)
    return one is None or other is None or one < other


def close_all(members: Iterable[Any], code: int, reason: str) -> None:
    """Close members behind what they were to hear, in turns with other work."""
    gevent.spawn(close_in_turns, list(members), code, reason)


def close_in_turns(members: list[Any], code: int, reason: str) -> None:
    """Close members, and return when all are."""
    for number, member in enumerate(members, 1):
        member.close(code, reason)
        if not number % 64:
            pause()
