"""Real proxies in front of real servers, with the configurations of docs/deploying.md.

By hand, `python -m tests.proxies` keeps WebSockets idle behind each proxy's own defaults, and says which it cuts.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import trustme
from websockets.protocol import State
from websockets.sync.client import ClientConnection, unix_connect

from .servers import DEADLINE, ROOT, Server, missing, serve, wait_for
from .test_readme import blocks, free_port

PAGE = (ROOT / "docs" / "deploying.md").read_text()
APACHE_DIRECTORY = "/usr/lib/apache2/modules"
APACHE_MODULES = ("mpm_event", "authz_core", "socache_shmcb", "ssl", "headers", "proxy", "proxy_http")

# Behind the app of the page.
MORE_ROUTES = """

import os

import geventws


@sockets.route("/unpinged", ping_interval=None)
def unpinged(ws):
    for message in ws:
        ws.send(message)


@app.route("/open")
def open_ones():
    return str(len(geventws.connections()))


@app.route("/pid")
def pid():
    return str(os.getpid())
"""


def block(first_line: str) -> str:
    """Return the one block of the page that begins with this line."""
    (found,) = (block.code for block in blocks(PAGE) if block.code.startswith(f"# {first_line}\n"))
    return found


def put(text: str, changes: dict[str, str]) -> str:
    """Return a text with each of these parts, all of which it has, replaced."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in:\n{text}"
        text = text.replace(old, new)
    return text


def find(program: str) -> str | None:
    """Return where a program is that may be in a system administrator's path alone."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


Certificate = tuple[str, str, ssl.SSLContext]


class Proxy:
    """One proxy, on a plain and a TLS port of the loopback interface. A subclass knows how one product is run."""

    name: str
    program: str
    unix = "unix:{}"  # how its configuration names an app on a Unix socket
    reloads_by: signal.Signals = signal.SIGHUP
    process: subprocess.Popen[bytes]

    def __init__(self, directory: Path, certificate: Certificate, idle: int | None) -> None:
        found = find(self.program)
        if found is None:
            missing(self.name)
        self.found = found
        self.directory = directory
        self.cert, self.key, self._context = certificate
        self.idle = idle  # seconds of its idle limit; its default if None
        self.port, self.tls_port = free_port(), free_port()

    def start(self, upstream: str) -> None:
        self.configure(upstream)
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for port in (self.port, self.tls_port):
            wait_for(lambda port=port: self._listens(port), f"start of {self.name}")  # type: ignore[misc]

    def _listens(self, port: int) -> bool:
        assert self.process.poll() is None, f"{self.name} ended:\n{self.log}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @property
    def config(self) -> Path:
        return self.directory / "config"

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.directory), "XDG_CONFIG_HOME": str(self.directory)}

    def configure(self, upstream: str) -> None:
        """Write the configuration for an app at HOST:PORT or unix:PATH."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def reload(self, upstream: str) -> None:
        """Ask the app at another address from now on."""
        self.configure(upstream)
        # It listens before it minds the signal.
        wait_for(lambda: self._catches(self.reloads_by), f"{self.name} minding {self.reloads_by.name}")
        self.process.send_signal(self.reloads_by)

    def _catches(self, number: int) -> bool:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> number - 1 & 1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    # As a client

    def _socket(self, tls: bool) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.tls_port if tls else self.port), DEADLINE)
        if tls:
            # A client in two threads hangs now and then on the session tickets of TLS 1.3.
            self._context.maximum_version = ssl.TLSVersion.TLSv1_2
            sock = self._context.wrap_socket(sock, server_hostname="localhost")
        return sock

    def origin(self, tls: bool) -> str:
        """Return the origin of its pages."""
        return f"https://localhost:{self.tls_port}" if tls else f"http://localhost:{self.port}"

    def connect(self, path: str, *, tls: bool = False, origin: str | None = None) -> ClientConnection:
        """Return a client of the websockets package, to be used in a with statement."""
        sock, host = self._socket(tls), self.origin(tls).partition("://")[2]
        sock.settimeout(None)
        options: dict[str, Any] = {"compression": None, "open_timeout": DEADLINE, "ping_interval": None}
        client: ClientConnection = unix_connect(uri=f"ws://{host}{path}", sock=sock, origin=origin, **options)
        return client

    def get(self, path: str, tls: bool = False) -> tuple[int, str]:
        """Return status and body of the answer to a GET."""
        with closing(http.client.HTTPConnection(self.origin(tls).partition("://")[2])) as connection:
            connection.sock = self._socket(tls)
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


