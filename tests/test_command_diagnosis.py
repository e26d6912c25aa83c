"""What an answer, an error or an end means: the signatures of which there is no server here, and the words of each."""

from __future__ import annotations

import errno
import ssl
from wsgiref.headers import Headers

import pytest

from geventws.command import diagnosis
from geventws.command.wire import Answer, read_url

TARGET = read_url("wss://app.example/echo")


def answer(status: int, body: str = "", **headers: str) -> Answer:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Answer(status, "Phrase", Headers(named), body, b"")


@pytest.mark.parametrize(
    ("headers", "proxy"),
    [
        ({"Server": "nginx/1.22.1"}, "nginx"),
        ({"Server": "openresty"}, "nginx"),
        ({"Server": "Apache/2.4.71 (Debian)"}, "Apache"),
        ({"Server": "Caddy"}, "Caddy"),
        ({"Server": "gunicorn", "Via": "1.1 Caddy"}, "Caddy"),
        ({"Server": "cloudflare"}, "Cloudflare"),
        ({"Server": "awselb/2.0"}, "AWS"),
        ({"Via": "1.1 google"}, "Google Cloud"),
        ({"Via": "1.1 vegur"}, "Heroku"),
        ({"Via": "1.1 abc.cloudfront.net (CloudFront)"}, "CloudFront"),
        ({"Server": "gunicorn"}, ""),
        ({}, ""),
    ],
)
def test_a_proxy_is_known_by_what_it_names_itself(headers: dict[str, str], proxy: str) -> None:
    assert diagnosis.proxy_of(answer(101, **headers)) == proxy


@pytest.mark.parametrize(
    ("status", "headers", "body", "reached", "cause", "cure"),
    [
        (503, {"Geventws_Refused": "stopping"}, "", True, "the server is stopping", "try again"),
        (429, {"Geventws_Refused": "address"}, "", True, "max_connections_per_address", "forwarded_allow_ips"),
        (421, {"Geventws_Refused": "hosts"}, "", True, "not one of the option hosts", "GEVENTWS_HOSTS"),
        (400, {"Geventws_Refused": "key"}, "400 Bad Request: a key", True, "refuses the handshake (a key)", "--via"),
        (400, {"Geventws_Refused": "key"}, "<html>", True, "refuses the handshake (Phrase)", "--via"),
        (429, {}, "", False, "a rule of the proxy", "--via"),
        (407, {}, "", False, "a login is wanted", "Authorization"),
        (302, {"Location": "https://a.example/login"}, "", False, "redirected to https://a.ex", "session="),
        (308, {"Location": "https://a.example/"}, "", False, "redirected to https://a.ex", "use wss://"),
        (303, {}, "", False, "redirected to nowhere", "use that URL"),
        (405, {}, "", True, "this route for pages alone", "websocket=True"),
        (405, {}, "", False, "a proxy removed Upgrade", "nginx: "),
        (418, {}, "", True, "the view answered 418", "have the view use it"),
        (500, {"Server": "nginx"}, "", False, "its server is not geventws", "nginx: proxy_http_version"),
        (200, {}, "run the app with gunicorn -k geventws.Worker", False, "its server is not geventws", "-k geventws.W"),
    ],
)
def test_an_answer_has_a_cause_and_a_cure(
    status: int, headers: dict[str, str], body: str, reached: bool, cause: str, cure: str
) -> None:
    found = diagnosis.of_answer(answer(status, body, **headers), TARGET, None, reached)
    assert cause in found.cause
    assert cure in found.cure


