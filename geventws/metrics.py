"""Metrics: what WebSockets, rooms and the bus of a process do, for Prometheus.

Knows prometheus_client, the signals and the gateways; knows no server. Messages are counted by the WebSockets
themselves, whose counts are read when somebody asks, or each second where several processes share a directory.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections import Counter as Counts
from collections import deque
from collections.abc import Iterable, Iterator
from threading import Lock
from time import monotonic
from typing import Any

import gevent

from . import gateway, keepalive, session, signals
from .errors import CloseCode, MissingPackage
from .gateway import gateways
from .rooms import Rooms
from .turns import pause

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric, multiprocess, values
except ImportError as exc:
    raise MissingPackage(f"geventws.metrics needs prometheus_client ({exc}): pip install 'geventws[metrics]'") from exc

log = logging.getLogger("geventws")

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # the directory of prometheus_client's multiprocess mode
INTERVAL = 1.0  # seconds between two writes to the files that processes share
LAG_WINDOW = 60  # looks, one each INTERVAL, of which the worst lateness of the hub is shown
AT_ONCE = 100  # WebSockets that are looked at before others have their turn
MOST_CODES = 50  # close codes of their own that clients may add to the labels

# Of refusals; all others are bad requests.
_CAUSES = {"origin", "hosts", "address", "version", "full", "stopping", "view"}
_WELL_KNOWN = {int(code) for code in CloseCode}
_DURATIONS = (1, 10, 60, 300, 1800, 7200, 28800, 86400)  # seconds
_SIZES = (64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)  # bytes
_PINGS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds

# What Rooms.stats() counts from the start, and what it has now; by the names of both.
_ROOM_TOTALS = {
    "broadcasts": ("geventws_room_broadcasts", "Messages said to rooms"),
    "delivered": ("geventws_room_messages_delivered", "Messages of rooms that members were sent"),
    "skipped": ("geventws_room_messages_skipped", "Messages of rooms that slow members were not sent"),
    "closed_slow": ("geventws_room_members_closed_slow", "Members closed because they read too slowly"),
    "reconnects": ("geventws_bus_reconnects", "Times that the bus was reached again"),
    "caught_up": ("geventws_bus_messages_caught_up", "Messages read from the bus behind a break"),
    "gaps": ("geventws_bus_gaps", "Gaps in what the bus brought"),
    "refused": ("geventws_bus_messages_refused", "Messages that could not wait for the bus"),
}
_ROOM_GAUGES = {
    "rooms": ("geventws_rooms", "Rooms with members, of each process", "livesum"),
    "members": ("geventws_room_members", "Members of rooms", "livesum"),
    "waiting": ("geventws_room_members_behind", "Members whose peer does not take all", "livesum"),
    "bus_up": ("geventws_bus_up", "Processes that reach the bus", "livesum"),
    "buffered": ("geventws_bus_messages_buffered", "Messages that wait for the bus", "livesum"),
}


class Collector:
    """What Prometheus is told of this process; a registry may ask it."""

    def __init__(self, rooms: Iterable[Rooms] = (), *, message_sizes: bool = False) -> None:
        self._rooms = tuple(rooms)
        self._lock = Lock()
        self._pid = 0  # of the process whose greenlet writes
        self._lags: deque[float] = deque(maxlen=LAG_WINDOW)
        self._pings: list[float] = []  # not told yet
        self._ended: Counts[tuple[str, str, str]] = Counts()  # messages or bytes, route, direction: of those that ended
        self._written: dict[Any, float] = {}  # what each counter of ours was told
        self._codes: set[int] = set()
        self._routes: set[str] = set()

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(f"geventws_{name}", text, labels, registry=None)

        def gauge(name: str, text: str, *labels: str, mode: Any = "livesum") -> Any:
            return Gauge(f"geventws_{name}", text, labels, registry=None, multiprocess_mode=mode)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Any:
            return Histogram(f"geventws_{name}", text, labels, registry=None, buckets=tuple(buckets))

        self._connections = gauge("connections", "WebSockets that are open", "route")
        self._opened = counter("connections_opened", "Handshakes that were completed", "route")
        self._refused = counter("handshakes_refused", "Handshakes answered in HTTP", "status", "cause")
        # 0 already: Prometheus sees no increase in a series that begins with 1, and so alerts of none.
        self._refused.labels("403", "origin")
        self._closed = counter("connections_closed", "WebSockets that ended", "route", "code", "cause")
        self._durations = histogram("connection_duration_seconds", "How long they were open", _DURATIONS, "route")
        self._messages = counter("messages", "Messages of WebSockets", "route", "direction")
        self._bytes = counter("bytes", "Bytes of WebSockets", "route", "direction")
        self._outbox = gauge("outbox_bytes", "Bytes that wait for peers")
        self._blocked = gauge("outbox_blocked_connections", "WebSockets whose peer does not take all")
        self._ping_times = histogram("ping_seconds", "How long a ping took to be answered", _PINGS)
        self._lag = gauge("hub_lag_seconds", "The worst lateness of the hub within a minute", mode="livemax")
        self._limit = gauge("connections_limit", "max_connections of the processes")
        if message_sizes:
            self._sizes = histogram("message_size_bytes", "Sizes of messages", _SIZES, "route", "direction")
        self._room_totals: dict[str, Any] = {}
        self._room_gauges: dict[str, Any] = {}
        if self._rooms:
            for key, (name, text) in _ROOM_TOTALS.items():
                self._room_totals[key] = Counter(name, text, registry=None)
            for key, (name, text, mode) in _ROOM_GAUGES.items():
                self._room_gauges[key] = Gauge(name, text, registry=None, multiprocess_mode=mode)  # type: ignore[arg-type]

    def listen(self) -> None:
        """Count from now on."""
        signals.opened.connect(self._on_opened)
        signals.closed.connect(self._on_closed)
        signals.refused.connect(self._on_refused)
        keepalive.pong_watchers.append(self._pings.append)
        if hasattr(self, "_sizes"):
            session.message_watchers.append(self._on_message)
        gateway.starters.append(self._begin)
        if gateways:
            self._begin()

    def describe(self) -> Iterator[Metric]:
        """Give the names, by which a registry refuses a second of them."""
        for metric in self._metrics():
            yield from metric.describe()

    def collect(self) -> Iterator[Metric]:
        """Give what the registry asks for, as it is now."""
        self._store(*self._look())
        for metric in self._metrics():
            yield from metric.collect()

    def _metrics(self) -> list[Any]:
        metrics = [value for value in vars(self).values() if isinstance(value, (Counter, Gauge, Histogram))]
        return [*metrics, *self._room_totals.values(), *self._room_gauges.values()]

    def _on_message(self, route: str | None, direction: str, size: int, count: int) -> None:
        for _ in range(count):
            self._sizes.labels(route or "other", direction).observe(size)

    # Once for each connection, by signals

    def _on_opened(self, ws: object, route: str | None, **unused: object) -> None:
        route = route or "other"
        if route not in self._routes:
            self._routes.add(route)
            self._closed.labels(route, "1011", "view_failed")  # 0, as below
        self._opened.labels(route).inc()

    def _on_closed(self, ws: object, **fields: Any) -> None:
        route, code, cause = fields["route"] or "other", fields["code"], fields["cause"]
        for kind in ("messages", "bytes"):
            for direction, count in fields[kind].items():
                self._ended[kind, route, direction] += count
        self._closed.labels(route, self._label_of(code, cause), cause).inc()
        self._durations.labels(route).observe(fields["seconds"])

    def _on_refused(self, environ: object, *, status: int, rule: str, **unused: object) -> None:
        self._refused.labels(str(status), rule if rule in _CAUSES else "bad").inc()

    def _label_of(self, code: int, cause: str) -> str:
        """Return a close code as a label: clients may send thousands of them, and each would be a series."""
        if cause != "client" or code in _WELL_KNOWN or code in self._codes or len(self._codes) < MOST_CODES:
            self._codes.add(code)
            return str(code)
        return "other"

    # Now and then

    def _look(self, *, pausing: bool = False) -> tuple[Counts[tuple[str, str, str]], Counts[str], int, int]:
        """Return what all have sent and received, the open ones by route, bytes in their outboxes, and the blocked."""
        totals = self._ended.copy()  # first: one that ends now is counted too late, and never twice
        opened: Counts[str] = Counts()
        waiting = blocked = 0
        found = {ws: None for gateway in list(gateways) for ws in list(gateway.live)}
        for number, ws in enumerate(found):
            if pausing and number % AT_ONCE == AT_ONCE - 1:
                pause()
            if not ws.accepted or ws.has_ended:
                continue
            session = ws.session
            route, transport = session.route or "other", session.transport
            opened[route] += 1
            totals["messages", route, "received"] += session.messages_received
            totals["messages", route, "sent"] += ws.messages_sent
            totals["bytes", route, "received"] += transport.bytes_received
            totals["bytes", route, "sent"] += transport.bytes_sent
            waiting += transport.waiting
            blocked += transport.blocked
        return totals, opened, waiting, blocked

    def _store(self, totals: Counts[tuple[str, str, str]], opened: Counts[str], waiting: int, blocked: int) -> None:
        with self._lock:
            for (kind, route, direction), total in totals.items():
                metric = self._messages if kind == "messages" else self._bytes
                self._add(metric.labels(route, direction), (kind, route, direction), total)
            for route in self._routes | opened.keys():
                self._connections.labels(route).set(opened[route])
            self._outbox.set(waiting)
            self._blocked.set(blocked)
            self._limit.set(sum(each.max_connections for each in list(gateways)))
            self._lag.set(max(self._lags, default=0.0))
            self._tell_pings()
            stats = [each.stats() for each in self._rooms]
            for key, counter in self._room_totals.items():
                self._add(counter, key, sum(each[key] for each in stats))
            for key, gauge in self._room_gauges.items():
                gauge.set((min if key == "bus_up" else sum)(each[key] for each in stats))

    def _add(self, counter: Any, key: object, total: float) -> None:
        """Bring a counter up to a total, which may be a little behind that of another thread."""
        if (more := total - self._written.get(key, 0)) > 0:
            self._written[key] = total
            counter.inc(more)

    def _tell_pings(self) -> None:
        count = len(self._pings)  # the hub may add some meanwhile
        for seconds in self._pings[:count]:
            self._ping_times.observe(seconds)
        del self._pings[:count]

    # The greenlet

    def _begin(self) -> None:
        """Look at the hub each second, in a process that serves, and write where processes share a directory."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._ended.clear()  # of the process that this one was forked from
            self._written.clear()
            atexit.register(self._write_last)
            gevent.spawn(self._run)

    def _run(self) -> None:
        pid, is_failing = self._pid, False
        while True:
            due = monotonic() + INTERVAL
            gevent.sleep(INTERVAL)
            if os.getpid() != pid:
                return  # in a process that was forked meanwhile
            self._lags.append(max(monotonic() - due, 0.0))
            try:
                if shares_a_directory():
                    self._store(*self._look(pausing=True))
                else:
                    with self._lock:
                        self._tell_pings()
                is_failing = False
            except Exception:  # where the directory is gone, for one; the next second may be better
                if not is_failing:
                    log.exception("metrics could not be written")
                is_failing = True

    def _write_last(self) -> None:
        if self._pid == os.getpid() and shares_a_directory():
            self._store(*self._look())
            multiprocess.mark_process_dead(self._pid)  # type: ignore[no-untyped-call]


