"""Metrics: what a scrape tells of WebSockets and rooms, by process or for all workers, and what statsd is told."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from geventws import Rooms, keepalive, metrics, session, signals
from geventws.gateway import starters
from geventws.testing import Refused, connect, join

from .pairs import until
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, get, serve, wait_for
from .test_signals import fail, flask_app

DOCS = ROOT / "docs"
Value = Callable[..., float | None]


@pytest.fixture
def collector() -> Iterator[tuple[metrics.Collector, Value]]:
    """A collector in a registry of its own, and what a scrape says of a name and its labels."""
    registry = CollectorRegistry()
    collector = metrics.install(registry, rooms=[rooms := Rooms()], message_sizes=True)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"geventws_{name}", labels)

    yield collector, value
    starters.remove(collector._begin)
    keepalive.pong_watchers.clear()
    session.message_watchers.clear()
    signals.opened.disconnect(collector._on_opened)
    signals.closed.disconnect(collector._on_closed)
    signals.refused.disconnect(collector._on_refused)
    rooms.close()


def test_scrape_tells_of_a_connection_from_its_open_to_its_end(collector: tuple[metrics.Collector, Value]) -> None:
    _, value = collector
    app, route = flask_app(), "/echo/<name>"
    with connect(app, "/echo/ann") as ws:
        ws.send("hello")
        assert ws.receive() == "hello"
        assert value("connections", route=route) == value("connections_opened_total", route=route) == 1
        assert value("messages_total", route=route, direction="received") == 1
        assert (value("connections_limit") or 0) > 0
        assert value("outbox_bytes") == value("outbox_blocked_connections") == 0
        size = {"route": route, "direction": "sent"}
        assert (value("message_size_bytes_count", **size), value("message_size_bytes_sum", **size)) == (1, 5)
    end = {"route": route, "code": "1000", "cause": "client"}
    until(lambda: value("connections_closed_total", **end) == 1, "the end")
    assert value("connections", route=route) == 0
    assert value("connection_duration_seconds_count", route=route) == 1
    for direction in ("received", "sent"):
        assert value("messages_total", route=route, direction=direction) == 1
        assert (value("bytes_total", route=route, direction=direction) or 0) > 5
    fail(app, "/fail")
    until(lambda: value("connections_closed_total", route="/fail", code="1011", cause="view_failed") == 1, "a failure")


def test_what_alerts_look_at_is_there_before_it_first_happens(collector: tuple[metrics.Collector, Value]) -> None:
    """Prometheus sees no increase in a series that begins with 1."""
    _, value = collector
    assert value("handshakes_refused_total", status="403", cause="origin") == 0
    with connect(flask_app(), "/echo/ann"):
        assert value("connections_closed_total", route="/echo/<name>", code="1011", cause="view_failed") == 0


def test_refusals_are_counted_by_status_and_cause(collector: tuple[metrics.Collector, Value]) -> None:
    _, value = collector
    for path, options in [
        ("/forbidden", {}),
        ("/echo/ann", {"origin": "https://evil.example"}),
        ("/echo/ann", {"headers": {"Sec-WebSocket-Extensions": "é"}}),
    ]:
        with pytest.raises(Refused):
            connect(flask_app(), path, **options).__enter__()  # type: ignore[arg-type]
    for status, cause in (("401", "view"), ("403", "origin"), ("400", "bad")):
        assert value("handshakes_refused_total", status=status, cause=cause) == 1


def test_refusal_by_address_is_told_apart_from_an_answer_of_the_view(
    collector: tuple[metrics.Collector, Value],
) -> None:
    _, value = collector
    options = {"max_connections_per_address": 1}
    with connect(flask_app(), "/echo/ann", options=options), pytest.raises(Refused):
        connect(flask_app(), "/echo/bob", options=options)
    assert value("handshakes_refused_total", status="429", cause="address") == 1
    assert value("handshakes_refused_total", status="429", cause="view") is None


def test_pings_and_the_hub_are_measured(collector: tuple[metrics.Collector, Value]) -> None:
    _, value = collector
    with connect(flask_app(), "/echo/ann", options={"ping_interval": 0.02}):
        until(lambda: (value("ping_seconds_count") or 0) > 1, "two pings")
    assert (value("hub_lag_seconds") or 0) >= 0


def test_codes_that_clients_make_up_are_bounded_in_the_labels(collector: tuple[metrics.Collector, Value]) -> None:
    found, _ = collector
    labels = {found._label_of(code, "client") for code in range(3000, 5000)}
    assert len(labels) == metrics.MOST_CODES + 1
    assert "other" in labels
    assert (found._label_of(1006, "eof"), found._label_of(4999, "server")) == ("1006", "4999")


def test_rooms_and_the_bus_are_told(collector: tuple[metrics.Collector, Value]) -> None:
    found, value = collector
    (rooms,) = found._rooms
    with join(rooms["lobby"]) as ws:
        rooms["lobby"].broadcast("hello")
        assert ws.receive() == "hello"
        assert value("rooms") == value("room_members") == value("room_broadcasts_total") == 1
        assert value("room_messages_delivered_total") == 1
        assert value("message_size_bytes_count", route="other", direction="sent") == 1
        assert value("bus_up") == 0
    assert {*rooms.stats()} == {*metrics._ROOM_TOTALS, *metrics._ROOM_GAUGES}


@pytest.mark.parametrize("registry", [CollectorRegistry(), CollectorRegistry(auto_describe=True)])
def test_second_collector_of_a_registry_is_refused_and_counts_nothing(registry: CollectorRegistry) -> None:
    registry.register(metrics.Collector())
    before = len(starters)
    with pytest.raises(ValueError, match="install the metrics once, for all apps of a process: Duplicated"):
        metrics.install(registry)
    assert len(starters) == before


def run_python(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


INSTALL = "from geventws import metrics; metrics.install(); "


def test_files_that_processes_share_are_one_registry(tmp_path: Path) -> None:
    program = INSTALL + "import prometheus_client; metrics.install(prometheus_client.CollectorRegistry())"
    done = run_python(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert "ValueError: install the metrics once" in done.stderr


@pytest.mark.parametrize(
    ("program", "directory", "fault"),
    [
        (INSTALL, "missing", "PROMETHEUS_MULTIPROC_DIR must name a directory that can be written to, not 'missing'"),
        (INSTALL, "", "PROMETHEUS_MULTIPROC_DIR must name a directory that can be written to, not ''"),
        (
            "import os, prometheus_client; os.environ['PROMETHEUS_MULTIPROC_DIR'] = '.'; " + INSTALL,
            None,
            "PROMETHEUS_MULTIPROC_DIR was set behind the import of prometheus_client: set it before the start",
        ),
    ],
)
def test_directory_in_which_nothing_would_be_written_is_refused(
    program: str, directory: str | None, fault: str
) -> None:
    done = run_python(program, **({} if directory is None else {"PROMETHEUS_MULTIPROC_DIR": directory}))
    assert done.returncode
    assert done.stderr.splitlines()[-1] == f"RuntimeError: {fault}"


def test_gauges_of_a_process_that_ends_by_itself_are_taken_away(tmp_path: Path) -> None:
    program = INSTALL + "from geventws.gateway import Gateway; from geventws import Options; Gateway(Options())"
    assert run_python(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)).returncode == 0
    kinds = {path.name.rpartition("_")[0] for path in tmp_path.iterdir()}
    assert "counter" in kinds or "histogram" in kinds
    assert not [kind for kind in kinds if kind.startswith("gauge_live")]


OUTAGE = """
import os
import shutil
import sys

