"""A Redis server for rooms: its connections, commands and scripts. The only module that imports redis.

Of redis-py a Connection is used, over sockets of gevent: so the hub runs on, patched or not. Its clients, pools and
PubSub are not: they send again what a server may have done already, and connect anew without a word.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha1
from typing import Any, TypeVar

import gevent.socket
import gevent.ssl
from gevent import monkey
from gevent.lock import BoundedSemaphore

from ..errors import MissingPackage
from .address import Address
from .bus import Away, Refused

try:
    import redis
    from redis import exceptions
    from redis.backoff import NoBackoff
    from redis.connection import Connection
    from redis.retry import Retry
except ImportError as exc:
    raise MissingPackage(f"rooms on Redis need the redis package: pip install 'geventws[redis]' ({exc})") from exc
if redis.VERSION < (5,):
    raise MissingPackage(f"rooms on Redis need redis-py 5, not {redis.__version__}: pip install -U 'geventws[redis]'")

T = TypeVar("T")

TIMEOUT = 2.5  # seconds that an answer may take
GROUP = 500  # channels of one command
SPARE = 8  # connections that a thread keeps
# What a server says that is not what it was, or not yet: another may be, or it later.
PASSING = ("READONLY", "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS", "UNBLOCKED")
PASSING_ERRORS = (exceptions.ReadOnlyError, exceptions.ClusterDownError, exceptions.TryAgainError)

_local = monkey.get_original("_thread", "_local")


class _Connection(Connection):  # type: ignore[misc]
    """A connection over gevent's sockets, which does nothing a second time by itself."""

    def __init__(self, address: Address, host: tuple[str, int], timeout: float, *, is_sentinel: bool = False) -> None:
        settings = address.parameters
        names = ("sentinel_username", "sentinel_password") if is_sentinel else ()
        username, password = [settings.get(name) for name in names] or [address.username, address.password]
        super().__init__(
            *host,
            db=0 if is_sentinel else address.database,
            username=username,
            password=password,
            socket_timeout=timeout,
            socket_connect_timeout=TIMEOUT,
            protocol=2,  # redis-py 8 would else read confirmations of a subscription by recursion
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
        self._address = address
        self.scripts: set[str] = set()  # that the server has had from this connection
        self.era = 0  # how many feeds there were before it

    def _connect(self) -> Any:
        address = self._address
        if address.path:
            sock = gevent.socket.socket(gevent.socket.AF_UNIX)
            sock.settimeout(TIMEOUT)
            sock.connect(address.path)
        else:
            sock = gevent.socket.create_connection((self.host, self.port), TIMEOUT)
            sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
            sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_KEEPALIVE, 1)
        if address.tls:
            sock = _context(address.parameters).wrap_socket(sock, server_hostname=self.host)
        sock.settimeout(self.socket_timeout)
        return sock


def _context(parameters: dict[str, str]) -> Any:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority := parameters.get("ssl_ca_certs"):
        context.load_verify_locations(authority)
    else:
        context.load_default_certs()
    if certificate := parameters.get("ssl_certfile"):
        context.load_cert_chain(certificate, parameters.get("ssl_keyfile"))
    context.check_hostname = parameters.get("ssl_check_hostname", "true").lower() not in ("0", "no", "false")
    return context


class _Pool(_local):  # type: ignore[misc, valid-type]
    """The connections of this OS thread that nobody uses now. A socket of gevent belongs to one hub."""

    def __init__(self) -> None:
        self.free: list[_Connection] = []