_files = CollectorRegistry()  # stands for the files of this process


def shares_a_directory() -> bool:
    """Whether several processes are one for Prometheus: prometheus_client's multiprocess mode."""
    return VARIABLE in os.environ


def _check_directory() -> None:
    """Raise RuntimeError where prometheus_client would write nothing that a scrape finds."""
    if values.ValueClass is values.MutexValue:
        raise RuntimeError(f"{VARIABLE} was set behind the import of prometheus_client: set it before the start")
    directory = os.environ[VARIABLE]
    if not os.path.isdir(directory) or not os.access(directory, os.W_OK):
        raise RuntimeError(f"{VARIABLE} must name a directory that can be written to, not {directory!r}")


def install(
    registry: CollectorRegistry = REGISTRY, *, rooms: Iterable[Rooms] = (), message_sizes: bool = False
) -> Collector:
    """Have a registry tell of the WebSockets of this process, and of these rooms; once, where the app is made.

    message_sizes adds a histogram, which costs some microseconds a message.
    With PROMETHEUS_MULTIPROC_DIR, as workers need it, the files there are written instead. Raises ValueError for a
    registry that has them already, RuntimeError without blinker, and for a directory that cannot be written to.
    """
    if shares_a_directory():
        _check_directory()
    collector = Collector(rooms, message_sizes=message_sizes)
    try:
        (_files if shares_a_directory() else registry).register(collector)
    except ValueError as exc:
        raise ValueError(f"install the metrics once, for all apps of a process: {exc}") from None
    collector.listen()
    return collector
