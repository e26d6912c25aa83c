"""The example chat, over the wire and in a real Chromium. Its own tests are in examples/flask_chat.

`python -m tests.test_chat` writes the screenshot of the README, docs/chat.png.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import pytest
import websocket
from werkzeug.security import generate_password_hash

from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, missing, node_modules, serve, wait_for
from .test_readme import blocks

# A browser beside other browsers, on two cores, may be held up for longer than a page waits.
pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=2)]

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EXAMPLE = ROOT / "examples" / "flask_chat"
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
LINKS = "www.a.de " * 111  # which are long as HTML
PNG = bytes.fromhex(  # 1 x 1 pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360f8cf500f0003860180b2a2c8f20000000049454e44ae426082"
)


@contextmanager
def serve_chat(
    directory: Path,
    command: Sequence[str] = GUNICORN,
    port: int = 0,
    env: Mapping[str, str] | None = None,
    log: str = "log",
) -> Iterator[Server]:
    """Serve the chat whose data are in a directory."""
    address = f"127.0.0.1:{port}"
    variables = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "CHAT_INSTANCE": str(directory), **(env or {})}
    server = Server([*command, "--bind", address], address, None, directory / log, variables)
    try:
        yield server
    finally:
        server.stop()
    assert "Traceback" not in server.log, server.log


def make_instance(directory: Path) -> Path:
    """Have the chat make its data, but for passwords that are checked in no time."""
    env = {**os.environ, "PYTHONPATH": f"{EXAMPLE}:{ROOT}", "CHAT_INSTANCE": str(directory)}
    subprocess.run([sys.executable, "-c", "import app"], env=env, check=True)
    with closing(sqlite3.connect(directory / "chat.db")) as database, database:
        database.execute("UPDATE user SET password = ?", [generate_password_hash("demo", "pbkdf2:sha256:1")])
    return directory


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a chat begins with."""
    return make_instance(tmp_path_factory.mktemp("instance"))


@pytest.fixture
def instance(fresh: Path, tmp_path: Path) -> Path:
    """The data of a chat of one's own, with nothing said in it yet."""
    return shutil.copytree(fresh, tmp_path / "instance")


class Visitor:
    """A client of the chat's protocol, without a browser."""

    def __init__(self, server: Server, name: str, sock: socket.socket | None = None) -> None:
        login = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        login.request("POST", "/login", urlencode({"name": name, "password": "demo"}), form)
        cookie = (login.getresponse().getheader("Set-Cookie") or "").partition(";")[0]
        login.close()
        url = server.url("/rooms/1/live")
        self.ws = websocket.create_connection(url, DEADLINE, socket=sock or server.socket(), cookie=cookie)
        self.seen: list[dict[str, Any]] = []
        self.hear("welcome")

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.ws.shutdown()

    def say(self, text: str) -> None:
        self.ws.send(json.dumps({"say": text, "key": token_hex(16)}))

    def hear(self, kind: str) -> dict[str, Any]:
        """Return the next message of this kind; those passed over are in `seen`."""
        while True:
            message: dict[str, Any] = json.loads(self.ws.recv())
            if message["type"] == kind:
                return message
            self.seen.append(message)


def test_slow_reader_delays_nobody_and_is_dropped(instance: Path) -> None:
    with serve_chat(instance) as server, Visitor(server, "Mara") as talker:
        talker.ws.settimeout(15)  # a room that waits for the slow one would wait for send_timeout, 20 s
        sock = server.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with Visitor(server, "Jonas", sock):
            for _ in range(3000):
                talker.say(LINKS)
                talker.hear("said")
                if any(message["type"] == "left" for message in talker.seen):
                    break
            else:
                pytest.fail("the slow reader is still in the room")