class Server:
    """A Redis server, or Valkey: commands and scripts, each on a connection that nobody else uses meanwhile."""

    def __init__(self, address: Address, prefix: str) -> None:
        """Connect to nothing yet. prefix is what all its keys and channels begin with."""
        self.shown = address.shown
        self._address = address
        self._prefix = prefix
        self._pool = _Pool()
        self._era = 0  # feeds that were made

    def call(self, *command: Any) -> Any:
        """Return what a command gives. Raises Away or Refused."""
        return self._do(_call, *command)

    def run(self, script: str, keys: Sequence[str], *args: Any) -> Any:
        """Return what a script gives. Raises Away or Refused."""
        return self._do(_run, script, keys, args)

    def outcome(self, answer: bytes) -> str | Refused:
        """Return what a script gives, or why it refuses, which begins with "!". Raises Away."""
        text = answer.decode(errors="replace")
        if not text.startswith("!"):
            return text
        text = re.sub(r"^@\S+: [0-9]+: ", "", text[1:]).lstrip("-").strip()  # Redis 6.2 names the line of the script
        if text.startswith(PASSING):
            raise Away(f"{self.shown}: {text}")
        return Refused(self._explain(text))

    def feed(self, silence: float) -> Feed:
        """Return a new connection that brings what is said; all others are made anew, to the server that this finds."""
        self._era += 1
        return Feed(self, self._connect(silence), self._prefix)

    def close(self) -> None:
        """Close the connections of this thread that nobody uses."""
        while self._pool.free:
            self._pool.free.pop().disconnect()

    def _connect(self, timeout: float = TIMEOUT) -> _Connection:
        era = self._era
        connection = self._new(self._host(), timeout)
        connection.era = era
        self.ask(connection, connection.connect)
        return connection

    def _new(self, host: tuple[str, int], timeout: float, *, is_sentinel: bool = False) -> _Connection:
        try:
            return _Connection(self._address, host, timeout, is_sentinel=is_sentinel)
        except OSError as exc:  # redis-py reads its version from a file: too many may be open
            raise Away(f"{self.shown}: {exc}") from exc

    def _host(self) -> tuple[str, int]:
        address = self._address
        if not address.service:
            return address.hosts[0] if address.hosts else ("", 0)
        answers = []
        for host in address.hosts:
            sentinel = self._new(host, TIMEOUT, is_sentinel=True)
            try:
                answer = self.ask(sentinel, _call, sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
                if answer:
                    return answer[0].decode(), int(answer[1])
                answers.append(f"knows no service {address.service!r}")
            except (Away, Refused) as exc:
                answers.append(str(exc))
            finally:
                sentinel.disconnect()
        raise Away(f"no sentinel of {self.shown} tells where the server is: {'; '.join(answers)}")

    def ask(self, connection: _Connection, function: Callable[..., T], *args: Any) -> T:
        """Return what function does with a connection. Raises Away, and closes it, or Refused."""
        try:
            return function(*args)
        except exceptions.AuthenticationError as exc:
            connection.disconnect()
            raise Away(f"{self.shown} refuses the user or password that its URL has: {exc}") from exc
        except exceptions.ResponseError as exc:
            if str(exc).startswith(PASSING) or isinstance(exc, PASSING_ERRORS):
                connection.disconnect()
                raise Away(f"{self.shown}: {exc}") from exc
            raise Refused(self._explain(str(exc))) from exc
        except (exceptions.RedisError, OSError) as exc:
            connection.disconnect()
            raise Away(f"{self.shown}: {exc}") from exc
        except BaseException:  # an answer that nobody has read must not be the next one's
            connection.disconnect()
            raise

    def _explain(self, text: str) -> str:
        """Return what the server says, and for a missing right the rule to write."""
        if "NOPERM" not in text and "permission" not in text and "user executing the script" not in text:
            return text
        rights = "+@read +@write +@pubsub +@scripting +@connection +time"
        return f"{text}: its user needs ~{self._prefix}* &{self._prefix}* {rights}"

    def _do(self, function: Callable[..., T], *args: Any) -> T:
        """Return what function does with a connection of this thread that nobody else uses meanwhile."""
        free = self._pool.free
        while free and free[-1].era < self._era:
            free.pop().disconnect()
        connection = free.pop() if free else self._connect()
        try:
            result = self.ask(connection, function, connection, *args)
        except Away:
            # Whatever ended this one has ended the others too.
            while free:
                free.pop().disconnect()
            raise
        finally:
            if connection._sock is not None and connection.era == self._era and len(free) < SPARE:
                free.append(connection)
            else:
                connection.disconnect()
        return result


class Feed:
    """A connection to Redis on which it says what is new."""

    def __init__(self, server: Server, connection: _Connection, prefix: str) -> None:
        self._server = server
        self._connection = connection
        self._prefix = prefix
        self._lock = BoundedSemaphore()  # of writing: a command must not end up inside another

    def add(self, topics: Sequence[str]) -> None:
        """Ask for topics."""
        self._send("SUBSCRIBE", topics)

    def remove(self, topics: Sequence[str]) -> None:
        """Ask for topics no more."""
        self._send("UNSUBSCRIBE", topics)

    def _send(self, command: str, topics: Sequence[str]) -> None:
        with self._lock:
            for i in range(0, len(topics), GROUP):
                channels = [self._prefix + topic for topic in topics[i : i + GROUP]]
                self._server.ask(self._connection, self._connection.send_command, command, *channels)

    def read(self) -> tuple[str, bytes | None] | None:
        """Return a topic and what is said there, or None that says it is heard from now on; None after a silence."""
        while True:
            try:
                answer = self._connection.read_response(disconnect_on_error=False)
            except exceptions.TimeoutError:
                return None
            except Exception as exc:
                self._server.ask(self._connection, _raise, exc)
            if isinstance(answer, list) and len(answer) == 3:
                kind, channel, data = answer
                topic = channel[len(self._prefix.encode()) :].decode() if channel else ""
                if kind == b"message":
                    return topic, data
                if kind == b"subscribe":
                    return topic, None

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.disconnect()


def _raise(exc: Exception) -> None:
    raise exc


def _call(connection: _Connection, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response()


_hashes: dict[str, str] = {}


def _run(connection: _Connection, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
    """Run a script by its hash once the server has it. It never has, where it was emptied or is another one."""
    digest = _hashes.get(script) or _hashes.setdefault(script, sha1(script.encode()).hexdigest())
    if digest in connection.scripts:
        with suppress(exceptions.NoScriptError):
            return _call(connection, "EVALSHA", digest, len(keys), *keys, *args)
    answer = _call(connection, "EVAL", script, len(keys), *keys, *args)
    connection.scripts.add(digest)
    return answer
