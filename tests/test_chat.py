"""The example chat, over the wire and in a real Chromium.

`python -m tests.test_chat` writes the screenshot of the README, docs/chat.png.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import websocket

from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, missing, serve
from .test_readme import blocks

pytestmark = pytest.mark.slow  # it starts servers or installs packages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

GUNICORN = [sys.executable, "-m", "gunicorn", "-k", "geventws.Worker", "--chdir", "examples/flask_chat", "app:app"]
GEVENTWS = ["sh", "-c", 'cd examples/flask_chat && exec "$0" -m geventws app:app "$@"', sys.executable]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A room that waits for the slow one would wait for send_timeout, longer than any test does.
PATIENT = {"GEVENTWS_SEND_TIMEOUT": str(2 * DEADLINE)}
SMILES = "\N{SMILING FACE WITH OPEN MOUTH}" * 1000


@contextmanager
def serve_chat(command: list[str], directory: Path, port: int = 0) -> Iterator[Server]:
    address = f"127.0.0.1:{port}"
    variables = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **PATIENT}
    server = Server([*command, "--bind", address], address, None, directory / "log", variables)
    try:
        yield server
    finally:
        server.stop()


class Visitor:
    """A client of the chat's protocol, without a browser."""

    def __init__(self, server: Server, sock: socket.socket | None = None) -> None:
        self.ws = websocket.create_connection(server.url("/chat"), DEADLINE, socket=sock or server.socket())
        self.count = 0
        self.seen: list[dict[str, Any]] = []

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def leave(self) -> None:
        self.ws.close()
        self.ws.shutdown()  # close() leaves the socket open where the server closed first

    def send(self, event: object) -> None:
        self.ws.send(json.dumps(event, ensure_ascii=False))

    def join(self, name: str, key: str | None = None) -> dict[str, Any]:
        """Ask to come in and return the answer: a welcome, or an error."""
        self.send({"join": name, "key": key or f"key of {name}"})
        return self.expect("welcome", "error")

    def say(self, text: str) -> str:
        """Say something and return the id it was given."""
        self.count += 1
        id = f"{self.ws.sock.getsockname()[1]}-{self.count}"
        self.send({"say": text, "id": id})
        return id

    def next_frame(self, wanted: int) -> bytes:
        """Return the payload of the next frame of this opcode; pings alone do not put off the deadline."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            opcode, data = self.ws.recv_data(control_frame=True)
            if opcode == wanted:
                return bytes(data)
        pytest.fail(f"no frame with opcode {wanted} came within {DEADLINE:g} s")

    def expect(self, *types: str) -> dict[str, Any]:
        """Return the next event of one of these types; the ones passed over are in `seen`."""
        while True:
            event: dict[str, Any] = json.loads(self.next_frame(websocket.ABNF.OPCODE_TEXT))
            if event["type"] in types:
                return event
            self.seen.append(event)

    def close_code(self) -> int:
        """Return the code that the server closes with."""
        return int.from_bytes(self.next_frame(websocket.ABNF.OPCODE_CLOSE)[:2], "big")


Visit = Callable[..., Visitor]


@pytest.fixture(scope="module", params=[GUNICORN, GEVENTWS], ids=["gunicorn", "geventws"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_chat(request.param, tmp_path_factory.mktemp("chat")) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture
def visit(server: Server) -> Iterator[Visit]:
    visitors: list[Visitor] = []

    def come(name: str | None = None, key: str | None = None) -> Visitor:
        visitors.append(visitor := Visitor(server))
        if name:
            assert visitor.join(name, key)["type"] == "welcome"
        return visitor

    yield come
    for visitor in visitors:
        visitor.leave()


def test_two_people_hear_each_other(visit: Visit) -> None:
    anna, ben = visit("Anna"), visit("Ben")
    for speaker, text in ((anna, "Hello Ben"), (ben, "Hello Anna")):
        id = speaker.say(f"  {text}\n")
        for listener in (anna, ben):
            said = listener.expect("said")
            assert (said["id"], said["text"]) == (id, text)
            assert said["who"]["name"] == ("Anna" if speaker is anna else "Ben")


def test_coming_and_leaving_are_told(visit: Visit) -> None:
    anna = visit("Anna")
    ben = visit()
    welcome = ben.join("Ben")
    assert [who["name"] for who in welcome["members"]] == ["Anna", "Ben"]
    assert anna.expect("joined")["who"] == welcome["you"]
    ben.leave()
    assert anna.expect("left")["who"] == welcome["you"]


def test_newcomer_gets_the_last_50_messages(visit: Visit) -> None:
    anna = visit("Anna")
    ids = [anna.say(f"message {number}") for number in range(60)]
    while anna.expect("said")["id"] != ids[-1]:
        pass
    history = visit().join("Ben")["history"]
    assert [said["id"] for said in history] == ids[-50:]


@pytest.mark.parametrize("name", ["Anna", " anna ", "ANNA", "\uff21nna"])
def test_name_of_someone_present_is_refused(visit: Visit, name: str) -> None:
    visit("Anna")
    other = visit()
    assert other.join(name, key="another browser") == {
        "type": "error",
        "text": "Anna is here already. Please choose another name.",
        "id": None,
    }
    assert other.join("Annabel")["type"] == "welcome"


@pytest.mark.parametrize("name", ["", " \t", "n" * 25, "a\u202eb", "a\u200bb", "a\x00b", "\ud800"])
def test_name_that_would_not_show_is_refused(visit: Visit, name: str) -> None:
    visitor = visit()
    visitor.ws.send(json.dumps({"join": name, "key": "k"}))
    assert visitor.expect("error", "welcome")["text"] == "A name has 1 to 24 visible characters."


def test_one_name_used_by_two_people_in_turn_keeps_them_apart(visit: Visit) -> None:
    first = visit("Anna", key="first")
    ids = [first.expect("said")["who"]["id"] for _ in [first.say("it is me")]]
    first.leave()
    second = visit()
    welcome = second.join("Anna", key="second")
    assert welcome["history"][-1]["who"] == {"name": "Anna", "id": ids[0]}
    assert welcome["you"]["id"] != ids[0]


def test_returning_browser_takes_its_place_back_unnoticed(visit: Visit) -> None:
    witness, old = visit("Witness"), visit("Anna", key="secret")
    witness.expect("joined")
    new = visit("Anna", key="secret")
    assert old.close_code() == 4000
    new.say("back again")
    assert witness.expect("said")["who"]["name"] == "Anna"
    assert witness.seen == []


def test_two_names_in_one_browser_are_two_people(visit: Visit) -> None:
    first, second = visit("Anna", key="same browser"), visit()
    welcome = second.join("Ben", key="same browser")
    assert len({who["id"] for who in welcome["members"]}) == 2
    first.say("from the first tab")
    assert second.expect("said")["who"] != welcome["you"]


def test_page_learns_that_a_silent_connection_lives(visit: Visit) -> None:
    anna = visit("Anna")
    anna.send({"ping": True})
    assert anna.expect("pong") == {"type": "pong"}


def test_too_long_message_is_answered_in_words(visit: Visit) -> None:
    anna = visit("Anna")
    id = anna.say("x" * 1001)
    assert anna.expect("error", "said") == {"type": "error", "text": "A message has 1 to 1000 characters.", "id": id}
    anna.say(SMILES)
    assert anna.expect("error", "said")["text"] == SMILES


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", 1008),
        ("", 1008),
        ("[]", 1008),
        ("1", 1008),
        ('{"say": 1, "id": "a"}', 1008),
        ('{"say": "no id"}', 1008),
        ('{"join": "Anna", "key": "twice"}', 1008),
        ("[" * 10_000, 1008),
        (b"\xff\xfe", 1008),
        ("x" * 16_385, 1009),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_message_of_no_chat_program_ends_only_its_sender(visit: Visit, message: str | bytes, code: int) -> None:
    witness, sender = visit("Witness"), visit("Sender")
    sender.ws.send(message, websocket.ABNF.OPCODE_BINARY if isinstance(message, bytes) else websocket.ABNF.OPCODE_TEXT)
    assert sender.close_code() == code
    assert witness.expect("left")["who"]["name"] == "Sender"
    witness.say("still here")
    assert witness.expect("said")["text"] == "still here"


@pytest.mark.parametrize("first", ['{"say": "too early", "id": "a"}', r'{"join": "Anna", "key": "\ud800"}'])
def test_stranger_who_breaks_the_protocol_is_closed(visit: Visit, first: str) -> None:
    visitor = visit()
    visitor.ws.send(first)
    assert visitor.close_code() == 1008


def test_half_a_character_reaches_everyone_and_breaks_nobody(visit: Visit) -> None:
    anna, ben = visit("Anna"), visit("Ben")
    anna.ws.send(r'{"say": "\ud83d", "id": "half"}')
    assert ben.expect("said")["text"] == "\ud83d"
    ben.say("what?")
    assert anna.expect("said")["text"] == "\ud83d"
    assert anna.expect("said")["text"] == "what?"


def test_slow_reader_delays_nobody_and_is_dropped(server: Server, visit: Visit) -> None:
    talker = visit("Talker")
    sock = server.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with Visitor(server, sock) as slow:
        slow.join("Slow")
        for _ in range(3000):
            talker.say(SMILES)
            talker.expect("said")
            if any(event["type"] == "left" for event in talker.seen):
                break
        else:
            pytest.fail("the slow reader is still in the room")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_member_that_stops_reading_holds_up_and_closes_no_other_in_the_docs_either(
    tmp_path: Path, front_end: str
) -> None:
    (app,) = (block.code for block in blocks((ROOT / "docs" / "testing.md").read_text()) if "# app.py" in block.code)
    (tmp_path / "app.py").write_text(app)
    with serve("app:app", tmp_path, front_end=front_end, env={"PYTHONPATH": f"{tmp_path}:{ROOT}", **PATIENT}) as server:

        def member(name: str, sock: socket.socket | None = None) -> websocket.WebSocket:
            login = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
            login.request("POST", f"/login/{name}")
            cookie = (login.getresponse().getheader("Set-Cookie") or "").partition(";")[0]
            login.close()
            sock = sock or server.socket()
            ws = websocket.create_connection(server.url("/chat"), socket=sock, cookie=cookie, subprotocols=["v1"])
            ws.settimeout(DEADLINE)
            return ws

        sock = server.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow, talker, listener = member("slow", sock), member("talker"), member("listener")
        for number in range(48):  # 12 MiB, twice what kernel and outbox hold
            text = f"{number} {'x' * (1 << 18)}"
            talker.send(text)
            for ws in (talker, listener):
                assert json.loads(ws.recv()) == {"from": "talker", "text": text}
        for ws in (talker, listener, slow):
            ws.shutdown()


class Tab:
    """A page of the chat in its own browser profile; what its script complains of is in `complaints`."""

    def __init__(
        self, browser: Browser, server: Server, name: str = "", page: Page | None = None, **options: Any
    ) -> None:
        self.page = page or browser.new_context(**options).new_page()
        self.page.set_default_timeout(DEADLINE * 1000)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"http://127.0.0.1:{server.port}/")
        if name:
            self.enter(name)
            self.wait_for("#state[data-state=connected]")

    def enter(self, name: str) -> None:
        self.page.get_by_label("Your name").fill(name)
        self.page.keyboard.press("Enter")

    def say(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def wait_for(self, selector: str, text: str | None = None) -> None:
        """Return when an element of this selector, with this text, is to be seen."""
        self.page.locator(selector, has_text=text).first.wait_for()

    def wait_for_end_of(self, selector: str, text: str | None = None) -> None:
        """Return when no such element is to be seen any more."""
        self.page.locator(selector, has_text=text).first.wait_for(state="hidden")

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()


@contextmanager
def start_chromium(**options: Any) -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the playwright package")
    with sync_playwright() as playwright:
        executable = shutil.which("chromium") or playwright.chromium.executable_path
        if not Path(executable).exists():
            missing("Chromium, from the system or from `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS, **options)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with start_chromium() as browser:
        yield browser


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Server]:
    """A chat of one's own, with nothing said in it yet."""
    with serve_chat(GUNICORN, tmp_path) as server:
        yield server


