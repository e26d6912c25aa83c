"""docs/deploying.md: every block that can run does so here, or in tests/test_proxies.py."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from .commands import environment
from .proxies import PAGE, block
from .servers import DEADLINE, missing, wait_for
from .test_command_systemd import activated
from .test_readme import blocks, echoes, free_port, on_port, running, server_command

pytestmark = pytest.mark.slow  # it starts servers or installs packages

SERVICE, SOCKET = block("/etc/systemd/system/app.service"), block("/etc/systemd/system/app.socket")
WITHOUT_GUNICORN = block("/etc/systemd/system/app.service, without gunicorn")
HERE = {
    "app.py",
    "gunicorn.conf.py",
    "/etc/systemd/system/app.socket",
    "/etc/systemd/system/app.service",
    "/etc/systemd/system/app.service, without gunicorn",
    "Dockerfile",
    "deployment.yaml",
    "Procfile",
    "gunicorn app:app",
}
IN_TEST_PROXIES = {
    "/etc/nginx/conf.d/app.conf",
    "beside the server",
    "/etc/haproxy/haproxy.cfg",
    "/etc/caddy/Caddyfile",
    "/etc/apache2/sites-available/app.conf",
}
GRACEFUL_TIMEOUT = 30  # seconds, gunicorn's default


def setting(unit: str, name: str) -> str:
    """Return the one value of a setting in a unit of systemd."""
    (found,) = re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)
    return str(found)


def seconds(pattern: str) -> int:
    """Return the number that stands for this group in the page."""
    found = re.search(pattern, PAGE)
    assert found, pattern
    return int(found[1])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(block("app.py"))
    return tmp_path


def test_every_block_has_a_test() -> None:
    first_lines = [block.code.partition("\n")[0].removeprefix("# ") for block in blocks(PAGE)]
    assert sorted(first_lines) == sorted(HERE | IN_TEST_PROXIES)


def test_gunicorn_takes_the_settings(directory: Path) -> None:
    port = free_port()
    settings = on_port(block("gunicorn.conf.py"), port).replace('.1:8000"', f'.1:{port}"')
    (directory / "gunicorn.conf.py").write_text(settings)
    (command,) = [block.code.strip() for block in blocks(PAGE) if block.language == "bash"]
    with running(directory, [sys.executable, "-m", *shlex.split(command)], port):
        echoes(port, origin=f"http://127.0.0.1:{port}")


def test_gunicorn_knows_no_short_name_of_ours(directory: Path) -> None:
    words = [sys.executable, "-m", "gunicorn", "-k", "geventws", "app:app"]
    done = subprocess.run(words, cwd=directory, env=environment({}), capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    assert "class uri 'geventws' invalid or not found" in done.stderr
    assert "\"class uri 'geventws' invalid or not found\"" in PAGE


@pytest.mark.parametrize("unit", [SERVICE, WITHOUT_GUNICORN], ids=["gunicorn", "without"])
def test_the_service_serves_the_socket_of_systemd(unit: str, directory: Path) -> None:
    words = shlex.split(setting(unit, "ExecStart"))
    program = {"gunicorn": ["-m", "gunicorn"], "python": []}[Path(words[0]).name]
    path = str(directory / Path(setting(SOCKET, "ListenStream")).name)
    with activated(directory, [path], [sys.executable, *program, *words[1:]]) as service:
        assert service.get() == "ws://localhost/echo"
        with service.websocket(path="/echo") as ws:
            service.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as caught:
                ws.recv(DEADLINE)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012


def test_systemd_knows_every_line_of_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        missing("systemd-analyze")
    start = setting(SERVICE, "ExecStart")
    changed = re.sub(r"^ExecStart=.*\nExecReload=.*\n", WITHOUT_GUNICORN, SERVICE, flags=re.MULTILINE)
    for number, service in enumerate((SERVICE, changed)):
        units = tmp_path / str(number)
        units.mkdir()
        here = re.sub(r"/srv/app/\.venv/bin/\w+", sys.executable, service.replace("=/srv/app\n", f"={units}\n"))
        (units / "app.service").write_text(here)
        (units / "app.socket").write_text(SOCKET)
        command = [analyze, "--man=no", "verify", str(units / "app.service"), str(units / "app.socket")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert [line for line in done.stderr.splitlines() if "app." in line] == []
    assert start.startswith(setting(SERVICE, "WorkingDirectory"))


def test_platforms_kill_after_the_worker_has_ended() -> None:
    assert int(setting(SERVICE, "TimeoutStopSec")) > GRACEFUL_TIMEOUT
    assert seconds(r"--stop-timeout (\d+)") > GRACEFUL_TIMEOUT
    assert seconds(r"stop_grace_period: (\d+)s") > GRACEFUL_TIMEOUT
    before = seconds(r'command: \[sleep, "(\d+)"\]')
    assert seconds(r"terminationGracePeriodSeconds: (\d+)") == before + GRACEFUL_TIMEOUT + 5
    assert seconds(r"--graceful-timeout (\d+)") < seconds(r"Heroku kills a dyno (\d+) seconds after")
    assert f"graceful_timeout = {GRACEFUL_TIMEOUT}\n" in re.sub(r"  # .*", "", block("gunicorn.conf.py"))


def test_the_command_of_the_container_gets_the_signal(directory: Path) -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", block("Dockerfile"), re.MULTILINE)
    words = json.loads(command)
    port = free_port()
    words[words.index("--bind") + 1] = f"127.0.0.1:{port}"
    variables = dict(re.findall(r"^ENV (\w+)=(.*)$", block("Dockerfile"), re.MULTILINE))
    words += ["--pid", str(directory / "pid")]
    with (
        running(directory, [sys.executable, "-m", *words], port, env={**os.environ, **variables}),
        connect(f"ws://127.0.0.1:{port}/echo", open_timeout=DEADLINE) as ws,
    ):
        ws.send("hello")
        assert ws.recv(DEADLINE) == "hello"
        os.kill(int((directory / "pid").read_text()), signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(DEADLINE)
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012


def test_the_procfile_serves_on_the_port_of_the_platform(directory: Path) -> None:
    (line,) = re.findall(r"^web: (.*)$", block("Procfile"), re.MULTILINE)
    port = free_port()
    words = server_command(line, port)
    with running(directory, words, port, env={**os.environ, "WEB_CONCURRENCY": "2"}):
        echoes(port)
        log = directory / f"log-{port}"
        wait_for(lambda: log.read_text().count("Booting worker") == 2, "both workers")
    asked = subprocess.run(
        [*words[: words.index("--bind")], "--print-config"],
        cwd=directory,
        env=environment({"PORT": "8123"}),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert re.search(r"^bind +.*0\.0\.0\.0:8123", asked.stdout, re.MULTILINE), asked.stdout + asked.stderr
