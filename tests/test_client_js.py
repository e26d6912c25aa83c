"""The browser's half, geventws.js: its types, its clock under Node, and all else in Chromium against real servers."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import pytest

from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, missing, node_modules, serve, wait_for
from .test_chat import start_chromium
from .test_readme import blocks

# A browser beside other browsers, on two cores, may be held up for longer than a page waits.
pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=2)]

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCRIPT = ROOT / "geventws" / "static" / "geventws.js"
APP = "tests.apps_client:app"
NOW: dict[str, Any] = {"delay": 1}  # milliseconds
SOON: dict[str, Any] = {"delay": 10, "maxDelay": 100}
LATE: dict[str, Any] = {"delay": 2e9, "maxDelay": 2e9}  # later than any test ends, but for 1 chance in 30,000
EVENTS = ["open", "message", "error", "close", "state", "gap"]

CONNECT = """([path, protocols, options, events]) => {
  self.log = [];
  self.ws = new ReconnectingWebSocket(path, protocols, options);
  self.atFirst = ws.readyState;
  ws.binaryType = "arraybuffer";
  for (const name of events)
    ws.addEventListener(name, ({ type, data, code, reason, wasClean, detail }) =>
      log.push({ data, code, reason, wasClean, ...detail, type }));
}"""


class Cutter:
    """A proxy before a server: it can cut, be away, be silent, and lead to another server."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode = "pass"  # or "refuse", or "hold": take connections and do nothing with them
        self.budgets: deque[int] = deque()  # bytes that the next WebSockets get before they are cut
        self.handshakes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            self._open.add(client)
            if self.mode == "hold":
                continue
            try:
                if self.mode == "refuse":
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                self._reset(client)
                continue
            self._open.add(server)
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool = False) -> None:
        budget = None
        with suppress(OSError):
            while data := source.recv(65536):
                if is_answer and data.startswith(b"HTTP/1.1 101 "):
                    self.handshakes += 1
                    if self.budgets:
                        budget = self.budgets.popleft() + data.index(b"\r\n\r\n") + 4
                if budget is not None:
                    data = data[:budget]
                    budget -= len(data)
                sink.sendall(data)
                if budget == 0:
                    self._reset(source)
                    self._reset(sink)
            sink.shutdown(socket.SHUT_WR)

    def _reset(self, sock: socket.socket) -> None:
        self._open.discard(sock)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
        sock.close()

    def cut(self) -> None:
        """Reset all that is open."""
        for sock in tuple(self._open):
            self._reset(sock)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


