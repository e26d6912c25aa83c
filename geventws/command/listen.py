"""The listening socket of --bind: HOST:PORT, or unix:PATH, whose file a killed server may have left behind."""

from __future__ import annotations

import os
import stat
from typing import Any

from gevent import socket

from ..handshake import is_loopback

ADDRESS = "127.0.0.1:8000"  # where neither --bind nor systemd names one


def listen(address: str) -> Any:
    """Return a listening gevent socket for HOST:PORT or unix:PATH.

    Raises ValueError for another form, OSError naming the address that cannot be had.
    """
    family: int
    target: str | tuple[str, int]
    if address.startswith("unix:"):
        target = address.removeprefix("unix:")
        if not target:
            raise ValueError(f"--bind must be HOST:PORT or unix:PATH, not {address!r}")
        _remove_stale_socket(target)
        family = socket.AF_UNIX
    else:
        host, colon, port = address.rpartition(":")
        if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
            raise ValueError(f"--bind must be HOST:PORT or unix:PATH, not {address!r}")
        host = host.strip("[]") or "0.0.0.0"
        family, target = socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(target)
    except OSError as exc:
        raise OSError(f"cannot listen on {address}: {exc.strerror or exc}") from exc
    listener.listen(1024)
    return listener


def is_local(address: str) -> bool:
    """Whether what listens on HOST:PORT is for programs of this machine alone."""
    return is_loopback(address.rpartition(":")[0].lower())


def name(listener: Any) -> str:
    """Return the address of a listening socket as --bind names it; unix:@NAME is in Linux's abstract namespace."""
    address = listener.getsockname()
    if isinstance(address, bytes):
        return f"unix:@{os.fsdecode(address[1:])}"
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _remove_stale_socket(path: str) -> None:
    """Remove what a server that was killed left behind, unless somebody still listens there."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or what bind() will tell
    if not stat.S_ISSOCK(mode):
        raise OSError(f"cannot listen on unix:{path}: it exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a listener whose backlog is full would keep us waiting
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # somebody listens there, or bind() will tell