def test_two_browsers_talk(chromium: Browser, room: Server) -> None:
    anna, ben = Tab(chromium, room, "Anna"), Tab(chromium, room, "Ben")
    anna.wait_for(".note", "Ben joined")
    for tab in (anna, ben):
        assert tab.texts("#people bdi") == ["Anna", "Ben"]
    anna.say("Hello Ben")
    ben.wait_for(".message:not(.own)", "Hello Ben")
    ben.say("Hello Anna")
    anna.wait_for(".message:not(.own)", "Hello Anna")
    anna.wait_for_end_of(".pending")
    assert anna.texts(".own .words") == ["Hello Ben"]
    assert ben.texts(".own .words") == ["Hello Anna"]
    ben.page.context.close()
    anna.wait_for(".note", "Ben left")
    assert anna.texts("#people bdi") == ["Anna"]
    assert anna.complaints == []


def test_what_people_write_is_shown_as_text(chromium: Browser, room: Server) -> None:
    name, text = "<b onclick=alert(1)>x</b>", "<img src=x onerror=\"document.title='hacked'\"><script>alert(1)</script>"
    mallory, anna = Tab(chromium, room, name[:24]), Tab(chromium, room, "Anna")
    mallory.say(text)
    anna.wait_for(".message")
    assert anna.texts(".words") == [text]
    assert anna.texts("#people bdi")[0] == anna.texts(".message .author")[0] == name[:24]
    assert anna.page.locator("#room :is(img, script, b)").count() == 0
    assert anna.page.title() == "The Greenlet Room"


