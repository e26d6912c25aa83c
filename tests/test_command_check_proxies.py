"""python -m geventws check, against proxies that are really set up wrongly: each has a cause and a cure of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from socket import socket
from typing import Any, NamedTuple

import pytest

from geventws.command import check

from . import broken
from .broken import free_port
from .servers import FRONT_ENDS, serve

pytestmark = pytest.mark.slow  # it starts servers


class Row(NamedTuple):
    """A set-up, the check that must fail (or be risky), and words of the cause and of the cure."""

    text: str
    name: str
    cause: str
    cure: str
    path: str = "/echo"
    arguments: tuple[str, ...] = ()
    scheme: str = "ws"


UPGRADE = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"
HTTP = "proxy_http_version 1.1;"
HOST = "proxy_set_header Host $http_host;"
GOOD = f"{HTTP} {UPGRADE} {HOST}"
TLS = "listen 127.0.0.1:%(port)d ssl; ssl_certificate %(cert)s; ssl_certificate_key %(key)s;"
LISTEN = "listen 127.0.0.1:%(port)d;"
PASS = "proxy_pass http://127.0.0.1:%(app)d;"

# %(port)d is the proxy's own, %(app)d the app's, %(down)d of nobody, %(silent)d of one who never answers.
NGINX = {
    "bare": Row(f"{LISTEN} location / {{ {PASS} }}", "handshake", "proxy removed Upgrade", "nginx: proxy_http_version"),
    "HTTP/1.0": Row(
        f"{LISTEN} location / {{ {PASS} {UPGRADE} }}", "handshake", "older HTTP", "proxy_http_version 1.1;"
    ),
    "no Connection": Row(
        f"{LISTEN} location / {{ {PASS} {HTTP} proxy_set_header Upgrade $http_upgrade; }}",
        "handshake",
        "changed the header Connection",
        "proxy_set_header Connection upgrade;",
    ),
    "no Host": Row(f"{LISTEN} location / {{ {PASS} {HTTP} {UPGRADE} }}", "own origin", "proxy changed Host", HOST),
    "Host without its port": Row(
        f"{LISTEN} location / {{ {PASS} {HTTP} {UPGRADE} proxy_set_header Host $host; }}",
        "own origin",
        "the app was asked for host 127.0.0.1: the proxy changed Host",
        "($host has no port)",
    ),
    "an error page over the 403": Row(
        f"{LISTEN} location / {{ {PASS} {HTTP} {UPGRADE} proxy_intercept_errors on; error_page 403 /sorry; }}"
        "location = /sorry { internal; return 403 sorry; }",
        "own origin",
        "only the handshake with Origin http://127.0.0.1:%(port)d is refused",
        HOST,
    ),
    "an error page over the 426": Row(
        f"{LISTEN} location / {{ {PASS} proxy_intercept_errors on; error_page 426 /sorry; }}"
        "location = /sorry { internal; return 426 sorry; }",
        "handshake",
        "a proxy removed Upgrade",
        "proxy_http_version",
    ),
    "ws on the port of TLS": Row(
        f"{TLS} location / {{ {PASS} {GOOD} }}", "handshake", "this port speaks TLS", "use wss://"
    ),
    "wss on a port without TLS": Row(
        f"{LISTEN} location / {{ {PASS} {GOOD} }}", "TLS", "does not speak TLS", "use ws://", scheme="wss"
    ),
    "https alone": Row(
        f"{LISTEN} return 301 https://$host$request_uri;", "handshake", "follow no redirect", "use wss://"
    ),
    "a login elsewhere": Row(
        f"{LISTEN} location / {{ return 302 /login; }}", "handshake", "redirected to", "--header 'Cookie:"
    ),
    "a password": Row(
        f"{LISTEN} location / {{ auth_basic closed; auth_basic_user_file /dev/null; {PASS} {GOOD} }}",
        "handshake",
        "a login is wanted",
        "Authorization",
    ),
    "forbidden": Row(f"{LISTEN} location / {{ deny all; }}", "handshake", "a rule of the proxy", "--via"),
    "a single-page app": Row(
        f"{LISTEN} root %(pages)s; location / {{ try_files $uri /index.html; }}",
        "handshake",
        "answered with a page",
        "a rule of its own",
    ),
    "another path": Row(
        f"{LISTEN} root %(pages)s; location /ws/ {{ {PASS} {GOOD} }}", "handshake", "no such page", "correct the path"
    ),
    "the app is down": Row(
        f"{LISTEN} location / {{ proxy_pass http://127.0.0.1:%(down)d; {GOOD} }}", "handshake", "cannot reach", "start"
    ),
    "the app is stuck": Row(
        f"{LISTEN} location / {{ proxy_pass http://127.0.0.1:%(silent)d; {GOOD} proxy_read_timeout 1s; }}",
        "handshake",
        "cannot reach",
        "start",
    ),
    "two at once": Row(
        f"{LISTEN} location / {{ {PASS} {GOOD} limit_conn sockets 2; }}",
        "three at once",
        "three at once do not",
        "limit_conn",
    ),
    "a short idle time": Row(
        f"{LISTEN} location / {{ {PASS} {GOOD} proxy_read_timeout 3s; }}",
        "idle",
        "an idle timeout on the way",
        "or raise it: nginx: proxy_read_timeout",
        arguments=("--idle", "30"),
    ),
    "no such route": Row(f"{LISTEN} location / {{ {PASS} {GOOD} }}", "handshake", "no such route", "path", "/nothing"),
    "a route for pages": Row(
        f"{LISTEN} location / {{ proxy_pass http://127.0.0.1:%(plain)d; {GOOD} }}",
        "handshake",
        "this route for pages alone",
        "websocket=True",
        "/page",
    ),
    "bare, before an app without Sockets": Row(
        f"{LISTEN} location / {{ proxy_pass http://127.0.0.1:%(plain)d; }}",
        "handshake",
        "a plain request: a proxy removed Upgrade",
        "proxy_http_version",
    ),
    "a server that is not ours": Row(
        f"{LISTEN} location / {{ proxy_pass http://127.0.0.1:%(foreign)d; {GOOD} }}",
        "handshake",
        "its server is not geventws",
        "-k geventws.Worker",
    ),
    "a view that fails at once": Row(
        f"{LISTEN} location / {{ {PASS} {GOOD} }}", "handshake", "view failed", "traceback", "/exit-early"
    ),
    "a view that fails later": Row(
        f"{LISTEN} location / {{ {PASS} {GOOD} }}", "echo", "closed with 1011: the view failed", "traceback", "/raise"
    ),
    "any origin": Row(
        f"{LISTEN} location / {{ {PASS} {HTTP} {UPGRADE} proxy_set_header Host stranger.example; "
        'proxy_set_header Origin ""; }',
        "foreign origin",
        "a page of any site may connect",
        "origins",
    ),
    "another site": Row(
        f"{LISTEN} location / {{ {PASS} {GOOD} }}",
        "own origin",
        "lets no page of https://other.example connect",
        "GEVENTWS_ORIGINS='same-host https://other.example'",
        arguments=("--origin", "https://other.example"),
    ),
    "an unknown subprotocol": Row(
        f"{LISTEN} location / {{ {PASS} {GOOD} }}",
        "subprotocol",
        "Chrome ends a connection",
        "GEVENTWS_SUBPROTOCOLS=graphql-ws",
        arguments=("--subprotocol", "graphql-ws"),
    ),
}
HAPROXY = {
    "Upgrade removed": Row(
        "http-request del-header Upgrade\nserver a 127.0.0.1:%(app)d", "handshake", "proxy removed Upgrade", "nginx: "
    ),
    "another Host": Row(
        "http-request set-header Host backend.internal\nserver a 127.0.0.1:%(app)d",
        "own origin",
        "was asked for host backend.internal: the proxy changed Host",
        "Host",
    ),
    "the app is down": Row("server a 127.0.0.1:%(down)d", "handshake", "cannot reach the app", "start"),
    "https alone": Row("redirect scheme https", "handshake", "follow no redirect", "use wss://"),
    "forbidden": Row("http-request deny", "handshake", "a rule of the proxy", "--via"),
    "a password": Row("http-request auth\nserver a 127.0.0.1:%(app)d", "handshake", "a login is wanted", "--header"),
    "two at once": Row(
        "server a 127.0.0.1:%(app)d maxconn 2\ntimeout queue 500", "three at once", "three at once do not", "maxconn"
    ),
    "two at once for each address": Row(
        "stick-table type ip size 10 store conn_cur\nhttp-request track-sc0 src\n"
        "http-request deny deny_status 429 if { sc_conn_cur(0) gt 2 }\nserver a 127.0.0.1:%(app)d",
        "three at once",
        "three at once do not",
        "stick-table",
    ),
    "a short idle time": Row(
        "timeout server 3s\nserver a 127.0.0.1:%(app)d",
        "idle",
        "an idle timeout on the way",
        "HAProxy: timeout tunnel 1h",
        arguments=("--idle", "30"),
    ),
}
APACHE = {
    "bare": Row('ProxyPass "/" "http://127.0.0.1:%(app)d/"', "handshake", "proxy removed Upgrade", "upgrade=websocket"),
    "no Host": Row(
        'ProxyPass "/" "http://127.0.0.1:%(app)d/" upgrade=websocket',
        "own origin",
        "changed Host",
        "ProxyPreserveHost On",
    ),
    "an error page over the 403": Row(
        'ProxyPass "/" "http://127.0.0.1:%(app)d/" upgrade=websocket\nProxyErrorOverride On',
        "own origin",
        "only the handshake with Origin",
        "ProxyPreserveHost On",
    ),
    "the app is down": Row(
        'ProxyPass "/" "http://127.0.0.1:%(down)d/" upgrade=websocket', "handshake", "cannot reach the app", "start"
    ),
    "a short idle time": Row(
        'ProxyPreserveHost On\nTimeout 3\nProxyPass "/" "http://127.0.0.1:%(app)d/" upgrade=websocket',
        "idle",
        "an idle timeout on the way",
        "Apache: ProxyTimeout",
        arguments=("--idle", "30"),
    ),
    "ws on the port of TLS": Row(
        'SSLEngine On\nSSLCertificateFile %(cert)s\nSSLCertificateKeyFile %(key)s\nProxyPass "/" "http://127.0.0.1:%(app)d/"',
        "handshake",
        "this port speaks TLS",
        "use wss://",
    ),
    "https alone": Row('Redirect "/" "https://localhost/"', "handshake", "follow no redirect", "use wss://"),
    "a single-page app": Row(
        'DocumentRoot %(pages)s\nFallbackResource "/index.html"',
        "handshake",
        "answered with a page",
        "a rule of its own",
    ),
    "forbidden": Row('<Location "/">\nRequire all denied\n</Location>', "handshake", "a rule of the proxy", "--via"),
}
CADDY = {
    "another Host": Row(
        "reverse_proxy 127.0.0.1:%(app)d {\nheader_up Host {upstream_hostport}\n}",
        "own origin",
        "was asked for host 127.0.0.1:%(app)d: the proxy changed Host",
        "remove header_up Host",
    ),
    "the app is down": Row("reverse_proxy 127.0.0.1:%(down)d", "handshake", "cannot reach the app", "start"),
    "a single-page app": Row(
        "root * %(pages)s\ntry_files {path} /index.html\nfile_server", "handshake", "answered with a page", "a rule"
    ),
    "https alone": Row("redir https://{host}{uri}", "handshake", "follow no redirect", "use wss://"),
    "forbidden": Row("respond 403", "handshake", "a rule of the proxy", "--via"),
    "ws on the port of TLS": Row(
        "tls %(cert)s %(key)s\nreverse_proxy 127.0.0.1:%(app)d", "handshake", "this port speaks TLS", "use wss://"
    ),
    "its own certificate": Row(
        "tls internal\nreverse_proxy 127.0.0.1:%(app)d", "TLS", "certificate is refused", "SSL_CERT_FILE", scheme="wss"
    ),
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    broken.be_patient(monkeypatch)


class Ground(NamedTuple):
    """What all set-ups share: what their texts name, and a directory that any user may read."""

    values: dict[str, Any]
    directory: Path


@pytest.fixture(scope="module", params=FRONT_ENDS)
def ground(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: tuple[str, str, Any]
) -> Iterator[Ground]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        (directory / "index.html").write_text("<title>a page</title>")
        apps = {}
        for name, app in {"app": "tests.apps:app", "plain": "tests.apps_check:app"}.items():
            where = tmp_path_factory.mktemp(name)
            apps[name] = stack.enter_context(serve(app, where, front_end=request.param)).port
        arguments = ["-k", "gevent"]  # the last one counts
        where = tmp_path_factory.mktemp("foreign")
        apps["foreign"] = stack.enter_context(
            serve("tests.apps:app", where, front_end="worker", arguments=arguments)
        ).port
        silent = stack.enter_context(closing(socket()))
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        ports = {"down": free_port(), "silent": silent.getsockname()[1]}
        files = {"cert": certificate[0], "key": certificate[1], "pages": str(directory)}
        yield Ground({**apps, **ports, **files}, directory)


def texts(rows: dict[str, Row], ground: Ground) -> dict[int, str]:
    """Return each set-up's port and text."""
    found = {}
    for row in rows.values():
        port = free_port()
        found[port] = row.text % {**ground.values, "port": port}
    return found