class Nginx(Proxy):
    name = program = "nginx"
    unix = "http://unix:{}"
    limits = False  # whether those of the page are on

    def configure(self, upstream: str) -> None:
        target = self.unix.format(upstream[5:]) if upstream.startswith("unix:") else f"http://{upstream}"
        site = put(
            block("/etc/nginx/conf.d/app.conf"),
            {
                "listen 80;": f"listen 127.0.0.1:{self.port};",
                "listen 443 ssl;": f"listen 127.0.0.1:{self.tls_port} ssl;",
                "/etc/ssl/app.pem": self.cert,
                "/etc/ssl/app.key": self.key,
                "http://127.0.0.1:8000": target,
            },
        )
        if self.limits:
            zones, uses = block("beside the server").split("# in its location\n")
            site = zones + put(site, {"location / {\n": f"location / {{\n{uses}"})
        if self.idle is not None:
            site = f"proxy_read_timeout {self.idle}s;\n{site}"
        places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{name}_temp_path {self.directory}/{name};\n" for name in places)
        user = "user root;\n" if os.geteuid() == 0 else ""  # or its workers could not enter the app's directory
        self.config.write_text(
            f"{user}daemon off;\npid {self.directory}/pid;\nerror_log stderr;\nworker_processes 1;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}{site}\n}}\n"
        )

    def command(self) -> list[str]:
        return [self.found, "-p", str(self.directory), "-e", "stderr", "-c", str(self.config)]


class HAProxy(Proxy):
    name, program = "HAProxy", "haproxy"
    unix = "unix@{}"
    reloads_by = signal.SIGUSR2

    def configure(self, upstream: str) -> None:
        both = self.directory / "both.pem"
        both.write_text(Path(self.cert).read_text() + Path(self.key).read_text())
        text = put(
            block("/etc/haproxy/haproxy.cfg"),
            {
                "bind :80\n": f"bind 127.0.0.1:{self.port}\n",
                "bind :443 ": f"bind 127.0.0.1:{self.tls_port} ",
                "/etc/ssl/app.pem": str(both),
                "127.0.0.1:8000": self.unix.format(upstream[5:]) if upstream.startswith("unix:") else upstream,
                "timeout tunnel 1h": "timeout tunnel 1h" if self.idle is None else f"timeout tunnel {self.idle}s",
            },
        )
        self.config.write_text(text)

    def command(self) -> list[str]:
        return [self.found, "-W", "-f", str(self.config)]


class Caddy(Proxy):
    name, program = "Caddy", "caddy"
    unix = "unix/{}"

    def configure(self, upstream: str) -> None:
        site = block("/etc/caddy/Caddyfile")
        target = self.unix.format(upstream[5:]) if upstream.startswith("unix:") else upstream
        tls = f"https://localhost:{self.tls_port} {{\n    bind 127.0.0.1\n    tls {self.cert} {self.key}"
        plain = f"http://localhost:{self.port} {{\n    bind 127.0.0.1"
        sites = [put(site, {"app.example {": head, "127.0.0.1:8000": target}) for head in (tls, plain)]
        self.config.write_text("\n".join([f"{{\n    admin unix/{self._admin}\n    auto_https off\n}}", *sites]))

    @property
    def _admin(self) -> Path:
        return self.directory / "admin.sock"

    def command(self) -> list[str]:
        return [self.found, "run", "--config", str(self.config), "--adapter", "caddyfile"]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "XDG_DATA_HOME": str(self.directory)}

    def reload(self, upstream: str) -> None:
        self.configure(upstream)
        command = [self.found, "reload", "--config", str(self.config), "--adapter", "caddyfile"]
        command += ["--address", f"unix/{self._admin}"]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr


