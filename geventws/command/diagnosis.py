"""Diagnosis: what an answer, an error or an end means, and what to change.

Pure functions. Knows the signatures of servers and proxies that are set up wrongly; knows no socket.
"""

from __future__ import annotations

import re
import ssl
from typing import NamedTuple

from ..errors import CloseCode
from ..handshake import NGINX_LINES, NGINX_UPGRADE
from ..loglines import printable
from .wire import Answer, Target


class Diagnosis(NamedTuple):
    """What is wrong, and what to do about it."""

    cause: str
    cure: str


# Who stands in between, by a word of the headers Server and Via.
_PROXIES = {
    "nginx": "nginx",
    "openresty": "nginx",
    "apache": "Apache",
    "caddy": "Caddy",
    "cloudflare": "Cloudflare",
    "cloudfront": "CloudFront",
    "awselb": "AWS",
    "google": "Google Cloud",
    "vegur": "Heroku",
    "heroku": "Heroku",
}
_UPGRADE = {
    "nginx": f"nginx: {NGINX_LINES}",
    "Apache": "Apache from 2.4.47 on: ProxyPass / http://127.0.0.1:8000/ upgrade=websocket",
}
_CONNECTION = {"nginx": f"nginx: {NGINX_UPGRADE}", "Apache": _UPGRADE["Apache"]}
_HOST = {
    "nginx": "nginx: proxy_set_header Host $http_host;",
    "Apache": "Apache: ProxyPreserveHost On",
    "Caddy": "Caddy keeps it by itself: remove header_up Host",
}
_IDLE = {
    "nginx": "nginx: proxy_read_timeout 1h;",
    "HAProxy": "HAProxy: timeout tunnel 1h",
    "Apache": "Apache: ProxyTimeout 3600",
    "AWS": "AWS load balancer: its idle timeout, 60 s by default",
    "Google Cloud": "Google Cloud: the timeout of the backend service, which counts however busy a connection is",
    "Cloudflare": "Cloudflare: 100 s, which only data moves",
    "CloudFront": "CloudFront: 10 minutes",
    "Heroku": "Heroku: 55 s, which only data moves",
}
_ASK_APP = "ask the app itself, by --via HOST:PORT: what passes there is the fault of what stands before it"
_COMPARE = "--via 127.0.0.1:8000, or where the app listens, tells which of the two it is"
_HTTPS_PORT = re.compile(
    r"plain HTTP request was sent to HTTPS port|HTTP request to an HTTPS server|SSL-enabled server", re.I
)
_NOT_ALLOWED = re.compile(r"origin '(.*)' is not allowed for host '(.*)'")


def proxy_of(answer: Answer) -> str:
    """Return the proxy that an answer names, "" if none."""
    named = f"{answer.headers['Server'] or ''} {answer.headers['Via'] or ''}".lower()
    return next((proxy for word, proxy in _PROXIES.items() if word in named), "")


def _choose(cures: dict[str, str], proxy: str) -> str:
    """Return the cure for a proxy, those for all where it is not known."""
    first, *others = [cures[proxy]] if proxy in cures else cures.values()
    return _join(first, *(f"or {other}" for other in others))


def _join(*parts: str) -> str:
    """Return the parts of a cure as one. The semicolon that ends a line of nginx then parts it from the next."""
    *others, last = parts
    return "".join(f"{part.removesuffix(';')}; " for part in others) + last


# Before HTTP

ENDS_SOON = Diagnosis("the certificate ends soon", "renew it, and reload what serves it")


def of_name(name: str) -> Diagnosis:
    """Why there is no address."""
    return Diagnosis(
        f"{name} has no address", "correct the name, or its entry in DNS; --via HOST:PORT connects without it"
    )


def of_connecting(error: OSError, target: Target) -> Diagnosis:
    """Why there is no TCP connection."""
    if isinstance(error, TimeoutError):
        return Diagnosis(
            f"nobody answers at {target.place}: a firewall drops it, or the machine is down",
            "open the port in the firewall or security group, or correct host and port",
        )
    if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
        return Diagnosis(
            f"nothing listens at {target.place}",
            "start the server, or correct host and port; a server in a container must bind 0.0.0.0, not 127.0.0.1",
        )
    return Diagnosis(f"{target.place} cannot be reached: {error.strerror or error}", "correct host and port")


