"""Proxies from Debian, started by their configuration text on loopback ports: nginx, HAProxy, Apache and Caddy."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from geventws.command import doctor, talk

from .servers import DEADLINE, missing, wait_for

MODULES = "/usr/lib/apache2/modules"
APACHE_MODULES = (
    *("mpm_event", "authz_core", "authz_host", "auth_basic", "authn_core", "authn_file", "authz_user", "alias", "dir"),
    *("proxy", "proxy_http", "proxy_wstunnel", "rewrite", "headers", "ssl", "socache_shmcb"),
)


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the doctor wait as a test on a busy machine must, and call nothing slow."""
    for module in (doctor, talk):
        monkeypatch.setattr(module, "TIMEOUT", DEADLINE)
    monkeypatch.setattr(talk, "ECHO_WAIT", 10.0)
    monkeypatch.setattr(doctor, "SLOW", DEADLINE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str, package: str) -> str:
    """Return where a program is, skipping the test that needs it where it is not."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        missing(f"{name}, from Debian's {package}")
    return found


@contextmanager
def running(
    command: list[str], directory: Path, ports: Iterable[int], env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a proxy until the block ends, from the moment it listens on all ports."""
    log = directory / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )

    def listening() -> bool:
        assert process.poll() is None, f"{command[0]} ended:\n{log.read_text()}"
        for port in ports:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    return False
        return True

    try:
        wait_for(listening, f"start of {command[0]}")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def nginx(directory: Path, http: str, ports: Iterable[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run nginx with what its block http holds."""
    temporary = "".join(
        f"{name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off;\npid {directory}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{http}\n}}\n"
    )
    command = [program("nginx", "nginx-light"), "-p", str(directory), "-e", "stderr", "-c"]
    with running([*command, str(directory / "nginx.conf")], directory, ports) as process:
        yield process


@contextmanager
def haproxy(directory: Path, text: str, ports: Iterable[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run HAProxy with this configuration."""
    (directory / "haproxy.cfg").write_text(text)
    command = [program("haproxy", "haproxy"), "-db", "-f", str(directory / "haproxy.cfg")]
    with running(command, directory, ports) as process:
        yield process


@contextmanager
def apache(directory: Path, hosts: str, ports: Iterable[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run Apache with these virtual hosts."""
    loads = "".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so\n" for name in APACHE_MODULES)
    listens = "".join(f"Listen 127.0.0.1:{port}\n" for port in ports)
    (directory / "apache.conf").write_text(
        f"ServerRoot {directory}\nServerName localhost\nPidFile {directory}/apache.pid\nDefaultRuntimeDir {directory}\n"
        f"Mutex posixsem\nErrorLog {directory}/error.log\nUser www-data\nGroup www-data\n"
        f"{loads}{listens}{hosts}"
    )
    command = [program("apache2", "apache2-bin"), "-D", "FOREGROUND", "-f", str(directory / "apache.conf")]
    with running(command, directory, ports) as process:
        yield process


@contextmanager
def caddy(directory: Path, text: str, ports: Iterable[int]) -> Iterator[Callable[[], None]]:
    """Run Caddy with this Caddyfile; give a function that reloads it."""
    admin = free_port()
    (directory / "Caddyfile").write_text(
        f"{{\nadmin 127.0.0.1:{admin}\nskip_install_trust\nauto_https disable_redirects\n}}\n{text}"
    )
    name = program("caddy", "caddy")
    arguments = ["--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"]
    home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}

    def reload() -> None:
        subprocess.run(
            [name, "reload", "--force", "--address", f"127.0.0.1:{admin}", *arguments],
            env={**os.environ, **home},
            capture_output=True,
            check=True,
            timeout=DEADLINE,
        )

    with running([name, "run", *arguments], directory, ports, home):
        yield reload