@pytest.mark.parametrize("command", [GUNICORN, GEVENTWS], ids=FRONT_ENDS)
def test_socket_without_login_is_refused_as_401(instance: Path, command: list[str]) -> None:
    with serve_chat(instance, command) as server:
        for path in ("/rooms/1/live", "/rooms/1/upload"):
            with pytest.raises(websocket.WebSocketBadStatusException, match="401"):
                websocket.create_connection(server.url(path), DEADLINE, socket=server.socket())


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_member_that_stops_reading_holds_up_and_closes_no_other_in_the_docs_either(
    tmp_path: Path, front_end: str
) -> None:
    (app,) = (block.code for block in blocks((ROOT / "docs" / "testing.md").read_text()) if "# app.py" in block.code)
    (tmp_path / "app.py").write_text(app)
    with serve("app:app", tmp_path, front_end=front_end, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as server:

        def member(name: str, sock: socket.socket | None = None) -> websocket.WebSocket:
            login = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
            login.request("POST", f"/login/{name}")
            cookie = (login.getresponse().getheader("Set-Cookie") or "").partition(";")[0]
            login.close()
            sock = sock or server.socket()
            ws = websocket.create_connection(server.url("/chat"), socket=sock, cookie=cookie, subprotocols=["v1"])
            ws.settimeout(15)  # a room that waits for the slow one would wait for send_timeout, 20 s
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


class Chat(NamedTuple):
    """A room of a server."""

    server: Server
    number: int = 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/rooms/{self.number}"


class Tab:
    """A page of the chat in its own browser profile; what its script complains of is in `complaints`."""

    def __init__(self, browser: Browser, room: Chat, name: str = "", **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(DEADLINE * 1000)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(room.url)
        if name:
            self.come_in(name)

    def come_in(self, name: str) -> None:
        self.page.get_by_role("button", name=name).click()
        self.page.wait_for_url("**/rooms/*")
        self.wait_for("#people bdi", name)

    def hurry(self) -> None:
        """Have the page connect now, not when its wait is over."""
        self.page.evaluate("dispatchEvent(new Event('online'))")

    def say(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def wait_for(self, selector: str, text: str | re.Pattern[str] | None = None) -> None:
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


@pytest.fixture(scope="module")
def shared(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_chat(shutil.copytree(fresh, tmp_path_factory.mktemp("shared") / "instance")) as server:
        yield server


@pytest.fixture
def room(shared: Server, chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Chat]:
    """A room of one's own, with nothing said in it yet."""
    number = add_room(shared, f"{token_hex(4)} {request.node.name}"[:40])  # another when it is tried again
    yield Chat(shared, number)
    for context in chromium.contexts:
        context.close()


def add_room(server: Server, name: str) -> int:
    """Make a room, and return its number."""
    http = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    http.request("POST", "/login", "name=Mara&password=demo", form)
    answer = http.getresponse()
    answer.read()
    cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
    http.request("POST", "/rooms", urlencode({"name": name}), {**form, "Cookie": cookie})
    place = http.getresponse().getheader("Location") or ""
    http.close()
    return int(place.rpartition("/")[2])


def test_two_browsers_talk(chromium: Browser, room: Chat) -> None:
    mara, jonas = Tab(chromium, room, "Mara"), Tab(chromium, room, "Jonas")
    mara.wait_for(".note", "Jonas joined")
    for tab in (mara, jonas):
        assert tab.texts("#people bdi") == ["Jonas", "Mara"]
    mara.say("Hello Jonas")
    jonas.wait_for(".message:not(.own)", "Hello Jonas")
    jonas.say("Hello Mara")
    mara.wait_for(".message:not(.own)", "Hello Mara")
    mara.wait_for_end_of(".pending")
    assert mara.texts(".own .words") == ["Hello Jonas"]
    assert jonas.texts(".own .words") == ["Hello Mara"]
    mara.page.reload()
    mara.wait_for("#people bdi", "Jonas")
    assert mara.texts(".words") == ["Hello Jonas", "Hello Mara"]
    assert mara.texts(".own .words") == ["Hello Jonas"]
    jonas.page.context.close()
    mara.wait_for(".note", "Jonas left")
    assert mara.texts("#people bdi") == ["Mara"]
    assert mara.complaints == []


def test_what_people_write_is_shown_as_text(chromium: Browser, room: Chat) -> None:
    text = "<img src=x onerror=\"document.title='hacked'\"><script>alert(1)</script>"
    mara, jonas = Tab(chromium, room, "Mara"), Tab(chromium, room, "Jonas")
    mara.say(text)
    jonas.wait_for(".message")
    for tab in (mara, jonas):
        tab.wait_for_end_of(".pending")
        assert tab.texts(".words") == [text]
        assert tab.page.locator("#log :is(img, script)").count() == 0
        assert "hacked" not in tab.page.title()


def test_link_leads_out_and_tells_nobody_from_where(chromium: Browser, room: Chat) -> None:
    mara = Tab(chromium, room, "Mara")
    mara.say("see https://example.org/a?b=1&c=2.")
    mara.wait_for(".words a")
    link = mara.page.locator(".words a")
    assert link.get_attribute("href") == "https://example.org/a?b=1&c=2"
    assert "noopener" in (link.get_attribute("rel") or "")


def test_page_comes_back_after_a_restart_and_loses_no_message(chromium: Browser, instance: Path) -> None:
    with serve_chat(instance) as server:
        mara, jonas = Tab(chromium, Chat(server), "Mara"), Tab(chromium, Chat(server), "Jonas")
        mara.say("before")
        jonas.wait_for(".message", "before")
        mara.wait_for_end_of(".pending")
    mara.wait_for("#state", "Reconnecting…")
    mara.say("meanwhile")
    mara.wait_for(".pending", "meanwhile")
    with serve_chat(instance, port=server.port):
        for tab in (mara, jonas):
            tab.hurry()
        jonas.wait_for(".message", "meanwhile")
        mara.wait_for_end_of(".pending")
        jonas.say("after")
        mara.wait_for(".message:not(.own)", "after")
        for tab in (mara, jonas):
            tab.wait_for_end_of(".pending")
            assert tab.texts(".words") == ["before", "meanwhile", "after"]
            assert tab.texts("#people bdi") == ["Jonas", "Mara"]
            assert tab.texts("#state") == [""]
            assert tab.complaints == []


def test_page_that_was_offline_shows_all_once(chromium: Browser, room: Chat) -> None:
    mara, jonas = Tab(chromium, room, "Mara"), Tab(chromium, room, "Jonas")
    mara.say("one")
    jonas.wait_for(".message", "one")
    before = mara.page.locator("#composer").bounding_box()
    mara.page.context.set_offline(True)
    mara.wait_for("#state", "Reconnecting…")
    assert mara.page.locator("#composer").bounding_box() == before  # the line does not jump
    jonas.say("two")
    jonas.wait_for_end_of(".pending")
    mara.say("three")
    mara.page.context.set_offline(False)
    jonas.wait_for(".message", "three")
    for tab in (mara, jonas):
        tab.wait_for_end_of(".pending")
        assert tab.texts(".words") == ["one", "two", "three"]
    assert mara.texts("[aria-current] .unread") == [""]  # what came meanwhile is before her eyes


def test_gap_is_filled_in_order_when_the_database_answers_late(chromium: Browser, instance: Path) -> None:
    with serve_chat(instance) as server:
        mara, jonas = Tab(chromium, Chat(server), "Mara"), Tab(chromium, Chat(server), "Jonas")
        jonas.say("one")
        mara.wait_for(".message", "one")
        mara.page.route("**/after/*", lambda route: route.abort())
        mara.page.context.set_offline(True)
        jonas.say("two")
        jonas.wait_for_end_of(".pending")
    with serve_chat(instance, port=server.port):
        jonas.hurry()
        mara.page.context.set_offline(False)
        mara.page.wait_for_function("document.getElementById('state').textContent === ''")
        jonas.say("three")
        mara.wait_for(".message", "three")
        assert mara.texts(".words") == ["one", "three"]
        mara.page.unroute("**/after/*")
        mara.wait_for(".message", "two")
        assert mara.texts(".words") == ["one", "two", "three"]


def test_page_whose_login_has_ended_leads_to_the_login_and_back(chromium: Browser, room: Chat) -> None:
    mara = Tab(chromium, room, "Mara")
    mara.page.context.clear_cookies()
    mara.page.context.set_offline(True)
    mara.page.context.set_offline(False)
    mara.come_in("Mara")
    assert mara.page.url == room.url


def test_page_whose_login_has_ended_keeps_what_was_written(chromium: Browser, room: Chat) -> None:
    mara = Tab(chromium, room, "Mara")
    mara.page.context.clear_cookies()
    mara.page.context.set_offline(True)
    mara.say("on its way")
    mara.page.context.set_offline(False)
    mara.wait_for("#end", "login has ended")
    assert mara.page.locator("#composer").is_hidden()
    assert mara.texts(".pending .words") == ["on its way"]


def test_login_elsewhere_ends_this_one_and_says_so(chromium: Browser, room: Chat) -> None:
    first = Tab(chromium, room, "Mara")
    second = Tab(chromium, room, "Mara")
    first.wait_for("#end[role=alert]", "You have come in elsewhere.")
    assert second.texts("#people bdi") == ["Mara"]
    first.page.get_by_role("link", name="Come in again").click()
    first.come_in("Mara")
    second.wait_for("#end", "elsewhere")


def test_two_windows_are_fine_by_one_option(chromium: Browser, instance: Path) -> None:
    with serve_chat(instance, env={"CHAT_ONE_LOGIN": "false"}) as server:
        first, second = Tab(chromium, Chat(server), "Mara"), Tab(chromium, Chat(server), "Mara")
        second.say("hello me")
        first.wait_for(".own", "hello me")
        assert first.texts("#people bdi") == ["Mara"]
        first.page.get_by_role("button", name="Log out").click()
        first.wait_for("#login")
        second.say("still here")
        second.wait_for(".own:not(.pending)", "still here")


def test_logout_ends_the_other_tabs_of_this_browser(chromium: Browser, room: Chat) -> None:
    first = Tab(chromium, room, "Mara")
    second = first.page.context.new_page()
    second.goto(first.page.url)
    second.get_by_role("button", name="Log out").click()
    first.wait_for("#end", "You have logged out.")


def test_typing_is_shown_until_the_message_comes(chromium: Browser, room: Chat) -> None:
    mara, jonas = Tab(chromium, room, "Mara"), Tab(chromium, room, "Jonas")
    jonas.page.get_by_label("Message", exact=True).press_sequentially("Hi")
    mara.wait_for("#typing", "Jonas is typing…")
    jonas.page.keyboard.press("Enter")
    mara.wait_for(".message", "Hi")
    assert mara.texts("#typing") == [""]
    assert jonas.texts("#typing") == [""]


def test_unread_messages_are_counted_beside_the_other_room(chromium: Browser, room: Chat) -> None:
    other = room._replace(number=add_room(room.server, "Another place"))
    mara, jonas = Tab(chromium, room, "Mara"), Tab(chromium, other, "Jonas")
    count = f"[data-room='{other.number}'] .unread"
    for text in ("one", "two"):
        jonas.say(text)
    mara.wait_for(count, "2 unread")
    assert jonas.texts(count) == [""]
    mara.page.get_by_role("link", name="Another place").click()
    mara.wait_for(".message", "two")
    mara.page.goto(room.url)
    mara.wait_for("#people bdi", "Mara")
    assert mara.texts(count) == [""]


def test_who_reads_older_messages_is_not_moved(chromium: Browser, room: Chat) -> None:
    mara, jonas = Tab(chromium, room, "Mara"), Tab(chromium, room, "Jonas")
    for number in range(20):
        jonas.say(f"message {number}")
    mara.wait_for(".message", "message 19")
    first = mara.page.locator(".message").first
    assert mara.page.locator("#log").evaluate("log => log.scrollTop") == 0
    first.scroll_into_view_if_needed()
    place = first.bounding_box()
    jonas.say("new")
    mara.wait_for("#newer", "New messages")
    now = first.bounding_box()
    assert now and place and abs(now["y"] - place["y"]) < 1
    mara.page.get_by_role("button", name="New messages").click()
    mara.wait_for_end_of("#newer")
    box = mara.page.locator(".message").last.bounding_box()
    composer = mara.page.locator("#composer").bounding_box()
    assert box and composer and box["y"] + box["height"] <= composer["y"]


def test_messages_that_a_hidden_page_got_are_counted_in_its_title(chromium: Browser, room: Chat) -> None:
    mara, jonas = Tab(chromium, room, "Mara"), Tab(chromium, room, "Jonas")
    title = mara.page.title()
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true }); "
    hide += "document.dispatchEvent(new Event('visibilitychange')); }"
    mara.page.evaluate(hide, True)
    jonas.say("one")
    wait_for(lambda: mara.page.title().startswith("(1) "), "count in the title")
    mara.page.evaluate(hide, False)
    wait_for(lambda: mara.page.title() == title, "title without a count")


def test_three_files_of_which_one_is_cancelled_and_one_refused(chromium: Browser, room: Chat) -> None:
    mara, jonas = Tab(chromium, room, "Mara"), Tab(chromium, room, "Jonas")
    # Of the second no byte behind the first pieces is taken, so that there is time to cancel it.
    mara.page.evaluate("""() => {
      const slice = File.prototype.slice;
      File.prototype.slice = function (start, end) {
        return this.name === "slow.png" && start >= 262144 ? new Blob([]) : slice.call(this, start, end);
      };
    }""")
    files = [("cat.png", PNG), ("slow.png", PNG + bytes(300_000)), ("tool.png", b"MZ" + bytes(100))]
    drop(mara, files)
    jonas.wait_for(".picture img[alt='cat.png']")
    mara.wait_for("#uploads [role=alert]", "Only pictures")
    assert mara.page.locator("progress").evaluate("bar => bar.value / bar.max") < 1
    mara.page.get_by_role("button", name="Cancel slow.png").click()
    mara.page.get_by_role("button", name="Dismiss tool.png").click()
    mara.wait_for_end_of("#uploads li")
    assert mara.page.evaluate("document.activeElement.id") == "text"
    for tab in (mara, jonas):
        assert (
            tab.page.locator(".picture img").evaluate("async (image) => (await image.decode(), image.naturalWidth)")
            == 1
        )
        assert tab.page.locator(".message").count() == 1
    assert mara.complaints == []


def drop(tab: Tab, files: list[tuple[str, bytes]]) -> None:
    """Have files dropped on a page."""
    data = tab.page.evaluate_handle(
        """(files) => {
          const data = new DataTransfer();
          const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt());
          for (const [name, text] of files) data.items.add(new File([bytes(text)], name));
          return data;
        }""",
        [[name, b64encode(data).decode()] for name, data in files],
    )
    for event in ("dragenter", "dragover", "drop"):
        tab.page.dispatch_event("#talk", event, {"dataTransfer": data})


def test_chat_works_without_javascript_beside_one_that_has_it(chromium: Browser, room: Chat) -> None:
    mara = Tab(chromium, room, "Mara")
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(room.url)
    page.get_by_role("button", name="Jonas").click()
    page.get_by_label("Message", exact=True).fill("by form")
    page.get_by_label("Send files").set_input_files({"name": "cat.png", "mimeType": "image/png", "buffer": PNG})
    page.get_by_role("button", name="Send", exact=True).click()
    mara.wait_for(".message", "by form")
    mara.wait_for(".picture img")
    mara.say("heard")
    mara.wait_for(".own:not(.pending)", "heard")
    page.get_by_role("link", name="Look for new messages").click()
    page.locator(".words", has_text="heard").wait_for()
    assert page.locator(".words").all_inner_texts() == ["by form", "heard"]
    assert page.locator("#log").evaluate("log => log.scrollHeight > 0")
    page.get_by_role("button", name="Log out").click()
    assert page.locator("#login").is_visible()


def test_who_is_alone_reads_how_not_to_be(chromium: Browser, room: Chat) -> None:
    mara = Tab(chromium, room, "Mara")
    mara.wait_for("#alone", "private window")
    jonas = Tab(chromium, room, "Jonas")
    mara.wait_for_end_of("#alone:not([hidden])")
    jonas.page.close()
    mara.wait_for("#alone:not([hidden])")


def test_times_are_those_of_the_reader(chromium: Browser, room: Chat) -> None:
    utc, india = {"timezone_id": "UTC", "locale": "en-GB"}, {"timezone_id": "Asia/Kolkata", "locale": "en-GB"}
    mara, jonas = Tab(chromium, room, "Mara", **utc), Tab(chromium, room, "Jonas", **india)
    mara.say("now")
    jonas.wait_for(".message")
    mara.wait_for(".message:not(.pending)")
    minutes = []
    for tab in (mara, jonas):
        found = re.search(r"(\d\d):(\d\d)$", tab.texts(".message time")[0])
        assert found
        minutes.append(60 * int(found[1]) + int(found[2]))
    assert (minutes[1] - minutes[0]) % 1440 == 330


def test_time_keeps_its_distance_from_the_words(chromium: Browser, room: Chat) -> None:
    mara = Tab(chromium, room, "Mara")
    for text in ("short", "\u05e9\u05dc\u05d5\u05dd \u05dc\u05db\u05d5\u05dc\u05dd", "12"):
        mara.say(text)
        mara.wait_for(".message:not(.pending)", text)
        words, clock = (mara.page.locator(f".message {name}").last.bounding_box() for name in (".words", "time"))
        assert words and clock
        gap = max(clock["x"] - words["x"] - words["width"], words["x"] - clock["x"] - clock["width"])
        assert gap >= 11


def test_too_long_message_stays_in_the_field(chromium: Browser, room: Chat) -> None:
    mara = Tab(chromium, room, "Mara")
    mara.say("x" * 1001)
    mara.wait_for("#error", "1001 characters")
    assert mara.page.get_by_label("Message", exact=True).input_value() == "x" * 1001
    assert mara.texts(".message") == []


def test_page_fits_a_narrow_phone(chromium: Browser, room: Chat) -> None:
    mara = Tab(chromium, room, "Mara", viewport={"width": 320, "height": 480})
    mara.say("w" * 1000)
    mara.wait_for(".message")
    for box in ("html", "#log"):
        assert mara.page.locator(box).evaluate("box => box.scrollWidth - box.clientWidth") == 0
    composer = mara.page.locator("#composer").bounding_box()
    assert composer and composer["y"] + composer["height"] <= 480


def fill(mara: Tab, jonas: Tab) -> None:
    """Have the page show one of everything."""
    mara.say("Look at https://example.org")
    jonas.wait_for(".message", "Look")
    drop(jonas, [("cat.png", PNG), ("tool.png", b"MZ")])
    jonas.wait_for(".picture img")
    jonas.wait_for("#uploads [role=alert]")
    jonas.page.get_by_label("Message", exact=True).press_sequentially("Nice")
    mara.wait_for("#typing", "Jonas")


def test_announcement_has_the_direction_of_its_words_and_a_time(chromium: Browser, instance: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CHAT_INSTANCE": str(instance)}
    hebrew = "\u05e9\u05dc\u05d5\u05dd " * 30
    command = [sys.executable, "-m", "flask", "--app", "app", "announce", hebrew]
    subprocess.run(command, cwd=EXAMPLE, env=env, check=True)
    with serve_chat(instance) as server:
        mara = Tab(chromium, Chat(server), "Mara", viewport={"width": 320, "height": 640})
        said = mara.page.locator(".announcement p")
        assert said.evaluate("said => getComputedStyle(said).direction") == "rtl"
        assert re.search(r"\d:\d\d", said.locator("time").inner_text())
        assert mara.page.locator("#log").evaluate("box => box.scrollWidth - box.clientWidth") == 0
        mara.page.context.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(chromium: Browser, room: Chat, dark: bool) -> None:
    axe = (node_modules() / "axe-core" / "axe.min.js").read_text()

    def check(tab: Tab) -> None:
        tab.page.evaluate(axe)
        found = tab.page.evaluate(
            "async () => (await axe.run()).violations.map(({ id, nodes }) => [id, nodes.map(n => n.html)])"
        )
        assert found == []

    look: dict[str, Any] = {"color_scheme": "dark" if dark else "light"}
    mara = Tab(chromium, room, **look)
    check(mara)
    mara.come_in("Mara")
    check(mara)
    jonas = Tab(chromium, room, "Jonas", viewport={"width": 320, "height": 640}, **look)
    fill(mara, jonas)
    for tab in (mara, jonas):
        tab.page.evaluate("document.documentElement.dir = 'rtl'")
        check(tab)
        tab.page.context.set_offline(True)
        tab.wait_for("#state", "Reconnecting…")
        check(tab)
    mara.page.context.set_offline(False)
    Tab(chromium, room, "Mara", **look)
    mara.wait_for("#end")
    check(mara)


def test_keyboard_reaches_all_and_shows_where_it_is(chromium: Browser, room: Chat) -> None:
    mara = Tab(chromium, room, "Mara")
    look = """() => {
      const { id, ariaLabel, textContent } = document.activeElement;
      const shown = id === "files" ? attach : document.activeElement;
      return [id || ariaLabel || textContent.trim(), getComputedStyle(shown).outlineStyle];
    }"""
    reached = set()
    while "log" not in reached:
        mara.page.keyboard.press("Shift+Tab")
        where, outline = mara.page.evaluate(look)
        assert outline != "none", where
        reached.add(where)
    for _ in range(3):
        mara.page.keyboard.press("Tab")
        reached.add(mara.page.evaluate(look)[0])
    assert {"log", "files", "text"} <= reached, reached
    mara.page.get_by_label("Name of a new room").focus()
    mara.page.keyboard.type("By keyboard")
    mara.page.keyboard.press("Enter")
    mara.wait_for("#talk-title", "By keyboard")


def take_screenshot(path: Path) -> None:
    look: dict[str, Any] = {"viewport": {"width": 1000, "height": 640}, "locale": "en-GB", "color_scheme": "light"}
    with (
        tempfile.TemporaryDirectory() as directory,
        serve_chat(make_instance(Path(directory))) as server,
        start_chromium() as browser,
    ):
        mara, jonas = Tab(browser, Chat(server), "Mara", **look), Tab(browser, Chat(server), "Jonas")
        mara.wait_for(".note", "Jonas joined")
        for tab, text in (
            (mara, "Hello! You found the way in."),
            (jonas, "I logged in, and here I am. What runs this page?"),
            (jonas, "It feels like a lot of machinery."),
            (mara, "The Flask app that we had, 18 lines more in its files, and a view that joins a room."),
            (jonas, "And if the server restarts?"),
            (mara, "The page comes back by itself, with nothing lost."),
        ):
            tab.say(text)
            for listener in (mara, jonas):
                listener.wait_for(".message:not(.pending) .words", text)
        mara.page.screenshot(path=path)


if __name__ == "__main__":
    take_screenshot(ROOT / "docs" / "chat.png")