def test_page_comes_back_after_a_restart_and_loses_no_message(chromium: Browser, tmp_path: Path) -> None:
    with serve_chat(GUNICORN, tmp_path) as server:
        anna, ben = Tab(chromium, server, "Anna"), Tab(chromium, server, "Ben")
        anna.say("before")
        ben.wait_for(".message", "before")
    anna.wait_for("#state[data-state=lost]")
    anna.say("meanwhile")
    anna.wait_for(".pending", "meanwhile")
    with serve_chat(GUNICORN, tmp_path, server.port):
        ben.wait_for(".message", "meanwhile")
        anna.wait_for_end_of(".pending")
        ben.say("after")
        anna.wait_for(".message:not(.own)", "after")
        for tab in (anna, ben):
            assert tab.texts(".words") == ["before", "meanwhile", "after"]
            assert sorted(tab.texts("#people bdi")) == ["Anna", "Ben"]
            assert tab.complaints == []


def test_page_that_changes_network_shows_nothing_twice(chromium: Browser, room: Server) -> None:
    anna = Tab(chromium, room, "Anna")
    anna.say("one")
    anna.wait_for_end_of(".pending")
    anna.page.evaluate("window.dispatchEvent(new Event('online'))")
    anna.wait_for(".note", "connected again")
    anna.say("two")
    anna.wait_for_end_of(".pending")
    assert anna.texts(".words") == ["one", "two"]