def of_tls(error: OSError, target: Target) -> Diagnosis:
    """Why there is no TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        words = error.verify_message or str(error)
        if "expired" in words:
            cure = "renew the certificate, and reload what serves it"
        elif "mismatch" in words or "not valid for" in words:
            cure = f"use a certificate for {target.name}, or a URL with the name that it is for"
        elif "unable to get local issuer" in words:
            cure = "serve the whole chain (fullchain.pem), or name your own authority by SSL_CERT_FILE=ca.pem"
        else:
            cure = "use a certificate that browsers trust, or name your own authority by SSL_CERT_FILE=ca.pem"
        return Diagnosis(f"the certificate is refused: {words}", cure)
    if isinstance(error, TimeoutError):
        return Diagnosis("the port does not answer to TLS", "use ws://, or the port that speaks TLS")
    return Diagnosis(f"{target.place} does not speak TLS", "use ws:// instead of wss://, or the port that speaks TLS")


def of_silence(reason: str, received: bytes, *, speaks_tls: bool) -> Diagnosis:
    """Why a handshake got no answer in HTTP."""
    if speaks_tls:
        return Diagnosis("this port speaks TLS", "use wss:// instead of ws://")
    if received:
        return Diagnosis(f"what listens there speaks no HTTP: it sent {received[:40]!r}", "correct host and port")
    return Diagnosis(
        f"{reason}: the app, or its whole server, is blocked; or what listens there is no web server",
        "look at the server's log; GEVENTWS_HUB_WARNING=0.5 tells what blocks it",
    )


# The handshake

STRANGE_ANSWER = Diagnosis(
    "the answer does not belong to this handshake: a cache, or what speaks another protocol", _ASK_APP
)
ANY_ORIGIN = Diagnosis(
    "a page of any site may connect with the cookies of its visitor (cross-site hijacking)",
    "name your sites in the option origins, or leave it at same-host; harmless if nobody logs in",
)
SLOW_HANDSHAKE = Diagnosis(
    "the handshake is slow: the view uses its WebSocket late, which the server ends after 3 s, or the app is blocked",
    "call ws.accept() first; GEVENTWS_HUB_WARNING=0.5 tells what blocks",
)

# What the options of the server forbid to each client alike, by the rule of its refusal.
_LIMITS = {
    "full": Diagnosis(
        "the server has as many WebSockets as it may",
        "raise the option max_connections, or the limit of descriptors (ulimit -n), or start more workers",
    ),
    "address": Diagnosis(
        "this address has as many WebSockets as the option max_connections_per_address allows",
        "raise it; if all clients come from one proxy, let forwarded_allow_ips or ProxyFix name it",
    ),
    "hosts": Diagnosis(
        "the host that was asked for is not one of the option hosts",
        "add it, as in GEVENTWS_HOSTS=loopback,app.example, or have the proxy pass on the Host that the browser sent",
    ),
    "stopping": Diagnosis("the server is stopping", "try again in a moment"),
}


def of_answer(answer: Answer, target: Target, origin: str | None, reached: bool) -> Diagnosis:
    """Why a handshake got another answer than 101.

    origin is the Origin header that was sent, if one was, after a handshake without it had passed. reached is whether
    geventws sees handshakes on this URL as such.
    """
    proxy = proxy_of(answer)
    if answer.rule is not None:
        return _of_refusal(answer, target, origin, proxy)
    if _HTTPS_PORT.search(answer.body):
        return Diagnosis("this port speaks TLS", "use wss:// instead of ws://")
    if 300 <= answer.status < 400:
        return _of_redirect(answer)
    if answer.status in {401, 407}:
        return Diagnosis(
            "a login is wanted",
            "send what the page has: --header 'Cookie: session=...' or --header 'Authorization: ...'",
        )
    if answer.status == 403 and origin is not None:
        return Diagnosis(
            f"only the handshake with Origin {origin} is refused, and not by geventws, or its words are replaced",
            _join(
                f"have the app see the Host that the browser asked for: {_choose(_HOST, proxy)}", "or add it to origins"
            ),
        )
    if answer.status in {403, 429}:
        return Diagnosis(
            "a rule of the proxy or of the app forbids it",
            "look in the logs of both; with --via HOST:PORT of the app only the app decides",
        )
    if answer.status in {502, 503, 504}:
        return Diagnosis(
            "the proxy cannot reach the app, or a limit of its own is full (limit_conn, maxconn)",
            "start the app, and compare its address with that in the proxy; raise the proxy's limit",
        )
    return _of_app(answer, proxy) if reached else _of_page(answer, proxy)


def _of_refusal(answer: Answer, target: Target, origin: str | None, proxy: str) -> Diagnosis:
    """Of a refusal that geventws itself has made."""
    words = printable(answer.body.strip().partition(": ")[2]) or answer.phrase
    if answer.rule == "upgrade":
        return Diagnosis("the proxy removed Upgrade", _choose(_UPGRADE, proxy))
    if answer.rule == "http-version":
        return Diagnosis(f"the proxy asks the app in an older HTTP: {words}", f"nginx: {NGINX_LINES}")
    if answer.rule == "connection":
        return Diagnosis("the proxy changed the header Connection", _choose(_CONNECTION, proxy))
    if answer.rule in _LIMITS:
        return _LIMITS[answer.rule]
    if answer.rule == "origin":
        return _of_origin(answer, target, origin or "", proxy)
    return Diagnosis(
        f"geventws refuses the handshake ({words}), which was in order: something on the way changed it",
        _ASK_APP,
    )


def _of_origin(answer: Answer, target: Target, origin: str, proxy: str) -> Diagnosis:
    seen = _NOT_ALLOWED.search(answer.body)
    host = printable(seen[2]) if seen else None
    if origin == target.origin and host != target.host:
        cure = _choose(_HOST, proxy)
        if host is not None and host == target.name and proxy in {"nginx", ""}:
            cure = "nginx: proxy_set_header Host $http_host; ($host has no port)"
        where = f"was asked for host {host}" if host else "saw another host"
        return Diagnosis(f"the page asks for host {target.host}, and the app {where}: the proxy changed Host", cure)
    return Diagnosis(
        f"the app lets no page of {origin} connect",
        f"if it is yours, add it to the option origins: GEVENTWS_ORIGINS='same-host {origin}'",
    )


def _of_redirect(answer: Answer) -> Diagnosis:
    where = printable(answer.headers["Location"] or "nowhere")
    cause = f"it is redirected to {where}, and browsers follow no redirect of a WebSocket"
    if where.startswith("https:") and "login" not in where.lower():
        return Diagnosis(cause, "use wss:// and that URL")
    return Diagnosis(cause, "use that URL; if it is a login, send what the page has: --header 'Cookie: session=...'")


def _of_app(answer: Answer, proxy: str) -> Diagnosis:
    """Of an answer by the app, which got the WebSocket."""
    status = answer.status
    if status == 404:
        return Diagnosis("the app has no such route", "correct the path; behind a proxy that changes it, too")
    if status in {400, 405}:
        return Diagnosis(
            "the app has this route for pages alone",
            "@app.route(..., websocket=True), or @sockets.route(...) of geventws.flask.Sockets(app)",
        )
    if status >= 500:
        return Diagnosis("the view failed before it used the WebSocket", "look for its traceback in the server's log")
    return Diagnosis(
        f"the view answered {status} and did not use the WebSocket", "correct the path, or have the view use it"
    )


def _of_page(answer: Answer, proxy: str) -> Diagnosis:
    """Of an answer that came before geventws saw any WebSocket."""
    if "geventws.Worker" in answer.body or answer.status >= 500:
        return Diagnosis(
            "the app failed because it got no WebSocket: its server is not geventws, or a proxy removed Upgrade",
            _join("gunicorn -k geventws.Worker app:app", _choose(_UPGRADE, proxy), _COMPARE),
        )
    if answer.status == 404:
        return Diagnosis(
            "there is no such page: the path is wrong, or the proxy does not pass it to the app, or not its Upgrade",
            _join("correct the path, or the proxy's rule for it", _choose(_UPGRADE, proxy), _COMPARE),
        )
    if answer.status < 300:
        return Diagnosis(
            "it was answered with a page: the proxy sends this path elsewhere (the fallback of a single-page app?), "
            "or removed Upgrade",
            _join("give the path a rule of its own that passes it to the app", _choose(_UPGRADE, proxy), _COMPARE),
        )
    return Diagnosis(
        "the handshake came to the app as a plain request: a proxy removed Upgrade, or its server is not geventws",
        _join(_choose(_UPGRADE, proxy), "gunicorn -k geventws.Worker app:app", _COMPARE),
    )


def of_no_subprotocol(wanted: str) -> Diagnosis:
    """Why none was chosen."""
    return Diagnosis(
        "Chrome ends a connection for which none of its subprotocols is chosen",
        f"set the option subprotocols: GEVENTWS_SUBPROTOCOLS={wanted}, or call ws.accept(subprotocols=[...])",
    )


def of_three(answer: Answer) -> Diagnosis:
    """Why one WebSocket passes and three at once do not."""
    if answer.rule in _LIMITS:
        return _LIMITS[answer.rule]
    return Diagnosis(
        "one at a time passes, three at once do not: a limit of the proxy for each client",
        "raise it: limit_conn or limit_req in nginx, maxconn or a stick-table in HAProxy",
    )


# The open WebSocket


DEAF = Diagnosis(
    "the handshake passes, then nothing comes back: something on the way keeps the bytes, or speaks another protocol",
    _ASK_APP,
)
NO_CLOSE = Diagnosis("browsers see 1006 instead of the code: something on the way cuts, or swallows a Close", _ASK_APP)


def of_lost_message(*, is_first: bool) -> Diagnosis:
    """Why the connection ended, or nothing came, where a message was to come back."""
    what = "the connection is cut at the first message" if is_first else "a message of this size does not pass"
    return Diagnosis(f"{what}: something on the way limits or keeps it, or speaks another protocol", _ASK_APP)


def of_close(code: int, reason: str) -> Diagnosis:
    """Why it was closed while it was checked."""
    said = f"closed with {code}{f' ({printable(reason)})' if reason else ''}"
    if code == CloseCode.GOING_AWAY:
        return Diagnosis(f"{said}: a proxy or the server was stopped or reloaded, as Caddy does", "check again")
    if code == CloseCode.MESSAGE_TOO_BIG:
        return Diagnosis(f"{said}: larger than max_message_size", "if clients send as much, raise that option")
    if code == CloseCode.INTERNAL_ERROR:
        return Diagnosis(
            f"{said}: the view failed", "look for its traceback in the server's log; or check a view that echoes"
        )
    if code == CloseCode.SERVICE_RESTART:
        return Diagnosis(f"{said}: the server is restarting", "check again")
    if code == CloseCode.POLICY_VIOLATION or code >= 3000:
        return Diagnosis(f"{said}: by the app", "send what it wants, by --header or in the URL; or check an echo")
    return Diagnosis(said, "check a view that sends each message back")


def of_cut(seconds: float, answer: Answer, pings: int) -> Diagnosis:
    """Why it was cut while nobody said anything, but for the Pings of the server."""
    raise_it = _choose(_IDLE, proxy_of(answer))
    if pings:
        cause = f"cut without a Close after {seconds:.0f} s, though the server sent {pings} Pings: a limit of its age"
        return Diagnosis(f"{cause}, or of silence from the client", f"raise it: {raise_it}")
    half = f"{max(seconds / 2, 0.5):.1f}" if seconds < 10 else f"{seconds // 2 - 1:.0f}"
    return Diagnosis(
        f"cut without a Close after {seconds:.0f} s: an idle timeout on the way",
        f"have the server ping more often, below half of it: GEVENTWS_PING_INTERVAL={half}; or raise it: {raise_it}",
    )
