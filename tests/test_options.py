"""Options: the defaults that the documents promise, what each refuses, and how variables set them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from geventws.options import Options, RequestLimits

DEFAULTS = {
    "max_message_size": 1024 * 1024,
    "max_queue": 16,
    "max_message_rate": None,
    "max_outbox": 1024 * 1024,
    "send_timeout": 20,
    "ping_interval": 20,
    "ping_timeout": 20,
    "close_timeout": 5,
    "max_connections": None,
    "max_connections_per_address": None,
    "accept_after": 3,
    "origins": ("same-host",),
    "hosts": ("*",),
    "subprotocols": (),
    "deflate": True,
    "deflate_threshold": 192,
    "deflate_level": 4,
    "deflate_window_bits": 15,
    "deflate_memory_level": 8,
    "deflate_context_takeover": False,
    "shutdown_code": 1012,
    "shutdown_reason": "server restarting",
    "closes_per_second": 1000,
    "max_lifetime": None,
    "expiry_code": 4401,
    "hub_warning": None,
}


def test_defaults_are_those_of_the_documents() -> None:
    assert dataclasses.asdict(Options()) == DEFAULTS


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("max_message_size", 1, 1),
        ("max_queue", 1, 1),
        ("max_message_rate", 1, 1),
        ("max_message_rate", None, None),
        ("max_outbox", 10**12, 10**12),
        ("send_timeout", None, None),
        ("ping_interval", None, None),
        ("ping_timeout", None, None),
        ("accept_after", None, None),
        ("close_timeout", 1, 1.0),
        ("close_timeout", 0.001, 0.001),
        ("max_connections", 5, 5),
        ("max_connections", None, None),
        ("max_connections_per_address", 1, 1),
        ("max_connections_per_address", None, None),
        ("origins", "*", ("*",)),
        ("origins", ["https://app.example:8443", "*.example.org"], ("https://app.example:8443", "*.example.org")),
        ("origins", (), ()),
        *(
            ("origins", origin, (origin,))
            for origin in (
                "file://",
                "null",
                "capacitor://localhost",
                "app://.",
                "chrome-extension://abc",
                "http://192.168.4.1/page?x=1",
            )
        ),
        ("hosts", "loopback", ("loopback",)),
        *(("hosts", host, (host,)) for host in ("*", "App.example.", "*.example.org", "[::1]", "my_host", "10.0.0.1")),
        ("subprotocols", "chat", ("chat",)),
        ("subprotocols", ["a", "b"], ("a", "b")),
        ("deflate", False, False),
        ("deflate_context_takeover", True, True),
        ("deflate_threshold", 1, 1),
        ("deflate_level", 1, 1),
        ("deflate_level", 9, 9),
        ("deflate_window_bits", 9, 9),
        ("deflate_window_bits", 15, 15),
        ("deflate_memory_level", 1, 1),
        ("deflate_memory_level", 9, 9),
        ("max_lifetime", 1800, 1800.0),
        ("max_lifetime", None, None),
        ("expiry_code", 3000, 3000),
        ("shutdown_code", 1001, 1001),
        ("shutdown_code", 4999, 4999),
        ("shutdown_reason", "", ""),
        ("shutdown_reason", "\xe9" * 61, "\xe9" * 61),
        ("closes_per_second", 1, 1),
        ("hub_warning", 0.5, 0.5),
        ("hub_warning", None, None),
    ],
)
def test_good_value_is_kept(name: str, value: Any, kept: Any) -> None:
    assert getattr(Options(**{name: value}), name) == kept
    assert getattr(Options().replace(**{name: value}), name) == kept


WHOLE = (
    "max_message_size", "max_queue", "max_message_rate", "max_outbox", "max_connections", "max_connections_per_address",
    "closes_per_second", "deflate_threshold", "deflate_level", "deflate_window_bits", "deflate_memory_level",
)  # fmt: skip
SECONDS = (
    "send_timeout",
    "ping_interval",
    "ping_timeout",
    "close_timeout",
    "accept_after",
    "max_lifetime",
    "hub_warning",
)
LISTS = ("origins", "hosts", "subprotocols")
WRONG = [
    *((name, value) for name in WHOLE for value in (0, -1, 1.5, "1", True, math.inf, [1])),
    *((name, None) for name in ("max_message_size", "max_queue", "max_outbox", "close_timeout", "shutdown_code")),
    *((name, value) for name in ("deflate", "deflate_context_takeover") for value in (None, 0, 1, "on", "off")),
    *(("deflate_window_bits", value) for value in (8, 16)),
    *((name, 10) for name in ("deflate_level", "deflate_memory_level")),
    *((name, value) for name in SECONDS for value in (0, -1.0, "1", True, math.nan, math.inf, 1e9, [1])),
    *(("shutdown_code", value) for value in (999, 1005, 1006, 1015, 2999, 5000, "1012", 1012.0, True)),
    *(("shutdown_reason", value) for value in (None, 1, b"bytes", "\xe9" * 62, "\ud800")),
    *((name, value) for name in LISTS for value in (None, 1, "", [""], [1], [None], [b"a"])),
    *(("subprotocols", value) for value in ("chat, superchat", ["a b"], ["a/b"], ["gr\xfcn"])),
    *(("hosts", value) for value in
      ("https://app.example", "app.example:8000", "*example.org", "::1", "a b", "m\xfcnchen.example")),
    *(("origins", value) for value in
      ("app.example/path", "https://", "https:///", "http://a.example:99999/", "https://app.example/",
       "https://*.example.org/page", "file://*", "https://a b", "https://*", "*example.org",
       "https://user@app.example", "app.example:port", "https://app.example:99999", "m\xfcnchen.example", "", "a,b")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value!r}" for name, value in WRONG])
def test_wrong_value_is_refused_with_the_name_of_the_option(name: str, value: Any) -> None:
    for make in (Options, Options().replace):
        with pytest.raises((ValueError, TypeError), match=name) as caught:
            make(**{name: value})
        assert repr(value).strip("[]") in str(caught.value)


def test_time_that_is_too_long_is_not_called_too_short() -> None:
    with pytest.raises(ValueError) as caught:
        Options(ping_interval=1e9)
    assert "more than 0" not in str(caught.value)


def test_options_cannot_change_after_their_check() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().max_queue = 0  # type: ignore[misc]


def test_replace_changes_a_copy_and_keeps_the_rest() -> None:
    first = Options(max_queue=2, origins=("*",))
    assert first.replace(ping_interval=1) == Options(max_queue=2, origins=("*",), ping_interval=1.0)
    assert first.ping_interval == 20


@pytest.mark.parametrize(
    ("name", "told"),
    [("max_mesage_size", "max_message_size"), ("origin", "origins"), ("ping_intervall", "ping_interval")],
)
def test_misspelt_name_gets_the_one_probably_meant(name: str, told: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is no option.*did you mean {told}"):
        Options().replace(**{name: 1})
    with pytest.raises(ValueError, match=f"GEVENTWS_{name.upper()} is no option.*did you mean GEVENTWS_{told.upper()}"):
        Options.from_environ({f"GEVENTWS_{name.upper()}": "1"})


def test_name_like_none_gets_the_list_of_options() -> None:
    with pytest.raises(TypeError, match=r"zzz is no option of geventws; .*max_message_size.*shutdown_code"):
        Options().replace(zzz=1)


# From the environment


def test_environment_without_variables_gives_the_defaults() -> None:
    assert Options.from_environ({"PATH": "/bin", "MAX_QUEUE": "1", "geventws_max_queue": "1"}) == Options()


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [("MAX_SIZE", "MAX_MESSAGE_SIZE"), ("ALLOWED_ORIGINS", "ORIGINS"), ("HEARTBEAT_INTERVAL", "PING_INTERVAL")],
)
def test_variable_that_is_no_option_is_told_once_with_the_nearest(
    caplog: pytest.LogCaptureFixture, variable: str, nearest: str
) -> None:
    for _ in range(2):
        assert Options.from_environ({f"GEVENTWS_{variable}": "1"}) == Options()
    (line,) = caplog.messages
    assert line.startswith(f"GEVENTWS_{variable} is no option of geventws and changes nothing")
    assert line.endswith(f"the nearest is GEVENTWS_{nearest}")


def test_variables_that_are_no_options_but_mean_something_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert (
        Options.from_environ({"GEVENTWS_PURE": "1", "GEVENTWS_COMPAT": "on", "GEVENTWS_BUS": "redis://x"}) == Options()
    )
    assert not caplog.messages


@pytest.mark.parametrize(
    ("variable", "text", "kept"),
    [
        ("MAX_MESSAGE_SIZE", "65536", 65536),
        ("MAX_QUEUE", " 8 ", 8),
        ("MAX_MESSAGE_RATE", "50", 50),
        ("MAX_MESSAGE_RATE", "off", None),
        ("MAX_CONNECTIONS", "500", 500),
        ("MAX_CONNECTIONS", "none", None),
        ("MAX_CONNECTIONS_PER_ADDRESS", "20", 20),
        ("MAX_CONNECTIONS_PER_ADDRESS", "off", None),
        ("SEND_TIMEOUT", "2.5", 2.5),
        ("PING_INTERVAL", "off", None),
        ("PING_TIMEOUT", "Never", None),
        ("ACCEPT_AFTER", "OFF", None),
        ("CLOSE_TIMEOUT", "1", 1.0),
        ("ORIGINS", "https://app.example, *.example.org", ("https://app.example", "*.example.org")),
        ("ORIGINS", "https://app.example\tsame-host", ("https://app.example", "same-host")),
        ("HOSTS", "loopback, app.example", ("loopback", "app.example")),
        ("SUBPROTOCOLS", "chat,superchat", ("chat", "superchat")),
        ("DEFLATE", "off", False),
        ("DEFLATE", "False", False),
        ("DEFLATE", "0", False),
        ("DEFLATE_CONTEXT_TAKEOVER", "on", True),
        ("DEFLATE_CONTEXT_TAKEOVER", " YES ", True),
        ("DEFLATE_WINDOW_BITS", "12", 12),
        ("SHUTDOWN_CODE", "1001", 1001),
        ("SHUTDOWN_REASON", "back at noon, we hope", "back at noon, we hope"),
        ("SHUTDOWN_REASON", "", ""),
        ("CLOSES_PER_SECOND", "50", 50),
        ("HUB_WARNING", "0.5", 0.5),
        ("HUB_WARNING", "off", None),
    ],
)
def test_variable_sets_its_option_alone(variable: str, text: str, kept: Any) -> None:
    assert Options.from_environ({f"GEVENTWS_{variable}": text}) == Options(**{variable.lower(): kept})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("MAX_MESSAGE_SIZE", "1MB"),
        ("MAX_MESSAGE_SIZE", ""),
        ("MAX_MESSAGE_SIZE", "0"),
        ("MAX_QUEUE", "1.5"),
        ("MAX_QUEUE", "off"),
        ("MAX_QUEUE", "-1"),
        ("MAX_CONNECTIONS", "many"),
        ("PING_INTERVAL", "20s"),
        ("PING_INTERVAL", "nan"),
        ("PING_INTERVAL", "0"),
        ("CLOSE_TIMEOUT", "off"),
        ("DEFLATE", "maybe"),
        ("DEFLATE", ""),
        ("DEFLATE_LEVEL", "10"),
        ("DEFLATE_LEVEL", "off"),
        ("DEFLATE_WINDOW_BITS", "8"),
        ("SHUTDOWN_CODE", "1006"),
        ("SHUTDOWN_CODE", "off"),
        ("SHUTDOWN_REASON", "a" * 124),
        ("CLOSES_PER_SECOND", "off"),
        ("ORIGINS", "https://app.example/"),
        ("HOSTS", "app.example:443"),
    ],
)
def test_wrong_variable_is_a_value_error_with_its_name(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"GEVENTWS_{variable}"):
        Options.from_environ({f"GEVENTWS_{variable}": text})


def test_number_past_its_bound_is_told_the_bound() -> None:
    with pytest.raises(ValueError, match="GEVENTWS_MAX_QUEUE must be at least 1"):
        Options.from_environ({"GEVENTWS_MAX_QUEUE": "0"})
    with pytest.raises(
        ValueError, match=r"GEVENTWS_MAX_OUTBOX must be at most 9223372036854775807, not 9223372036854775808"
    ):
        Options.from_environ({"GEVENTWS_MAX_OUTBOX": "9223372036854775808"})
    with pytest.raises(ValueError, match=r"GEVENTWS_PING_INTERVAL must be more than 0 seconds"):
        Options.from_environ({"GEVENTWS_PING_INTERVAL": "0"})


# Limits of a request head, for servers without gunicorn


def test_limits_of_a_request_head_are_checked_like_options() -> None:
    assert dataclasses.asdict(RequestLimits.from_environ({"GEVENTWS_LIMIT_REQUEST_FIELDS": "20"})) == {
        "limit_request_line": 8190,
        "limit_request_fields": 20,
        "limit_request_field_size": 8190,
    }
    wrong: list[tuple[str, Any]] = [
        ("line", 0),
        ("line", 8191),
        ("fields", 0),
        ("fields", 32_769),
        ("fields", None),
        ("field_size", -1),
        ("field_size", 1.5),
    ]
    for name, value in wrong:
        with pytest.raises((ValueError, TypeError), match=f"limit_request_{name}"):
            RequestLimits(**{f"limit_request_{name}": value})
        with pytest.raises(ValueError, match=f"GEVENTWS_LIMIT_REQUEST_{name.upper()}"):
            RequestLimits.from_environ({f"GEVENTWS_LIMIT_REQUEST_{name.upper()}": str(value)})


def test_variables_of_limits_are_known_to_the_options(caplog: pytest.LogCaptureFixture) -> None:
    assert Options.from_environ({"GEVENTWS_LIMIT_REQUEST_LINE": "100"}) == Options()
    assert not caplog.messages
    with pytest.raises(ValueError, match="did you mean GEVENTWS_LIMIT_REQUEST_FIELDS"):
        Options.from_environ({"GEVENTWS_LIMIT_REQUEST_FIELD": "100"})