import gevent

from geventws import metrics
from geventws.testing import connect


def echo(environ, start_response):
    for message in environ["wsgi.websocket"]:
        environ["wsgi.websocket"].send(message)
    return []


metrics.INTERVAL = 0.01
collector = metrics.install()
shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
with connect(echo, "/") as ws:
    ws.send("hello")
    assert ws.receive() == "hello"
    while len(collector._lags) < 7:
        gevent.sleep(0.01)
"""


def test_worker_that_cannot_write_its_files_goes_on_and_says_so_once(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    done = run_python(OUTAGE, PROMETHEUS_MULTIPROC_DIR=str(files))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("metrics could not be written") == 1, done.stderr


def test_child_exit_of_the_docs_does_nothing_where_workers_share_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    found: dict[str, Any] = {}
    exec(python_blocks("child_exit"), found)
    found["child_exit"](None, SimpleNamespace(pid=1))


def python_blocks(word: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "observing.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return str(block)


def scraped(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return each sample of a scrape, by name and labels."""
    status, text = get(server, "/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(server: Server, name: str, **labels: str) -> float | None:
    return scraped(server).get((f"geventws_{name}", frozenset(labels.items())))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_page_of_the_docs_tells_of_one_process(
    tmp_path: Path, front_end: str, kind: str, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    (tmp_path / "measured.py").write_text(python_blocks("metrics.install"))
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    tls = certificate if kind == "tls" else None
    with serve("measured:app", tmp_path, front_end=front_end, env=env, certificate=tls) as server:
        with server.connect("/echo") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
            request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            text = server.exchange(request).decode()
        assert 'geventws_connections{route="/echo"} 1.0' in text
        assert 'geventws_messages_total{direction="received",route="/echo"} 1.0' in text
        assert "Traceback" not in server.log


@pytest.mark.slow
@pytest.mark.parametrize("preload", [False, True])
def test_workers_are_one_for_a_scrape_and_none_counts_once_it_is_gone(tmp_path: Path, preload: bool) -> None:
    (tmp_path / "measured.py").write_text(python_blocks("metrics.install"))
    conf = python_blocks("child_exit") + ("\nfrom gevent import monkey\nmonkey.patch_all()\n" if preload else "")
    (tmp_path / "conf.py").write_text(conf)
    (tmp_path / "files").mkdir()
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "files")}
    arguments = ["-w", "2", "-c", str(tmp_path / "conf.py"), *(["--preload"] if preload else [])]
    with serve("measured:app", tmp_path, front_end="worker", env=env, arguments=arguments) as server:
        for _ in range(6):
            with server.connect("/echo") as ws:
                ws.send("hello")
                assert ws.recv(DEADLINE) == "hello"
        end = {"route": "/echo", "code": "1000", "cause": "client"}
        wait_for(lambda: sample(server, "connections_closed_total", **end) == 6, "six ends")
        wait_for(lambda: sample(server, "messages_total", route="/echo", direction="sent") == 6, "six messages")
        wait_for(lambda: sample(server, "connections", route="/echo") == 0, "no connection")
        limit = wait_for(lambda: sample(server, "connections_limit"), "a limit")
        with server.connect("/echo") as ws:
            wait_for(lambda: sample(server, "connections", route="/echo") == 1, "one connection")
            workers = re.findall(r"Booting worker with pid: (\d+)", server.log)
            for pid in workers:
                os.kill(int(pid), signal.SIGKILL)
            wait_for(lambda: server.log.count("Booting worker") == 4, "new workers")
        wait_for(lambda: sample(server, "connections_limit") == limit, "the limit of the new workers alone")
        assert not [path for pid in workers for path in (tmp_path / "files").glob(f"gauge_live*_{pid}.db")]
        assert sample(server, "connections_closed_total", **end) == 6
        assert sample(server, "connections_opened_total", route="/echo") == 7
        assert "Traceback" not in server.log