def test_name_in_use_is_explained_beside_the_field(chromium: Browser, room: Server) -> None:
    Tab(chromium, room, "Anna")
    other = Tab(chromium, room)
    other.enter("anna")
    other.wait_for("#name-error", "Anna is here already")
    other.enter("Annabel")
    other.wait_for("#state[data-state=connected]")
    assert other.texts("#people bdi") == ["Anna", "Annabel"]


def test_second_window_takes_over_and_the_first_says_so(chromium: Browser, room: Server) -> None:
    first = Tab(chromium, room, "Anna")
    second = Tab(chromium, room, "Anna", page=first.page.context.new_page())
    first.wait_for("#name-error", "another window")
    assert second.texts("#people bdi") == ["Anna"]


def test_second_tab_is_a_second_person_until_it_gives_the_same_name(chromium: Browser, room: Server) -> None:
    anna = Tab(chromium, room, "Anna")
    second = Tab(chromium, room, page=anna.page.context.new_page())
    assert second.page.get_by_label("Your name").input_value() == ""
    second.enter("Ben")
    second.wait_for("#state[data-state=connected]")
    assert anna.texts("#state") == ["Connected"]
    anna.page.reload()
    assert anna.page.get_by_label("Your name").input_value() == "Anna"


def test_who_is_alone_reads_how_not_to_be(chromium: Browser, room: Server) -> None:
    anna = Tab(chromium, room, "Anna")
    anna.wait_for("#alone", "second window")
    ben = Tab(chromium, room, "Ben")
    anna.wait_for_end_of("#alone:not([hidden])")
    ben.page.close()
    anna.wait_for("#alone:not([hidden])")