class Tab:
    """A page with geventws.js in its own browser profile."""

    def __init__(self, browser: Browser, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.context = browser.new_context()
        self.page = self.context.new_page()
        self.page.set_default_timeout(DEADLINE * 1000)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        # What a browser itself says of a connection that fails, no page can prevent.
        self.page.on("console", lambda message: self._note(message.text))
        self.page.goto(f"{self.origin}/")
        self.wait("!!self.ReconnectingWebSocket")

    def _note(self, text: str) -> None:
        if not text.startswith(("WebSocket connection to ", "WebSocket is already in CLOSING")):
            self.complaints.append(text)

    def connect(self, path: str, protocols: Sequence[str] = (), **options: Any) -> None:
        """Open a WebSocket, whose events are in `log` from then on."""
        self.page.evaluate(CONNECT, [path, protocols, options, EVENTS])

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    def wait(self, condition: str) -> None:
        """Return once a JavaScript expression is true."""
        # By wait_for_function() the page itself would look, by an eval that its policy forbids.
        wait_for(lambda: self.run(condition), condition)

    def wait_for(self, type: str, count: int = 1) -> None:
        """Return once as many events of a type have come."""
        self.wait(f"log.filter((event) => event.type === '{type}').length >= {count}")

    def events(self, type: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.run(f"log.filter((event) => event.type === '{type}')")
        return found

    def states(self) -> list[str]:
        return [event["state"] for event in self.events("state")]

    def messages(self) -> list[Any]:
        return [json.loads(event["data"]) for event in self.events("message")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with start_chromium(ignore_default_args=["--disable-back-forward-cache"]) as browser:
        yield browser


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(APP, tmp_path_factory.mktemp("client"), front_end=request.param) as server:
        yield server
        assert "Traceback" not in server.log


@pytest.fixture
def cutter(server: Server) -> Iterator[Cutter]:
    cutter = Cutter(server.port)
    yield cutter
    cutter.close()


@pytest.fixture
def tab(chromium: Browser, cutter: Cutter) -> Iterator[Tab]:
    with open_tab(chromium, cutter.port) as tab:
        yield tab


@contextmanager
def open_tab(browser: Browser, port: int) -> Iterator[Tab]:
    tab = Tab(browser, port)
    yield tab
    assert tab.complaints == []
    tab.context.close()


def post(server: Server, path: str) -> str:
    with urlopen(Request(f"http://127.0.0.1:{server.port}{path}", method="POST"), timeout=DEADLINE) as answer:
        text: str = answer.read().decode()
        return text


def seen(server: Server) -> list[str]:
    with urlopen(f"http://127.0.0.1:{server.port}/seen", timeout=DEADLINE) as answer:
        found: list[str] = json.load(answer)
        return found


# The file


def test_script_is_small_and_needs_nothing() -> None:
    assert SCRIPT.stat().st_size < 6144
    assert re.findall(r"\bimport\b|\brequire\b|\beval\b|\bFunction\(", SCRIPT.read_text()) == []


RIGHT_PAGE = """
import { ReconnectingWebSocket } from "./geventws.js";
const ws = new ReconnectingWebSocket("/chat", ["v2"], { maxQueue: 10, retry: ({ code }) => code !== 4001 });
const standard: WebSocket = ws;
ws.onmessage = ({ data }) => ws.send(data);
ws.addEventListener("close", ({ code, reason }) => console.log(code + 1, reason.length));
ws.addEventListener("gap", () => location.reload());
if (ws.readyState === ReconnectingWebSocket.OPEN || ws.state === "waiting") ws.close(4000, "bye");
"""

WRONG_PAGE = """
import { ReconnectingWebSocket } from "./geventws.js";
const ws = new ReconnectingWebSocket("/chat", [], { maxQueue: "10" });
ws.close("bye");
ws.onmessage = (event) => event.code;
new ReconnectingWebSocket();
ws.url = "/other";
"""


@pytest.mark.parametrize(("page", "faults"), [(RIGHT_PAGE, []), (WRONG_PAGE, [3, 4, 5, 6, 7])], ids=["right", "wrong"])
def test_types_hold_strictly(tmp_path: Path, page: str, faults: list[int]) -> None:
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "page.ts").write_text(page)
    options = ["--noEmit", "--checkJs", "--allowJs", "--strict", "--target", "es2022", "--module", "esnext"]
    options += ["--lib", "es2022,dom,dom.iterable", "--moduleResolution", "bundler", "--types", ""]
    command = [str(node_modules() / ".bin" / "tsc"), *options, "page.ts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert [int(line) for line in re.findall(r"^page\.ts\((\d+),", done.stdout, re.MULTILINE)] == faults, done.stdout
    assert "geventws.js(" not in done.stdout


def test_clock_and_chance_under_node() -> None:
    if not shutil.which("node"):
        missing("node")
    command = ["node", "--test", "--test-reporter=tap", "tests/clients/geventws_test.mjs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n# fail 0\n" in done.stdout and "\n# pass 0\n" not in done.stdout


# As a WebSocket


def test_it_is_used_as_a_websocket(tab: Tab) -> None:
    tab.connect("/echo", ("v1", "v2"))
    assert tab.run("atFirst") == 0
    tab.run("for (const data of ['é', new Uint8Array([0, 255]), new Blob(['blob'])]) ws.send(data)")
    tab.wait_for("message", 3)
    heard = (
        "log.filter((e) => e.type === 'message').map(({ data }) => data.byteLength ? [...new Uint8Array(data)] : data)"
    )
    assert tab.run(heard) == ["é", [0, 255], list(b"blob")]
    tab.run("ws.send(new Uint8Array([7]).buffer)")
    tab.wait_for("message", 4)
    assert tab.run("[ws.readyState, ws.protocol, ws.bufferedAmount, ws.binaryType]") == [1, "v2", 0, "arraybuffer"]
    assert tab.run("ws.url") == tab.origin.replace("http", "ws") + "/echo"
    missing_names = """[
      ...Object.keys(WebSocket.prototype).filter((name) => !(name in ws || name.startsWith("on"))),
      ...Object.keys(WebSocket).filter((name) => WebSocket[name] !== ReconnectingWebSocket[name]),
      ...["CONNECTING", "OPEN", "CLOSING", "CLOSED"].filter((name) => ws[name] !== WebSocket[name]),
    ]"""
    assert tab.run(missing_names) == []
    tab.run("ws.onclose = function (event) { self.ended = [this === ws, event instanceof CloseEvent, ws.readyState] }")
    for wrong in ("ws.close(1001)", "ws.close(1000, 'x'.repeat(124))"):
        assert tab.run(f"{{ let name; try {{ {wrong} }} catch (error) {{ name = error.name }} name }}") in {
            "InvalidAccessError",
            "SyntaxError",
        }
    assert tab.run("ws.close(4000, 'bye'), ws.send('too late'), ws.readyState") == 2
    tab.wait("!!self.ended")
    assert tab.run("ended") == [True, True, 3]
    [close] = tab.events("close")
    assert (close["code"], close["wasClean"]) == (4000, True)
    assert tab.states() == ["open", "closing", "closed"]
    assert tab.run("log.filter(({ type }) => type === 'open' || type === 'error').length") == 1


@pytest.mark.parametrize("url", ["not a url://", "ftp://127.0.0.1/", "/echo#part"])
def test_a_wrong_url_is_an_error_at_once(tab: Tab, url: str) -> None:
    attempt = f"{{ let found; try {{ new ReconnectingWebSocket('{url}') }} catch (error) {{ found = error }} !!found }}"
    plain = attempt.replace("Reconnecting", "")
    assert tab.run(attempt) == tab.run(plain)


# Ends, and what they mean


@pytest.mark.parametrize("code", [1000, 1008, 3000, 4001, 4500])
def test_an_end_on_purpose_is_the_end(tab: Tab, code: int) -> None:
    tab.connect(f"/end/{code}", **NOW)
    tab.run("ws.send('go')")
    tab.wait_for("close")
    [close] = tab.events("close")
    assert (close["code"], close["reason"], close["wasClean"]) == (code, "so it goes", True)
    assert tab.states() == ["open", "closed"]
    assert tab.events("error") == []


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
def test_an_end_for_a_while_is_none(tab: Tab, code: int) -> None:
    tab.connect(f"/end/{code}", **NOW)
    tab.run("ws.send('go')")
    tab.wait_for("open", 2)
    waiting = next(event for event in tab.events("state") if event["state"] == "waiting")
    assert (waiting["code"], waiting["reason"], waiting["failures"]) == (code, "so it goes", 1)
    assert 0 <= waiting["delay"] <= 1
    assert tab.states() == ["open", "waiting", "connecting", "open"]
    assert tab.events("close") == tab.events("error") == []


def test_a_refusal_is_tried_again_as_often_as_it_may(server: Server, tab: Tab) -> None:
    before = seen(server).count("/refused")
    tab.connect("/refused", **SOON, attempts=3)
    tab.wait_for("close")
    assert seen(server).count("/refused") == before + 4
    assert [event["failures"] for event in tab.events("state") if event["state"] == "waiting"] == [1, 2, 3]
    assert tab.run("log.slice(-3).map(({ type }) => type)") == ["state", "error", "close"]
    assert tab.events("close")[0]["code"] == 1006


@pytest.mark.parametrize("answer", [302, 401, 403])
def test_a_refusal_is_the_end_where_a_page_behind_the_same_login_refuses_too(tab: Tab, answer: int) -> None:
    tab.connect("/refused", **LATE, check=f"/mine/{answer}")
    tab.wait_for("close")
    assert [tab.events("close")[0][name] for name in ("code", "wasClean")] == [4401, False]
    assert tab.states() == ["waiting", "closed"]
    # A page that asks is told in its console, too.
    tab.complaints[:] = [text for text in tab.complaints if not text.startswith("Failed to load resource")]


@pytest.mark.parametrize("answer", [200, 404, 503])
def test_any_other_answer_is_no_end(server: Server, tab: Tab, answer: int) -> None:
    tab.connect("/refused", **SOON, check=f"/mine/{answer}")
    wait_for(lambda: seen(server).count(f"/mine/{answer}") >= 2, "a question behind each failure")
    assert tab.events("close") == []
    tab.run("ws.close()")
    tab.complaints[:] = [text for text in tab.complaints if not text.startswith("Failed to load resource")]


def test_close_while_it_waits_is_the_end(tab: Tab, cutter: Cutter) -> None:
    cutter.mode = "refuse"
    tab.connect("/echo", **LATE)
    tab.wait("ws.state === 'waiting'")
    tab.run("ws.close(); self.during = ws.readyState")
    tab.wait_for("close")
    assert tab.run("during") == 2
    [close] = tab.events("close")
    assert (close["code"], close["wasClean"]) == (1005, True)
    assert tab.states() == ["waiting", "closing", "closed"]
    tab.run("dispatchEvent(new Event('online'))")
    assert tab.run("ws.state") == "closed"


def test_a_server_that_does_not_answer_is_given_up(tab: Tab, cutter: Cutter) -> None:
    cutter.mode = "hold"
    tab.connect("/echo", **SOON, timeout=100)
    tab.wait("ws.state === 'waiting'")
    cutter.mode = "pass"
    tab.wait_for("open")


# What restarts, kills and networks do


@pytest.mark.parametrize(
    ("front_end", "number", "code"),
    [("worker", signal.SIGTERM, 1012), ("server", signal.SIGTERM, 1012), ("server", signal.SIGKILL, 1006)],
)
def test_a_restart_is_a_line_on_the_page_and_a_gap(
    chromium: Browser, tmp_path: Path, front_end: str, number: int, code: int
) -> None:
    with (
        serve(APP, tmp_path, front_end=front_end) as first,
        closing(Cutter(first.port)) as cutter,
        open_tab(chromium, cutter.port) as tab,
    ):
        tab.connect("/room/a", **SOON)
        tab.wait_for("message")
        post(first, "/say/a/one")
        tab.wait_for("message", 2)
        first.stop(number)
        tab.wait("ws.state !== 'open'")
        tab.run("ws.send('meanwhile')")
        tab.wait("log.filter(({ state }) => state === 'waiting').length >= 3")
        waiting = tab.events("state")[1]
        assert (waiting["state"], waiting["code"], waiting["failures"]) == ("waiting", code, 1)
        with serve(APP, tmp_path, front_end=front_end) as second:
            cutter.target = second.port
            tab.wait_for("gap")
            post(second, "/say/a/two")
            tab.wait_for("message", 4)
            assert seen(second)[1:] == ["'meanwhile'"]
            heard = [message.get("text", message.get("recovered")) for message in tab.messages()]
            assert heard == [None, "one", False, "two"]
            assert [gap["recovered"] for gap in tab.events("gap")] == [False]


def test_a_page_outlives_the_kill_of_its_worker(chromium: Browser, tmp_path: Path) -> None:
    with serve(APP, tmp_path, front_end="worker") as server, open_tab(chromium, server.port) as tab:
        tab.connect("/room/a", **SOON)
        tab.wait_for("message")
        os.kill(int(server.wait_for_log(r"Booting worker with pid: (\d+)")[1]), signal.SIGKILL)
        tab.wait_for("gap")
        assert tab.events("state")[1]["code"] == 1006
        post(server, "/say/a/after")
        tab.wait_for("message", 3)
        assert tab.messages()[-1]["text"] == "after"


def test_offline_is_noticed_and_online_is_not_waited_for(server: Server, tab: Tab) -> None:
    tab.connect("/room/offline", **LATE)
    tab.wait_for("message")
    tab.context.set_offline(True)
    tab.wait("ws.state === 'waiting'")
    for number in range(5):
        post(server, f"/say/offline/{number}")
    tab.context.set_offline(False)
    tab.wait_for("message", 7)
    assert [message.get("text") for message in tab.messages()] == [None, None, *"01234"]
    assert tab.messages()[1]["recovered"] is True
    assert tab.events("gap") == []


def test_a_stream_through_a_bad_network_is_whole(server: Server, tab: Tab, cutter: Cutter) -> None:
    chance = random.Random(20)
    cutter.budgets.extend(chance.randrange(20, 4000) for _ in range(60))
    tab.connect("/room/stream", delay=5, maxDelay=20)
    tab.wait_for("message")
    post(server, "/count/stream/1000")
    tab.wait("log.some(({ data }) => data?.includes('\"number\":999'))")
    numbers = [message["number"] for message in tab.messages() if "number" in message]
    assert numbers == list(range(1000))
    assert tab.events("gap") == []
    assert cutter.handshakes > 20


def test_a_position_of_nobody_is_a_gap(tab: Tab) -> None:
    tab.connect("/room/unknown?since=1-1&x=1")
    tab.wait_for("message")
    assert tab.run("log.map(({ type }) => type)") == ["state", "open", "gap", "message"]
    [welcome] = tab.messages()
    assert tab.run("ws.url").endswith(f"/room/unknown?since={welcome['at']}&x=1")


def test_doubles_are_dropped(server: Server, tab: Tab, cutter: Cutter) -> None:
    for number in range(3):
        post(server, f"/say/doubles/{number}")
    tab.connect("/replay/doubles", **SOON)
    tab.wait_for("message", 3)
    cutter.cut()
    tab.wait_for("open", 2)
    post(server, "/say/doubles/3")
    tab.wait_for("message", 4)
    assert [message["text"] for message in tab.messages()] == list("0123")


# What is sent while away


def test_what_is_sent_while_away_waits_within_bounds(tab: Tab, cutter: Cutter) -> None:
    cutter.mode = "refuse"
    tab.connect("/echo", **LATE, maxQueue=3, maxQueueBytes=9)
    tab.wait("ws.state === 'waiting'")
    tab.run("const bytes = new Uint8Array([1, 2]); ws.send('é'), ws.send(bytes), bytes.fill(9)")
    attempt = "(data) => { try { ws.send(data) } catch (error) { return [error.name, error.message] } }"
    error = ["QuotaExceededError", "2 messages wait already"]
    assert tab.page.evaluate(attempt, "123456") == error
    assert tab.page.evaluate(attempt, "12345") is None
    assert tab.page.evaluate(attempt, "") == ["QuotaExceededError", "3 messages wait already"]
    assert tab.run("ws.bufferedAmount") == 9
    cutter.mode = "pass"
    tab.run("ws.addEventListener('open', () => ws.send('first')); dispatchEvent(new Event('online'))")
    tab.wait_for("message", 4)
    heard = (
        "log.filter((e) => e.type === 'message').map(({ data }) => data.byteLength ? [...new Uint8Array(data)] : data)"
    )
    assert tab.run(heard) == ["first", "é", [1, 2], "12345"]
    assert tab.run("ws.bufferedAmount") == 0
    assert tab.page.evaluate(attempt, "1234567890") is None  # it is open, and has no bound of its own


# "Back" to a page that the browser has kept


def test_a_page_that_comes_back_as_it_was_goes_on(server: Server, tab: Tab) -> None:
    tab.connect("/room/kept", **LATE)
    tab.wait_for("message")
    tab.run("addEventListener('pageshow', ({ type, persisted }) => log.push({ type, persisted }))")
    tab.page.goto(f"{tab.origin}/elsewhere")
    assert tab.run("typeof log") == "undefined"
    for number in range(3):
        post(server, f"/say/kept/{number}")
    tab.run("setTimeout(() => history.back(), 100)")
    tab.page.wait_for_url(f"{tab.origin}/", wait_until="commit")
    tab.wait("self.log?.some(({ type }) => type === 'pageshow')")
    assert tab.run("log.find(({ type }) => type === 'pageshow').persisted") is True
    tab.wait_for("message", 5)
    assert [message.get("text") for message in tab.messages()] == [None, None, *"012"]
    assert tab.states() == ["open", "waiting", "connecting", "open"]


def test_a_worker_has_one_too(server: Server, tab: Tab) -> None:
    tab.run("""() => {
        self.heard = [];
        self.worker = new Worker("/worker.js", { type: "module" });
        worker.onmessage = ({ data }) => heard.push(data);
        worker.onerror = () => heard.push("error");
    }""")
    tab.wait("heard.length > 0")
    assert tab.run("heard") == ["from a worker"]


# docs/client.md

DOCUMENT = (ROOT / "docs" / "client.md").read_text()


def test_document_has_a_row_for_each_option() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", DOCUMENT.partition("## Options")[2].partition("\n## ")[0], re.MULTILINE)
    assert rows == re.findall(
        r"^  (\w+):", SCRIPT.read_text().partition("DEFAULTS = {")[2].partition("};")[0], re.MULTILINE
    )


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_document_shows_a_chat_that_comes_back(chromium: Browser, tmp_path: Path, front_end: str) -> None:
    for block in blocks(DOCUMENT):
        if block.language == "javascript":  # a part, which the example chat has too
            continue
        path = tmp_path / re.sub(r"^(# |<!-- )| -->$", "", block.code.partition("\n")[0])
        path.parent.mkdir(exist_ok=True)
        path.write_text(block.code)
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    complaints: list[str] = []
    with serve("app:app", tmp_path, front_end=front_end, env=environ) as first, closing(Cutter(first.port)) as cutter:
        page = chromium.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{cutter.port}/")

        def say(text: str) -> None:
            page.get_by_label("Message").fill(text)
            page.keyboard.press("Enter")

        def shows(*texts: str) -> None:
            wait_for(lambda: page.locator("#log li").all_inner_texts() == list(texts), f"{texts} on the page")

        say("one")
        shows("one")
        cutter.cut()
        say("two")
        shows("one", "two")
        first.stop()
        page.locator("#state", has_text="Reconnecting").wait_for()
        say("three")
        with serve("app:app", tmp_path, front_end=front_end, env=environ) as second:
            cutter.target = second.port
            shows("three")  # what was there is gone with its server, as the page was told
            page.locator("#state", has_text="Reconnecting").wait_for(state="detached")
            page.close()
    assert complaints == []