def checked(row: Row, port: int, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Return the exit status, what was found of the row's own check, and all of it."""
    status = check.main([f"{row.scheme}://127.0.0.1:{port}{row.path}", "--json", *row.arguments])
    found = json.loads(capsys.readouterr().out)
    (result,) = [each for each in found["checks"] if each["name"] == row.name]
    return status, result, found


def assert_told(row: Row, ground: Ground, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    status, result, found = checked(row, port, capsys)
    assert result["cause"], found
    assert row.cause % {**ground.values, "port": port} in result["cause"]
    assert row.cure in result["cure"]
    assert (status, found["ok"]) == ((1, False) if result["result"] == "failed" else (0, True))
    told = [each["name"] for each in found["checks"] if each["cause"]]
    assert told == [row.name], "a set-up has one fault, and no other is told"


@pytest.fixture(scope="module")
def behind_nginx(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    sites = texts(NGINX, ground)
    http = "limit_conn_zone $binary_remote_addr zone=sockets:1m;\n" + "".join(
        f"server {{ {text} }}\n" for text in sites.values()
    )
    with broken.nginx(tmp_path_factory.mktemp("nginx"), http, sites):
        yield dict(zip(NGINX, sites, strict=True))


@pytest.mark.parametrize("name", NGINX)
def test_nginx(behind_nginx: dict[str, int], ground: Ground, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_told(NGINX[name], ground, behind_nginx[name], capsys)


@pytest.fixture(scope="module")
def behind_haproxy(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    sites = texts(HAPROXY, ground)
    settings = "defaults\nmode http\ntimeout connect 5s\ntimeout client 60s\ntimeout server 60s\n"
    text = settings + "".join(f"listen p{port}\nbind 127.0.0.1:{port}\n{site}\n" for port, site in sites.items())
    with broken.haproxy(tmp_path_factory.mktemp("haproxy"), text, sites):
        yield dict(zip(HAPROXY, sites, strict=True))


@pytest.mark.parametrize("name", HAPROXY)
def test_haproxy(behind_haproxy: dict[str, int], ground: Ground, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_told(HAPROXY[name], ground, behind_haproxy[name], capsys)


@pytest.fixture(scope="module")
def behind_apache(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    sites = texts(APACHE, ground)
    hosts = "".join(f"<VirtualHost 127.0.0.1:{port}>\n{site}\n</VirtualHost>\n" for port, site in sites.items())
    with broken.apache(tmp_path_factory.mktemp("apache"), hosts, sites):
        yield dict(zip(APACHE, sites, strict=True))


@pytest.mark.parametrize("name", APACHE)
def test_apache(behind_apache: dict[str, int], ground: Ground, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_told(APACHE[name], ground, behind_apache[name], capsys)


@pytest.fixture(scope="module")
def behind_caddy(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    sites = texts(CADDY, ground)
    text = "".join(
        f"{'https' if 'tls' in site else 'http'}://127.0.0.1:{port} {{\nbind 127.0.0.1\n{site}\n}}\n"
        for port, site in sites.items()
    )
    with broken.caddy(tmp_path_factory.mktemp("caddy"), text, sites):
        yield dict(zip(CADDY, sites, strict=True))


@pytest.mark.parametrize("name", CADDY)
def test_caddy(behind_caddy: dict[str, int], ground: Ground, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_told(CADDY[name], ground, behind_caddy[name], capsys)
