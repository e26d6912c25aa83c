"""The live half, in the test's own process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from live import rooms
from models import MAX_FILE, write
from test_app import PNG, come_in, say, words

from geventws.testing import Refused, connect


@pytest.fixture(autouse=True)
def _empty_rooms() -> Iterator[None]:
    yield
    rooms.close()


class Page:
    """What a page hears."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.welcome = self.hear("welcome")

    def hear(self, kind: str) -> dict[str, Any]:
        """Return the next message of a kind."""
        while True:
            message: dict[str, Any] = self.ws.receive_json()
            if message["type"] == kind:
                return message

    def hear_words(self) -> str:
        return str(self.hear("said")["html"]).partition('class="words">')[2].partition("</span>")[0]


def end_of(ws: Any) -> tuple[int, str]:
    """Return code and reason of the end, once it is there."""
    for _ in ws:
        pass
    return ws.close_code, ws.close_reason


@contextmanager
def page(browser: FlaskClient, room: int = 1, since: str = "") -> Iterator[Page]:
    with connect(browser, f"/rooms/{room}/live{since and '?since=' + since}") as ws:
        yield Page(ws)


def test_socket_without_login_is_refused_as_401(app: Flask) -> None:
    for path in ("/rooms/1/live", "/rooms/1/upload"):
        with pytest.raises(Refused) as refused, connect(app, path):
            pass
        assert refused.value.status == 401


def test_socket_of_no_room_is_refused_as_404(app: Flask) -> None:
    with pytest.raises(Refused) as refused, page(come_in(app, "Mara"), room=99):
        pass
    assert refused.value.status == 404


