"""The chat by forms alone: what holds without the live half, and with it."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from models import MAX_FILE, User, db, write

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def come_in(app: Flask, name: str) -> FlaskClient:
    """Return the browser of somebody who has logged in."""
    browser = app.test_client()
    assert browser.post("/login", data={"name": name, "password": "demo"}).location == "/"
    return browser


def say(browser: FlaskClient, text: str = "", key: str = "", room: int = 1, **fields: Any) -> Any:
    return browser.post(f"/rooms/{room}", data={"text": text, "key": key or f"key of {text}", **fields})


def words(browser: FlaskClient, path: str = "/rooms/1") -> list[str]:
    return re.findall(r'class="words">(.*?)</span>', browser.get(path).text, re.DOTALL)


def test_entrance_offers_two_people_and_shows_no_password_hash(app: Flask) -> None:
    page = app.test_client().get("/").text
    assert 'value="Mara"' in page and 'value="Jonas"' in page
    with app.app_context():
        assert all(user.password.startswith(("scrypt:", "pbkdf2:")) for user in db.session.scalars(db.select(User)))


@pytest.mark.parametrize(("name", "password"), [("Mara", "wrong"), ("Nobody", "demo"), ("", "")])
def test_wrong_login_is_refused_in_words(app: Flask, name: str, password: str) -> None:
    answer = app.test_client().post("/login", data={"name": name, "password": password})
    assert answer.status_code == 401
    assert "do not go together" in answer.text


def test_page_without_login_leads_to_it_and_back(app: Flask) -> None:
    browser = app.test_client()
    answer = browser.get("/rooms/2")
    assert answer.status_code == 302
    assert "%2Frooms%2F2" in answer.location
    answer = browser.post("/login", data={"name": "Mara", "password": "demo", "next": "/rooms/2"})
    assert answer.location == "/rooms/2"


@pytest.mark.parametrize("elsewhere", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:x"])
def test_login_leads_to_no_other_site(app: Flask, elsewhere: str) -> None:
    answer = app.test_client().post("/login", data={"name": "Mara", "password": "demo", "next": elsewhere})
    assert answer.location == "/"


def test_two_people_talk(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    assert say(mara, "Hello Jonas").location == "/rooms/1"
    assert say(jonas, "Hello Mara").status_code == 302
    assert words(mara) == words(jonas) == ["Hello Jonas", "Hello Mara"]
    assert words(mara, "/rooms/2") == []


def test_form_sent_twice_is_said_once(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    for browser in (mara, mara, jonas):  # a key is the sender's own
        assert say(browser, "hello", key="same").status_code == 302
    assert words(mara) == ["hello", "hello"]


@pytest.mark.parametrize("text", ["", " \n", "x" * 1001])
def test_message_of_no_good_length_is_refused_and_kept_in_the_field(app: Flask, text: str) -> None:
    answer = say(come_in(app, "Mara"), text)
    assert answer.status_code == 400
    assert "A message has 1 to 1000 characters." in answer.text
    assert text.strip() in answer.text


def test_what_people_write_is_shown_as_text(app: Flask) -> None:
    mara = come_in(app, "Mara")
    say(mara, "<script>alert(1)</script> http://example.org/?a=1&b")
    (shown,) = words(mara)
    assert shown.startswith("&lt;script&gt;alert(1)&lt;/script&gt; <a href=")
    assert 'rel="nofollow noopener"' in shown


def test_older_messages_are_one_link_away(app: Flask) -> None:
    mara = come_in(app, "Mara")
    for number in range(60):
        say(mara, f"message {number}")
    assert words(mara) == [f"message {number}" for number in range(10, 60)]
    earlier = re.search(r'id="earlier" href="(.*?)"', mara.get("/rooms/1").text)
    assert earlier
    assert words(mara, f"/rooms/1{earlier[1]}") == [f"message {number}" for number in range(10)]


def test_unread_messages_of_others_are_counted_until_the_room_is_seen(app: Flask) -> None:
    mara, jonas = come_in(app, "Mara"), come_in(app, "Jonas")
    for text in ("one", "two"):
        say(jonas, text, room=2)
    count = '2 <span class="unseen">unread'
    assert count in mara.get("/rooms/1").text
    assert count not in jonas.get("/rooms/1").text
    mara.get("/rooms/2")
    assert count not in mara.get("/rooms/1").text


def test_room_is_made_once(app: Flask) -> None:
    mara = come_in(app, "Mara")
    made = mara.post("/rooms", data={"name": "  Tea   house "}).location
    assert mara.post("/rooms", data={"name": "Tea house"}).location == made
    assert mara.get(made).status_code == 200
    assert mara.post("/rooms", data={"name": " "}).location == "/"
    for path in ("/rooms/99", f"/rooms/{10**20}", f"/rooms/1?before={10**20}"):
        assert mara.get(path).status_code == 404


def test_picture_is_shown_and_only_to_who_is_logged_in(app: Flask) -> None:
    mara = come_in(app, "Mara")
    files = [(io.BytesIO(PNG), "cat.png"), (io.BytesIO(b"%PDF-1.7"), "a.pdf")]
    assert say(mara, key="k", files=files).status_code == 302
    picture, paper = re.findall(r'href="(/files/.*?)"', mara.get("/rooms/1").text)
    answer = mara.get(picture)
    assert (answer.data, answer.content_type) == (PNG, "image/png")
    assert mara.get(paper).headers["Content-Disposition"].startswith("attachment")
    assert app.test_client().get(picture).status_code == 302


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", "file"),
        ("a\r\nSet-Cookie: x=y.pdf", "a  Set-Cookie: x=y.pdf"),
        ("\x00\u202efdp.\ud83d.exe", "fdp. .exe"),
        ("<b>.pdf", "&lt;b&gt;.pdf"),
        ("x" * 1000, "x" * 100),
    ],
    ids=["none", "lines", "hidden", "markup", "long"],
)
def test_odd_name_of_a_file_is_shown_and_the_file_is_served(app: Flask, name: str, shown: str) -> None:
    mara = come_in(app, "Mara")
    with app.app_context():
        write(1, 1, "", "k", [(name, b"%PDF-1.7")])
    [(url, text)] = re.findall(r'href="(/files/.*?)" download>(.*?)</a>', mara.get("/rooms/1").text)
    assert text == shown
    answer = mara.get(url)
    assert (answer.data, answer.status_code) == (b"%PDF-1.7", 200)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"MZ program", "Only pictures"), (b"<svg onload=x>", "Only pictures"), (b"", "1 byte")],
    ids=["program", "svg", "empty"],
)
def test_file_of_another_kind_or_size_is_refused(app: Flask, data: bytes, reason: str) -> None:
    answer = say(come_in(app, "Mara"), "look", files=[(io.BytesIO(data), "cat.png")])
    assert answer.status_code == 400
    assert reason in answer.text


@pytest.mark.parametrize(("size", "status", "reason"), [(MAX_FILE + 1, 400, "5 MiB"), (4 * MAX_FILE, 413, "")])
def test_file_that_is_too_large_is_refused(app: Flask, size: int, status: int, reason: str) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    file = part % (b"files", b'; filename="cat.png"', PNG + bytes(size - len(PNG)))
    body = part % (b"key", b"", b"k") + file + b"--x--"
    answer = come_in(app, "Mara").post("/rooms/1", data=body, content_type="multipart/form-data; boundary=x")
    assert answer.status_code == status
    assert reason in answer.text


def test_login_elsewhere_ends_the_first(app: Flask) -> None:
    first, _ = come_in(app, "Mara"), come_in(app, "Mara")
    assert first.get("/rooms/1").status_code == 302


def test_two_windows_are_fine_by_one_option(app: Flask) -> None:
    app.config["ONE_LOGIN"] = False
    first, second = come_in(app, "Mara"), come_in(app, "Mara")
    assert first.get("/rooms/1").status_code == second.get("/rooms/1").status_code == 200
    second.post("/logout")
    assert first.get("/rooms/1").status_code == 200
    assert second.get("/rooms/1").status_code == 302


def test_announcement_stands_in_every_room(app: Flask) -> None:
    run = app.test_cli_runner().invoke
    assert run(args=["announce", "Tea is ready"]).exit_code == 0
    mara = come_in(app, "Mara")
    assert words(mara) == words(mara, "/rooms/2") == ["Tea is ready"]
    assert "1 to 1000" in run(args=["announce", " "]).output
