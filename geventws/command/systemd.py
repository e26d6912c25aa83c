"""systemd: the listening sockets that it hands to a service, and what the service tells it.

Source: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import logging
import os
from typing import Any

import gevent
from gevent import socket

log = logging.getLogger("geventws")

FIRST = 3  # the file descriptor of the first socket
PATIENCE = 1.0  # seconds for systemd to take a message


def descriptors() -> range:
    """Return the file descriptors of the sockets that are meant for this process, or for its parent under --reload.

    Raises ValueError if LISTEN_FDS is no number, OSError naming a descriptor that is not open.
    """
    is_reloaded = os.environ.get("WERKZEUG_RUN_MAIN") == "true"
    if os.environ.get("LISTEN_PID") != str(os.getppid() if is_reloaded else os.getpid()):
        return range(0)
    count = os.environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdecimal()):
        raise ValueError(f"LISTEN_FDS must be a number of sockets, not {count!r}")
    found = range(FIRST, FIRST + int(count))
    for fd in found:
        try:
            os.fstat(fd)
        except OSError as exc:
            raise _useless(fd, exc) from exc
    return found


def listeners() -> list[Any]:
    """Return the listening gevent sockets that systemd has opened for this process. Its children do not inherit them.

    Raises ValueError if LISTEN_FDS is no number, OSError naming the descriptor that is no listening stream socket.
    """
    found = [_listener(fd) for fd in descriptors()]
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return found


def _listener(fd: int) -> Any:
    try:
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise _useless(fd, exc) from exc
    if not listens:
        raise OSError(
            f"cannot listen on file descriptor {fd} of LISTEN_FDS: no listening stream socket; "
            "the socket unit needs ListenStream= and no Accept=yes"
        )
    return sock


def _useless(fd: int, error: OSError) -> OSError:
    return OSError(f"cannot listen on file descriptor {fd} of LISTEN_FDS: {error.strerror}")


def notify(state: str) -> None:
    """Tell systemd a state of the service, such as READY=1, if it wants to know. That it fails is a line in the log."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(address)  # or gevent would not wait while systemd's queue is full, and lose the message
            sock.sendall(state.encode())
    except OSError as exc:
        log.warning("cannot tell systemd %s: %s", state, exc)


def keep_watchdog() -> None:
    """From now on tell systemd that the hub runs, twice as often as WatchdogSec= asks for, if it asks at all."""
    period = os.environ.get("WATCHDOG_USEC", "")
    owner = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if period.isascii() and period.isdecimal() and int(period) and owner == str(os.getpid()):
        gevent.spawn(_keep_telling, int(period) / 1e6 / 2)


def _keep_telling(interval: float) -> None:
    while True:
        notify("WATCHDOG=1")
        gevent.sleep(interval)
