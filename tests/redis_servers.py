"""Redis servers of the tests' own, and a proxy before one that cuts, stalls and diverts."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from .servers import DEADLINE, missing, wait_for


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RedisServer:
    """A redis-server on a port of its own."""

    def __init__(self, directory: Path, *options: str, sentinel: Path | None = None) -> None:
        """Start one. Options are as its command line has them; it keeps nothing on disk unless they say so.

        sentinel is a configuration file, with which it is a sentinel.
        """
        if shutil.which("redis-server") is None:
            missing("redis-server is not installed")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.options = list(options)
        self.password: str | None = None
        self._sentinel = sentinel
        self.start()

    @property
    def url(self) -> str:
        """The address of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> Any:
        """Return a client of the redis package."""
        return redis.Redis(port=self.port, password=self.password, socket_timeout=DEADLINE, protocol=2, **options)

    def start(self) -> None:
        """Start it, again if it was stopped."""
        command = ["redis-server", *([str(self._sentinel), "--sentinel"] if self._sentinel else ["--save", ""])]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log)
        wait_for(self._answers, "start of redis-server")

    def _answers(self) -> bool:
        with suppress(redis.exceptions.RedisError):
            with self.client() as client:
                client.ping()
            return True
        return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        self.process.wait(DEADLINE)

    def pause(self) -> None:
        """Have it answer nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it answer again."""
        self.process.send_signal(signal.SIGCONT)

    def kill_clients(self, kind: str) -> int:
        """End the connections of a kind, "normal" or "pubsub"; return how many."""
        with self.client() as client:
            return int(client.execute_command("CLIENT", "KILL", "TYPE", kind))


class Proxy:
    """Passes connections on to a server, and does to them what networks do. Runs in threads of its own."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.stalls = False  # what the server says is held back
        self.refuses = False
        self.cut_reply: Callable[[bytes, bytes], bool] | None = None  # of a request and reply: close before the reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._go_on = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    @property
    def url(self) -> str:
        """The address to use."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), DEADLINE)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._pairs.append((client, server))
            self._start(self._join, client, server)

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        asked = [b""]
        back = threading.Thread(target=self._pass, args=(server, client, asked, False), daemon=True)
        back.start()
        self._pass(client, server, asked, True)
        back.join()
        self._pairs.remove((client, server))
        client.close()
        server.close()

    def _pass(self, source: socket.socket, target: socket.socket, asked: list[bytes], is_request: bool) -> None:
        try:
            while data := source.recv(65536):
                if is_request:
                    asked[0] = data
                else:
                    with self._go_on:
                        self._go_on.wait_for(lambda: not self.stalls)
                    if self.cut_reply is not None and self.cut_reply(asked[0], data):
                        break
                target.sendall(data)
        except OSError:
            pass
        _shut(source, target)

    def stall(self, stalls: bool) -> None:
        """Hold back what the server says, or let it go on."""
        with self._go_on:
            self.stalls = stalls
            self._go_on.notify_all()

    def cut(self) -> None:
        """End all connections."""
        for pair in list(self._pairs):
            _shut(*pair)

    def divert(self, port: int) -> None:
        """Lead to another server, as a failover does."""
        self.target = port
        self.cut()

    def close(self) -> None:
        """End it all."""
        self.stall(False)
        _shut(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE)
        self._listener.close()


def _shut(*sockets: socket.socket) -> None:
    for sock in sockets:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