@pytest.mark.parametrize(
    ("body", "origin", "cause", "cure"),
    [
        ("origin 'https://app.example' is not allowed for host 'backend'", None, "was asked for host backend", "nginx"),
        ("origin 'https://app.example' is not allowed for host 'app.example'", None, "lets no page of", "add it to"),
        ("an error page", None, "saw another host", "ProxyPreserveHost"),
        ("origin 'x' is not allowed for host '\x1b[2J'", None, r"was asked for host '\x1b[2J'", "nginx"),
        (
            "origin 'x' is not allowed for host 'backend'",
            "https://b.example",
            "lets no page of https://b.ex",
            "origins",
        ),
    ],
)
def test_a_refused_origin_is_told_by_the_host_that_the_app_saw(
    body: str, origin: str | None, cause: str, cure: str
) -> None:
    refusal = answer(403, body, Geventws_Refused="origin")
    found = diagnosis.of_answer(refusal, TARGET, origin or TARGET.origin, True)
    assert cause in found.cause
    assert cure in found.cure


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (1000, "closed with 1000"),
        (1001, "as Caddy does"),
        (1002, "closed with 1002"),
        (1008, "by the app"),
        (1009, "larger than max_message_size"),
        (1011, "the view failed"),
        (1012, "is restarting"),
        (4401, "by the app"),
    ],
)
def test_a_close_is_told_by_its_code(code: int, cause: str) -> None:
    found = diagnosis.of_close(code, "\x1b[2J")
    assert cause in found.cause
    assert r"\x1b[2J" in found.cause


@pytest.mark.parametrize(
    ("seconds", "headers", "pings", "cause", "cure"),
    [
        (60, {"Server": "nginx"}, 0, "an idle timeout", "GEVENTWS_PING_INTERVAL=29; or raise it: nginx: proxy_read"),
        (2.2, {}, 0, "an idle timeout", "GEVENTWS_PING_INTERVAL=1.1; or raise it: nginx: "),
        (0.04, {}, 0, "an idle timeout", "GEVENTWS_PING_INTERVAL=0.5; "),
        (30, {"Via": "1.1 google"}, 3, "though the server sent 3 Pings", "raise it: Google Cloud: "),
    ],
)
def test_a_cut_names_the_interval_of_pings_or_the_limit(
    seconds: float, headers: dict[str, str], pings: int, cause: str, cure: str
) -> None:
    found = diagnosis.of_cut(seconds, answer(101, **headers), pings)
    assert cause in found.cause
    assert cure in found.cure


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (TimeoutError("no answer"), "nobody answers at app.example:443: a firewall"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "nothing listens at app.example:443"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "cannot be reached: Network is unreachable"),
    ],
)
def test_a_port_that_cannot_be_had_is_told(error: OSError, cause: str) -> None:
    assert cause in diagnosis.of_connecting(error, TARGET).cause


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("certificate has expired", "renew"),
        ("Hostname mismatch, certificate is not valid for 'app.example'.", "a certificate for app.example"),
        ("unable to get local issuer certificate", "fullchain.pem"),
        ("self-signed certificate", "SSL_CERT_FILE"),
    ],
)
def test_a_certificate_that_is_refused_is_told_in_the_words_of_the_verifier(words: str, cure: str) -> None:
    error = ssl.SSLCertVerificationError(1, words)
    error.verify_message = words
    found = diagnosis.of_tls(error, TARGET)
    assert found.cause == f"the certificate is refused: {words}"
    assert cure in found.cure


def test_a_port_without_tls_is_told() -> None:
    assert "does not answer to TLS" in diagnosis.of_tls(TimeoutError(), TARGET).cause
    assert "does not speak TLS" in diagnosis.of_tls(ssl.SSLError(1, "WRONG_VERSION_NUMBER"), TARGET).cause


@pytest.mark.parametrize("server", ["nginx", "Apache", ""])
@pytest.mark.parametrize(
    ("status", "origin"), [(200, None), (403, "https://app.example"), (404, None), (405, None), (500, None)]
)
def test_one_semicolon_parts_two_cures(status: int, origin: str | None, server: str) -> None:
    found = diagnosis.of_answer(answer(status, Server=server), TARGET, origin, False)
    assert "; " in found.cure
    assert ";;" not in found.cure
