"""The echo app of flask_sockets.py, and what its process holds for each idle WebSocket."""

import ctypes
import gc
import struct
import sys
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from statistics import mean
from types import FrameType
from typing import Any

from flask import request
from gevent import Greenlet

from . import flask_sockets
from .flask_sockets import app

PAGE = 4096  # bytes
DATA_STACK = 16_384  # bytes of address space for Python's own frames, in each greenlet
HAS_DATA_STACK = (3, 11) <= sys.version_info < (3, 14)
FRAME_POINTER = 24  # offset, in a frame object, of the address of the frame's data
FRAME_HEAD = 80  # bytes of it before local variables and operands
VIEW = vars(flask_sockets)["echo"].__code__


@app.route("/trace")
def trace() -> str:
    """Count what is allocated from now on."""
    gc.collect()
    tracemalloc.start()
    return ""


@app.route("/held")
def held() -> dict[str, Any]:
    """Return the bytes that each of so many idle WebSockets holds since /trace: on its two stacks, and by line."""
    connections = int(request.args["connections"])
    gc.collect()
    lines: dict[str, float] = defaultdict(float)
    for statistic in tracemalloc.take_snapshot().statistics("lineno"):
        allocated_by = statistic.traceback[0]
        lines[f"{allocated_by.filename}:{allocated_by.lineno}"] += statistic.size / connections
    greenlets = [(each, list(_frames(each))) for each in gc.get_objects() if type(each) is Greenlet]
    parked = [(each, frames) for each, frames in greenlets if VIEW in [frame.f_code for frame in frames]]
    c_stack = mean(greenlet._stack_saved for greenlet, _ in parked)
    waiting = parked[0][1][0]
    lines[f"{waiting.f_code.co_filename}:{waiting.f_lineno}"] -= c_stack  # greenlet copies it there
    stacks = [_data_stack(frames) if HAS_DATA_STACK else (0, 0) for _, frames in parked]
    used, resident = (mean(each) for each in zip(*stacks, strict=True))
    return {"lines": lines, "c_stack": c_stack, "data_stack": resident, "data_stack_used": used}


def _frames(greenlet: Any) -> Iterator[FrameType]:
    """Yield the frames of a greenlet that waits, innermost first; none of any other."""
    frame = greenlet.gr_frame
    while frame:
        yield frame
        frame = frame.f_back


def _data_stack(frames: list[FrameType]) -> tuple[int, int]:
    """Return the bytes that frames use of their data stack, and the bytes of its resident pages."""
    addresses = [ctypes.c_uint64.from_address(id(frame) + FRAME_POINTER).value for frame in frames]
    begin = addresses[-1] // PAGE * PAGE
    used = 0
    for frame, address in zip(frames, addresses, strict=True):
        code = frame.f_code
        slots = code.co_nlocals + len(code.co_cellvars) + len(code.co_freevars) + code.co_stacksize
        if begin <= address < begin + DATA_STACK:  # not that of a generator, which has its frame itself
            used = max(used, address + FRAME_HEAD + 8 * slots - begin)
    count = DATA_STACK // PAGE
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(begin // PAGE * 8)
        pages = struct.unpack(f"={count}Q", pagemap.read(8 * count))
    return used, PAGE * sum(page >> 63 for page in pages)