@pytest.mark.parametrize("text", ["short", "\u05e9\u05dc\u05d5\u05dd \u05dc\u05db\u05d5\u05dc\u05dd", "12"])
def test_time_keeps_its_distance_from_the_words(chromium: Browser, room: Server, text: str) -> None:
    anna = Tab(chromium, room, "Anna")
    anna.say(text)
    anna.wait_for_end_of(".pending")
    words, clock = (anna.page.locator(f".message {name}").bounding_box() for name in (".words", "time"))
    assert words and clock
    gap = max(clock["x"] - words["x"] - words["width"], words["x"] - clock["x"] - clock["width"])
    assert gap >= 11


def test_too_long_message_stays_in_the_field(chromium: Browser, room: Server) -> None:
    anna = Tab(chromium, room, "Anna")
    anna.say("x" * 1001)
    anna.wait_for("#text-error", "1001 characters")
    assert anna.page.get_by_label("Message", exact=True).input_value() == "x" * 1001
    assert anna.texts(".message") == []


def test_page_fits_a_narrow_phone(chromium: Browser, room: Server) -> None:
    anna = Tab(chromium, room, "A" * 24, viewport={"width": 320, "height": 480})
    anna.say("w" * 1000)
    anna.wait_for(".message")
    for box in ("html", "#log"):
        assert anna.page.locator(box).evaluate("box => box.scrollWidth - box.clientWidth") == 0
    composer = anna.page.locator("#composer").bounding_box()
    assert composer and composer["y"] + composer["height"] <= 480


def take_screenshot(path: Path) -> None:
    look: dict[str, Any] = {"viewport": {"width": 1000, "height": 640}, "locale": "en-GB", "color_scheme": "light"}
    with (
        tempfile.TemporaryDirectory() as directory,
        serve_chat(GUNICORN, Path(directory)) as server,
        start_chromium() as browser,
    ):
        mara, jonas = Tab(browser, server, "Mara", **look), Tab(browser, server, "Jonas")
        mara.wait_for(".note", "Jonas joined")
        for tab, text in (
            (mara, "Hello! You found the way in."),
            (jonas, "One name and I was here. What runs behind this page?"),
            (jonas, "It feels like a lot of machinery."),
            (mara, "One Flask view. It loops over its WebSocket, and everyone who is here has a greenlet."),
            (jonas, "And if the server restarts?"),
            (mara, "The page comes back by itself, and nothing you wrote is lost."),
        ):
            tab.say(text)
            for listener in (mara, jonas):
                listener.wait_for(".message:not(.pending) .words", text)
        mara.page.screenshot(path=path)


if __name__ == "__main__":
    take_screenshot(ROOT / "docs" / "chat.png")