class Apache(Proxy):
    name, program = "Apache", "apache2"
    unix = "unix:{}|http://localhost/"
    reloads_by = signal.SIGUSR1

    def configure(self, upstream: str) -> None:
        target = self.unix.format(upstream[5:]) if upstream.startswith("unix:") else f"http://{upstream}/"
        site = put(block("/etc/apache2/sites-available/app.conf"), {"http://127.0.0.1:8000/": target})
        secure = {"*:443": f"127.0.0.1:{self.tls_port}", "/etc/ssl/app.pem": self.cert, "/etc/ssl/app.key": self.key}
        plain = "\n".join(line for line in site.splitlines() if not line.startswith("    SSL"))
        lines = [
            *(f"LoadModule {name}_module {APACHE_DIRECTORY}/mod_{name}.so" for name in APACHE_MODULES),
            f"ServerRoot {self.directory}",
            f"DefaultRuntimeDir {self.directory}",
            f"PidFile {self.directory}/pid",
            f"Mutex file:{self.directory}",
            "ErrorLog /dev/stderr",
            "ServerName localhost",
            *(["User www-data", "Group www-data"] if os.geteuid() == 0 else []),
            "StartServers 1",
            *(f"Listen 127.0.0.1:{port}" for port in (self.port, self.tls_port)),
            *([f"Timeout {self.idle}"] if self.idle is not None else []),
            put(site, secure),
            put(plain, {"*:443": f"127.0.0.1:{self.port}"}),
        ]
        self.config.write_text("\n".join([*lines, ""]))

    def command(self) -> list[str]:
        return [self.found, "-D", "FOREGROUND", "-f", str(self.config)]


PROXIES: tuple[type[Proxy], ...] = (Nginx, HAProxy, Caddy, Apache)


@contextmanager
def in_front(
    kind: type[Proxy], directory: Path, upstream: str, certificate: Certificate, *, idle: int | None = None
) -> Iterator[Proxy]:
    """Run a proxy in front of an app at HOST:PORT or unix:PATH until the block ends."""
    proxy = kind(directory, certificate, idle)
    try:
        proxy.start(upstream)
        yield proxy
    finally:
        if hasattr(proxy, "process"):
            proxy.stop()


@contextmanager
def deployed(directory: Path, *, front_end: str, unix: bool = False, ping_interval: float = 20) -> Iterator[Server]:
    """Serve the app of the page."""
    (directory / "deployed.py").write_text(block("app.py") + MORE_ROUTES)
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{directory}", "GEVENTWS_PING_INTERVAL": str(ping_interval)}
    with serve("deployed:app", directory, front_end=front_end, unix=unix, env=env) as server:
        yield server


@contextmanager
def open_directory() -> Iterator[Path]:
    """Give a new directory whose Unix sockets a proxy of another user may use, as Apache's workers are."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def _idle(seconds: float) -> None:
    """Keep two WebSockets idle behind each proxy, one with our pings and one without; say what becomes of them."""
    authority = trustme.CA()
    issued, context = authority.issue_cert("localhost"), ssl.create_default_context()
    authority.configure_trust(context)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificate = str(directory / "cert.pem"), str(directory / "key.pem"), context
        issued.cert_chain_pems[0].write_to_path(certificate[0])
        issued.private_key_pem.write_to_path(certificate[1])
        server = stack.enter_context(deployed(directory, front_end="worker"))
        clients = {}
        for kind in PROXIES:
            own = directory / kind.name
            own.mkdir()
            idle = 60 if kind is HAProxy else None  # it has no default, and does not start without
            proxy = stack.enter_context(in_front(kind, own, f"127.0.0.1:{server.port}", certificate, idle=idle))
            for path in ("/echo", "/unpinged"):
                clients[kind.name, path] = stack.enter_context(proxy.connect(path))
        begin = time.monotonic()
        ends: dict[tuple[str, str], float] = {}
        while time.monotonic() < begin + seconds:
            time.sleep(0.1)
            for key, client in clients.items():
                if client.state is not State.OPEN and key not in ends:
                    ends[key] = time.monotonic() - begin
        for (name, path), client in clients.items():
            if (name, path) in ends:
                print(f"{name} {path}: cut after {ends[name, path]:.1f} s")
            else:
                client.send("hello")
                print(f"{name} {path}: after {seconds:g} s still says {client.recv(DEADLINE)!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90)
    _idle(parser.parse_args().seconds)