FORKS = """
import os

import gevent


@app.get("/fork")
def fork():
    pid = os.fork()
    if not pid:
        gevent.sleep(2 * metrics.INTERVAL)
        print("child has run", flush=True)
        os._exit(0)
    return str(pid)
"""


@pytest.mark.slow
def test_child_that_the_app_forks_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "measured.py").write_text(python_blocks("metrics.install") + FORKS)
    files = tmp_path / "files"
    files.mkdir()
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PROMETHEUS_MULTIPROC_DIR": str(files)}
    with serve("measured:app", tmp_path, front_end="server", env=env) as server:
        with server.connect("/echo") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
        _, child = get(server, "/fork")
        server.wait_for_log("child has run")
        assert {path.stem.rpartition("_")[2] for path in files.iterdir()} == {str(server.process.pid)} != {child}


@pytest.mark.slow
def test_statsd_of_gunicorn_is_told_of_a_websocket_without_its_duration(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(DEADLINE)
        arguments = ["--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}"]
        told: list[str] = []

        def heard(word: str) -> list[str]:
            """Return what came, up to a metric of this name."""
            while not told or word not in told[-1]:
                told.append(statsd.recv(1000).decode())
            return [line for line in told if "request" in line]

        with serve("tests.apps:app", tmp_path, front_end="worker", arguments=arguments) as server:
            assert get(server, "/")[0] == 200
            assert [line.partition(":")[0] for line in heard("status.200")] == [
                "gunicorn.request.duration",
                "gunicorn.requests",
                "gunicorn.request.status.200",
            ]
            told.clear()
            with server.connect("/echo") as ws:
                ws.send("hello")
            lines = [line.partition(":")[0] for line in heard("status.101")]
            assert lines == ["gunicorn.requests", "gunicorn.request.status.101"]
            server.wait_for_log(r'"GET /echo HTTP/1\.1" 101 ')


def names() -> set[str]:
    """Return the name of each sample that there may be."""
    found = {"geventws_connection_duration_seconds_bucket", "geventws_ping_seconds_bucket"}
    rooms = Rooms()
    for metric in metrics.Collector([rooms]).collect():
        found |= {metric.name, f"{metric.name}_total", f"{metric.name}_count", f"{metric.name}_sum"}
    rooms.close()
    return found


def words(expression: str) -> set[str]:
    return set(re.findall(r"geventws_\w+", expression))


def test_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard: dict[str, Any] = json.loads((DOCS / "grafana.json").read_text())
    asked = {name for panel in dashboard["panels"] for target in panel["targets"] for name in words(target["expr"])}
    assert len(dashboard["panels"]) >= 8
    assert asked and asked <= names()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_alerts_ask_for_metrics_that_there_are() -> None:
    rules = [rule for group in yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    assert {name for rule in rules for name in words(rule["expr"])} <= names()
    assert all({"alert", "expr", "for", "labels", "annotations"} <= rule.keys() for rule in rules)
    assert not [rule["expr"] for rule in rules if "sum(" in rule["expr"]], "others would hide one that is full or loses"


def test_docs_name_each_metric() -> None:
    text = (DOCS / "observing.md").read_text()
    for metric in metrics.Collector([Rooms()]).collect():
        assert f"`{metric.name}" in text, metric.name