def test_two_people_hear_each_other(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    with page(mara) as hers, page(jonas) as his:
        assert his.welcome["here"] == {"Mara": 1, "Jonas": 2}
        assert hers.hear("joined")["who"] == "Mara"
        assert hers.hear("joined")["who"] == "Jonas"
        hers.ws.send_json({"say": " hello ", "key": "k1"})
        assert hers.hear_words() == his.hear_words() == "hello"
    assert words(mara) == ["hello"]


def test_form_of_a_page_without_javascript_is_heard_too(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    with page(mara) as hers:
        say(jonas, "by form")
        assert hers.hear_words() == "by form"


def test_announcement_is_heard(app: Flask) -> None:
    with page(come_in(app, "Mara"), room=2) as hers:
        app.test_cli_runner().invoke(args=["announce", "Tea is ready"])
        assert hers.hear_words() == "Tea is ready"


def test_message_sent_again_is_kept_once(app: Flask) -> None:
    mara = come_in(app, "Mara")
    with page(mara) as hers:
        for text, key in (("one", "k1"), ("one", "k1"), ("two", "k2")):
            hers.ws.send_json({"say": text, "key": key})
        first, again, _ = (str(hers.hear("said")["html"]) for _ in range(3))
        assert first == again  # a page shows one message of a number
    assert words(mara) == ["one", "two"]


def test_message_that_a_killed_worker_kept_and_did_not_show_is_shown_when_sent_again(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    with app.app_context():
        write(1, 1, "nearly lost", "k")
    with page(mara) as hers, page(jonas) as his:
        hers.ws.send_json({"say": "nearly lost", "key": "k"})
        assert his.hear_words() == "nearly lost"
    assert words(mara) == ["nearly lost"]


def test_page_that_was_away_hears_what_it_missed(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    with page(mara) as hers:
        at = hers.welcome["at"]
    say(jonas, "meanwhile")
    with page(mara, since=at) as hers:
        assert hers.welcome["recovered"] is True
        assert hers.hear_words() == "meanwhile"


def test_what_the_room_has_forgotten_comes_from_the_database(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    with page(mara) as hers:
        at = hers.welcome["at"]
    say(jonas, "one")
    say(jonas, "two")
    rooms.close()  # as a restart does
    with page(mara, since=at) as hers:
        assert hers.welcome["recovered"] is False
    assert "two" in mara.get("/rooms/1/after/1").text
    assert "one" not in mara.get("/rooms/1/after/1").text


def test_page_of_earlier_messages_is_not_live_as_new_ones_would_stand_behind_a_gap(app: Flask) -> None:
    mara = come_in(app, "Mara")
    say(mara, "one")
    assert "live." in mara.get("/rooms/1").text
    assert "live." not in mara.get("/rooms/1?before=2").text


def test_typing_is_told_to_others_and_not_kept(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    with page(mara) as hers, page(jonas) as his:
        his.ws.send_json({"typing": True})
        assert hers.hear("typing") == {"type": "typing", "who": "Jonas"}
        his.ws.send_json({"say": "done", "key": "k"})
        assert his.hear("said")  # his own typing came not before


def test_messages_elsewhere_are_counted(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    say(jonas, "before", room=2)
    with page(mara) as hers:
        assert hers.welcome["unread"] == {"2": 1}
        say(jonas, "now", room=2)
        assert hers.hear("elsewhere") == {"type": "elsewhere", "room": 2, "number": 2, "who": "Jonas"}
    with page(mara, room=2) as hers:
        hers.ws.send_json({"read": True})
        hers.ws.send_json({"say": "seen", "key": "k"})
        hers.hear("said")
    with page(mara) as hers:
        assert hers.welcome["unread"] == {}


def test_login_elsewhere_closes_the_pages_of_the_first(app: Flask) -> None:
    with page(come_in(app, "Mara")) as hers, page(come_in(app, "Jonas")):
        second = come_in(app, "Mara")
        assert end_of(hers.ws) == (4001, "You have come in elsewhere.")
        with page(second) as new:
            assert new.welcome["here"] == {"Mara": 1, "Jonas": 2}


def test_two_windows_are_fine_by_one_option(app: Flask) -> None:
    app.config["ONE_LOGIN"] = False
    mara = come_in(app, "Mara")
    with page(mara) as first, page(come_in(app, "Mara")) as second:
        assert second.welcome["here"] == {"Mara": 1}
        mara.post("/logout")
        assert end_of(first.ws) == (4002, "You have logged out.")
        second.ws.send_json({"say": "still here", "key": "k"})
        assert second.hear_words() == "still here"


def test_message_that_is_refused_is_told_to_its_sender(app: Flask) -> None:
    with page(come_in(app, "Mara")) as hers:
        hers.ws.send_json({"say": "x" * 1001, "key": "k"})
        assert hers.hear("refused") == {"type": "refused", "key": "k", "text": "A message has 1 to 1000 characters."}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", 1008),
        ("", 1008),
        ("[]", 1008),
        ('{"say": 1, "key": "a"}', 1008),
        ('{"say": "no key"}', 1008),
        ("[" * 10_000, 1008),
        (b"\xff\xfe", 1008),
        ("x" * 16_385, 1009),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_message_of_no_chat_program_ends_only_its_sender(app: Flask, message: str | bytes, code: int) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    with page(mara) as hers:
        with page(jonas) as his:
            his.ws.send(message)
            assert end_of(his.ws)[0] == code
        hers.ws.send_json({"say": "still here", "key": "k"})
        assert hers.hear_words() == "still here"


def test_half_a_character_breaks_nobody(app: Flask) -> None:
    with page(come_in(app, "Mara")) as hers:
        hers.ws.send('{"say": "\\ud83d", "key": "half"}')
        assert hers.hear_words() == "?"


def begin(ws: Any, size: int, name: str = "cat.png") -> None:
    ws.send_json({"name": name, "size": size, "key": f"key of {name}"})


def test_file_arrives_with_its_progress(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    with page(jonas) as his, connect(mara, "/rooms/1/upload") as ws:
        begin(ws, len(PNG) + 3)
        ws.send(PNG)
        assert ws.receive_json() == {"got": len(PNG)}
        ws.send(b"end")
        assert ws.receive_json() == {"got": len(PNG) + 3}
        assert ws.receive_json() == {"done": True}
        shown = str(his.hear("said")["html"])
    url = shown.partition('src="')[2].partition('"')[0]
    assert jonas.get(url).data == PNG + b"end"


def test_logout_ends_a_file_that_is_on_its_way(app: Flask) -> None:
    mara = come_in(app, "Mara")
    with connect(mara, "/rooms/1/upload") as ws:
        begin(ws, 1000)
        ws.send(PNG)
        ws.receive_json()
        mara.post("/logout")
        assert end_of(ws)[0] == 4002


def test_file_that_is_cancelled_is_not_kept(app: Flask) -> None:
    mara = come_in(app, "Mara")
    with connect(mara, "/rooms/1/upload") as ws:
        begin(ws, 1000)
        ws.send(PNG)
        ws.receive_json()
    assert words(mara) == []


@pytest.mark.parametrize(
    ("size", "first", "reason"),
    [(0, b"", "1 byte"), (MAX_FILE + 1, b"", "5 MiB"), (100, b"MZ", "Only pictures")],
    ids=["empty", "large", "program"],
)
def test_file_is_refused_at_the_first_byte_that_is_wrong(app: Flask, size: int, first: bytes, reason: str) -> None:
    with connect(come_in(app, "Mara"), "/rooms/1/upload") as ws:
        begin(ws, size)
        if first:
            ws.send(first)
        answer: dict[str, Any] = ws.receive_json()
        while "got" in answer:
            answer = ws.receive_json()
        assert reason in answer["refused"]


def test_file_longer_than_it_said_is_closed(app: Flask) -> None:
    with connect(come_in(app, "Mara"), "/rooms/1/upload") as ws:
        begin(ws, len(PNG) - 1)
        ws.send(PNG)
        assert end_of(ws)[0] == 1008


@pytest.mark.parametrize("first", ["{}", "[]", json.dumps({"name": 1, "size": 2, "key": "k"}), "no JSON"])
def test_upload_of_no_chat_program_is_closed(app: Flask, first: str) -> None:
    with connect(come_in(app, "Mara"), "/rooms/1/upload") as ws:
        ws.send(first)
        assert end_of(ws)[0] == 1008
