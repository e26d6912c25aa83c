"""docs/recipes.md: each recipe is run as it stands there, by real servers, and used by the clients that it is for."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from hmac import digest
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
import websocket
from flask import Flask
from flask.sessions import SecureCookieSessionInterface
from pycrdt import Array, Doc, create_sync_message, create_update_message, handle_sync_message

from .redis_servers import RedisServer
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, node_modules, serve, wait_for
from .test_chat import chromium as chromium  # a fixture
from .test_readme import Block, blocks

# A browser beside other browsers, on two cores, may be held up for longer than a page waits.
pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=2)]

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TEXT = (ROOT / "docs" / "recipes.md").read_text()
RECIPES = {
    title: blocks(text) for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}
DASHBOARD, NOTES, TERMINAL, BOARD, SENSOR, CALL = RECIPES
SECRET = "of these tests"
SIZES = {"python": 40, "html": 20, "javascript": 20, "cpp": 20, "bash": 5}  # lines that are less than

both_front_ends = pytest.mark.parametrize("front_end", FRONT_ENDS)
Cook = Callable[..., Any]


def name_of(block: Block) -> str:
    """Return the name of the file that a block holds, none for commands."""
    found = re.match(r"(?:#|//|<!--) ([\w/]+\.\w+)", block.code)
    return found[1] if found else ""


@contextmanager
def served(directory: Path, title: str, front_end: str, *arguments: str, **env: str) -> Iterator[Server]:
    """Write the files of a recipe into a directory `recipe`, and serve it."""
    recipe = directory / "recipe"
    for block in RECIPES[title]:
        if name := name_of(block):
            file = recipe / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.code)
    [module] = recipe.glob("*.py")
    variables = {"PYTHONPATH": f"{recipe}:{ROOT}", "SECRET_KEY": SECRET, **env}
    with serve(f"{module.stem}:app", directory, front_end=front_end, arguments=arguments, env=variables) as server:
        yield server


@pytest.fixture
def cook(tmp_path: Path) -> Iterator[Cook]:
    """Gives a function that serves a recipe until the test ends."""
    with ExitStack() as stack:

        def start(title: str, front_end: str = "worker", *arguments: str, **env: str) -> Server:
            return stack.enter_context(served(tmp_path, title, front_end, *arguments, **env))

        yield start


def cookie(**session: Any) -> str:
    """Return the cookie of a login."""
    app = Flask(__name__)
    app.secret_key = SECRET
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer
    return f"session={serializer.dumps(session)}"


def post(server: Server, path: str, headers: dict[str, str] | None = None, **fields: str) -> tuple[int, str]:
    """Send a form; return status and body of the answer."""
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)) as http:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        http.request("POST", path, urlencode(fields), {**form, **(headers or {})})
        answer = http.getresponse()
        return answer.status, answer.read().decode()


@contextmanager
def connected(server: Server, path: str, **options: Any) -> Iterator[Any]:
    """Open a WebSocket, and leave without a word in the end."""
    ws = websocket.create_connection(server.url(path), DEADLINE, socket=server.socket(), **options)
    try:
        yield ws
    finally:
        ws.shutdown()


def end_of(ws: Any) -> int:
    """Return the close code, once it comes."""
    while True:
        opcode, data = ws.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return int.from_bytes(data[:2], "big")


def open_page(browser: Browser, server: Server, path: str = "/", cookie: str = "") -> Page:
    context = browser.new_context()
    origin = f"http://127.0.0.1:{server.port}"
    if cookie:
        name, _, value = cookie.partition("=")
        context.add_cookies([{"name": name, "value": value, "url": origin}])
    page = context.new_page()
    page.set_default_timeout(DEADLINE * 1000)
    page.goto(origin + path)
    return page


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


def test_recipes_are_six_and_small() -> None:
    assert len(RECIPES) == 6
    for title, parts in RECIPES.items():
        assert [part.language for part in parts].count("python") == 1, title
        for part in parts:
            lines = sum(bool(line.strip()) for line in part.code.splitlines())
            assert lines < SIZES[part.language], (title, part.line)
            assert name_of(part) or part.language == "bash", part.line


# A dashboard


def test_dashboard_hears_its_worker_each_second_and_outlives_it(chromium: Browser, cook: Cook) -> None:
    server = cook(DASHBOARD, "worker", "-w", "4")
    with ExitStack() as stack:
        viewers: dict[int, Any] = {}

        def meets_another() -> bool:
            ws = stack.enter_context(connected(server, "/figures"))
            viewers.setdefault(json.loads(ws.recv())["worker"], ws)
            return len(viewers) == 4

        wait_for(meets_another, "viewers of four workers")
        for worker, ws in viewers.items():
            assert {json.loads(ws.recv())["worker"] for _ in range(2)} == {worker}
        page = open_page(chromium, server)
        page.locator("output", has_text=re.compile(r"^\d+\.\d\d$")).wait_for()
        page.evaluate("document.querySelector('output').value = 'none yet'")
        for worker in viewers:
            os.kill(worker, signal.SIGKILL)
        page.locator("output", has_text=re.compile(r"^\d+\.\d\d$")).wait_for()
        page.context.close()


@both_front_ends
def test_dashboard_asks_for_no_figures_where_nobody_looks(cook: Cook, front_end: str) -> None:
    server = cook(DASHBOARD, front_end)
    for _ in range(2):
        with connected(server, "/figures") as ws, connected(server, "/figures") as other:
            for viewer in (ws, other, ws):
                assert json.loads(viewer.recv())["load"] >= 0


# Notes


@contextmanager
def celery(directory: Path, env: dict[str, str]) -> Iterator[None]:
    """Run a worker of Celery."""
    command = [sys.executable, "-m", "celery", "-A", "notes.celery", "worker", "--concurrency", "1"]
    with (directory / "celery.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=directory, env={**os.environ, **env}, stdout=log, stderr=log)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(DEADLINE)


def test_notes_come_from_a_form_and_from_celery_to_one_person(
    chromium: Browser, redis: RedisServer, cook: Cook, tmp_path: Path
) -> None:
    env = {"GEVENTWS_BUS": redis.url, "CELERY_BROKER_URL": redis.url}
    server = cook(NOTES, "worker", "-w", "2", **env)
    with pytest.raises(websocket.WebSocketBadStatusException, match="401"), connected(server, "/notes"):
        pass
    ann = open_page(chromium, server, cookie=cookie(name="ann"))
    bob = open_page(chromium, server, cookie=cookie(name="bob"))

    def hears(page: Page, name: str) -> bool:
        """Whether a note arrives; one that is sent before the page has joined does not."""
        assert post(server, f"/notes/{name}", text=f"for {name}")[0] == 204
        return bool(page.locator("li", has_text=f"for {name}").count())

    wait_for(lambda: hears(ann, "ann"), "note to Ann")
    wait_for(lambda: hears(bob, "bob"), "note to Bob")
    path = f"{tmp_path / 'recipe'}:{ROOT}"
    with celery(tmp_path / "recipe", {**env, "PYTHONPATH": path, "SECRET_KEY": SECRET}):
        assert post(server, "/reports", {"Cookie": cookie(name="ann")}, year="2026")[0] == 204
        ann.locator("li", has_text="The report of 2026 is ready.").wait_for()
    assert set(bob.locator("li").all_inner_texts()) == {"for bob"}
    for page in (ann, bob):
        page.context.close()


# A terminal


class Shell:
    """The page's end of a terminal."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.screen = ""

    def type(self, keys: str) -> None:
        self.ws.send_binary(keys.encode())

    def show(self, pattern: str) -> re.Match[str]:
        """Return the first match on the screen, once it is there."""
        while not (found := re.search(pattern, self.screen)):
            self.screen += self.ws.recv().decode()
        return found


@contextmanager
def shell(server: Server) -> Iterator[Shell]:
    with connected(server, "/shell", cookie=cookie(is_admin=True)) as ws:
        yield Shell(ws)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture(params=FRONT_ENDS, scope="module")
def terminal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("terminal"), TERMINAL, request.param) as server:
        yield server
        assert "Traceback" not in server.log


def test_terminal_is_for_who_is_logged_in_and_for_no_other_site(terminal: Server) -> None:
    for options, status in (
        ({}, "401"),
        ({"cookie": cookie(is_admin=False)}, "401"),
        ({"cookie": cookie(is_admin=True), "origin": "https://evil.example"}, "403"),
    ):
        refused = pytest.raises(websocket.WebSocketBadStatusException, match=status)
        with refused, connected(terminal, "/shell", **options):
            pass


def test_terminal_shows_what_is_typed_resizes_and_interrupts(terminal: Server) -> None:
    with shell(terminal) as tty:
        tty.type("echo é$((6*7))\n")
        tty.show("é42\r\n")
        tty.ws.send("[33, 101]")
        tty.type("stty size; sh -c 'echo runs$((1)); exec sleep 1000'\n")
        tty.show("33 101\r\nruns1")
        tty.type("\x03")
        tty.show(r"\^C")
        tty.type("echo back:$?\n")
        tty.show("back:130")  # ended by the signal
        assert "job control" not in tty.screen
        tty.type("echo $SECRET_KEY.\n")
        tty.show(r"\r\.\r\n")
        tty.type("exit\n")
        assert end_of(tty.ws) == 1000


def test_end_of_the_socket_ends_the_shell_and_what_runs_in_it(terminal: Server) -> None:
    with shell(terminal) as tty:
        tty.type("sleep 1000 & echo $$,$!,\n")
        numbers = tty.show(r"(\d+),(\d+),").groups()
        tty.type("yes\n")  # which writes as fast as it may
        tty.show("y\r\ny\r\n")
    wait_for(lambda: all(is_gone(int(number)) for number in numbers), "end of the shell and its job")


def test_keys_that_no_program_takes_do_not_keep_the_shell_alive(terminal: Server) -> None:
    with shell(terminal) as tty:
        tty.type("stty raw -echo; echo $$,; sleep 1000\n")
        bash = int(tty.show(r"(\d+),\r?\n")[1])
        tty.type("x" * 1_000_000)
    wait_for(lambda: is_gone(bash), "end of the shell")


def test_terminal_in_a_page(chromium: Browser, cook: Cook, tmp_path: Path) -> None:
    static = tmp_path / "recipe" / "static"
    static.mkdir(parents=True)
    package = node_modules() / "@xterm"
    for file in ("xterm/lib/xterm.mjs", "xterm/css/xterm.css", "addon-fit/lib/addon-fit.mjs"):
        shutil.copy(package / file, static)
    page = open_page(chromium, cook(TERMINAL), "/static/terminal.html", cookie(is_admin=True))
    screen = page.locator(".xterm-rows")
    screen.locator("text=/[$#] /").first.wait_for()
    page.locator("textarea").focus()
    page.keyboard.type("echo $((6*7)); stty size\n")
    screen.locator("text=/^42/").wait_for()
    rows, columns = map(int, screen.locator(r"text=/^\d+ \d+/").first.inner_text().split())
    page.set_viewport_size({"width": 500, "height": 400})
    page.keyboard.type("clear; stty size\n")
    wait_for(lambda: re.findall(r"\d+ \d+", screen.inner_text()) not in ([], [f"{rows} {columns}"]), "another size")
    page.keyboard.type("exit\n")
    screen.locator("text=/The end/").wait_for()
    page.context.close()


# A board


class Editor:
    """A client of y-websocket's protocol that has a list of notes."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.doc: Doc[Any] = Doc()
        self.notes = self.doc.get("notes", type=Array)
        self.is_synced = False
        ws.send_binary(create_sync_message(self.doc))

    def add(self, text: str) -> None:
        before = self.doc.get_state()
        self.notes.append(text)
        self.ws.send_binary(create_update_message(self.doc.get_update(before)))

    def hear(self) -> bytes:
        """Take in a message, and return its kind."""
        message: bytes = self.ws.recv()
        if message[0] == 0:
            reply = handle_sync_message(message[1:], self.doc)
            self.is_synced |= message[1] == 1
            if reply is not None:
                self.ws.send_binary(reply)
        return message[:2]

    def sync(self) -> list[str]:
        """Return the notes, once all that the server has is here."""
        while not self.is_synced:
            self.hear()
        return list(self.notes)

    def wait_for(self, text: str) -> None:
        while text not in list(self.notes):
            self.hear()


@contextmanager
def editor(server: Server) -> Iterator[Editor]:
    with connected(server, "/boards/plan") as ws:
        yield Editor(ws)


@both_front_ends
def test_board_is_whole_for_who_comes_late_and_for_who_was_away(cook: Cook, front_end: str, tmp_path: Path) -> None:
    server = cook(BOARD, front_end)
    with editor(server) as ann, editor(server) as bob:
        ann.add("from Ann")
        bob.add("from Bob")
        ann.wait_for("from Bob")
        bob.wait_for("from Ann")
        assert list(ann.notes) == list(bob.notes)
        with editor(server) as late:
            assert late.sync() == list(ann.notes)
        for number in range(250):
            ann.add(f"note {number}")
        bob.wait_for("note 249")
        was_away = ann.doc
    was_away.get("notes", type=Array).append("while away")
    with connected(server, "/boards/plan") as ws:
        ws.send_binary(create_sync_message(was_away))
        kinds: set[tuple[int, int]] = set()
        while kinds != {(0, 0), (0, 1)}:  # the server asks, and it answers
            message = ws.recv()
            kinds.add((message[0], message[1]))
            if reply := handle_sync_message(message[1:], was_away) if message[0] == 0 else None:
                ws.send_binary(reply)
        with editor(server) as late:
            late.sync()
            late.wait_for("while away")
            assert len(late.notes) == 253
    with closing(sqlite3.connect(tmp_path / "recipe" / "boards.db")) as database:
        assert database.execute("SELECT count(*) FROM updates").fetchone()[0] < 10  # one in place of many


@both_front_ends
def test_board_keeps_and_tells_nothing_that_is_no_update(cook: Cook, front_end: str) -> None:
    server = cook(BOARD, front_end)
    with editor(server) as ann:
        ann.sync()
        for wrong in (b"\0\2\1\xff", b"\0\2", b"\0\2\5a", b""):
            with connected(server, "/boards/plan") as ws:
                ws.send_binary(wrong)
                assert end_of(ws) == 1011
        ann.add("still here")
        with editor(server) as late:
            assert late.sync() == ["still here"]


@both_front_ends
def test_awareness_is_heard_by_all_the_sender_too_and_is_asked_for(cook: Cook, front_end: str) -> None:
    server = cook(BOARD, front_end)
    with connected(server, "/boards/plan") as ann:
        assert {ann.recv()[:2], ann.recv()[:2]} == {b"\3", b"\0\0"}
        ann.send_binary(b"\1who")
        assert ann.recv() == b"\1who"
        with connected(server, "/boards/plan") as bob:
            assert ann.recv() == b"\3"
            assert {bob.recv()[:2], bob.recv()[:2]} == {b"\3", b"\0\0"}
            bob.send_binary(b"\1Bob")
            assert ann.recv() == b"\1Bob"


def test_board_in_pages(chromium: Browser, cook: Cook, redis: RedisServer, tmp_path: Path) -> None:
    modules = node_modules()
    server = cook(BOARD, "worker", "-w", "2", GEVENTWS_BUS=redis.url)
    recipe = tmp_path / "recipe"
    (recipe / "node_modules").symlink_to(modules)
    [commands] = [block.code for block in RECIPES[BOARD] if block.language == "bash"]
    [bundle] = re.findall(r"^npx (esbuild .*)$", commands, re.MULTILINE)
    subprocess.run([modules / ".bin" / "esbuild", *bundle.split()[1:]], cwd=recipe, check=True, capture_output=True)
    ann, bob = open_page(chromium, server), open_page(chromium, server)
    for page in (ann, bob):
        page.locator("output", has_text="2").wait_for()
        page.get_by_label("New note").fill("a note")
        page.keyboard.press("Enter")
    wait_for(lambda: ann.locator("li").count() == bob.locator("li").count() == 2, "two notes on each page")
    late = open_page(chromium, server)
    late.locator("output", has_text="3").wait_for()
    assert late.locator("li").count() == 2
    late.locator("li").first.click()
    wait_for(lambda: ann.locator("li").count() == bob.locator("li").count() == 1, "one note less")
    for page in (ann, bob, late):
        page.context.close()


# A sensor


class Board:
    """What the Arduino library WebSockets is to a server."""

    def __init__(self, server: Server, path: str, *headers: str) -> None:
        self.sock = server.socket()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{server.port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}",
            *headers,
            "User-Agent: arduino-WebSocket-Client",
        ]
        self.sock.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n") and (byte := self.sock.recv(1)):
            head += byte
        self.status = int(head.split()[1])

    def send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self.sock.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    def receive(self) -> tuple[int, bytes]:
        """Return opcode and payload of a frame. The library knows no compression, and offers none."""
        head = self._read(2)
        return head[0] & 15, self._read(head[1])

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            assert piece, "the server has closed"
            data += piece
        return data


TOKEN = "Authorization: Bearer of-the-garden"
FILE = "Origin: file://"


@both_front_ends
def test_sensor_without_its_token_is_refused(cook: Cook, front_end: str) -> None:
    server = cook(SENSOR, front_end, GARDEN_TOKEN="of-the-garden")
    for path, headers, status in (
        ("/sensors/garden", [FILE], 401),
        ("/sensors/garden", [FILE, "Authorization: Bearer wrong"], 401),
        ("/sensors/garden", [FILE, "Authorization: Bearer \u00e9"], 401),
        ("/sensors/cellar", [FILE, TOKEN], 401),
        ("/sensors/cellar", [FILE, "Authorization: Bearer "], 401),
        ("/sensors/garden", ["Origin: https://evil.example", TOKEN], 403),
        ("/watch/garden", [FILE], 403),
        ("/sensors/garden", [FILE, TOKEN], 101),
        ("/sensors/garden", [TOKEN], 101),
    ):
        board = Board(server, path, *headers)
        assert board.status == status, (path, headers)
        board.sock.close()
    assert "Traceback" not in server.log


@both_front_ends
def test_sensor_is_watched_ordered_and_replaced(cook: Cook, front_end: str) -> None:
    server = cook(SENSOR, front_end, GARDEN_TOKEN="of-the-garden", GEVENTWS_PING_TIMEOUT="20")
    sensor = Board(server, "/sensors/garden", FILE, TOKEN)
    sensor.send(1, b'{"celsius":21.50}')
    sensor.send(9, b"")  # its heartbeat
    assert sensor.receive() == (10, b"")
    with connected(server, "/watch/garden") as watcher:
        assert json.loads(watcher.recv())["celsius"] == 21.5  # the newest, which came before
        sensor.send(1, b'{"celsius":-3}')
        assert json.loads(watcher.recv())["celsius"] == -3
        assert post(server, "/sensors/garden/led")[0] == 204
        assert sensor.receive() == (1, b"led")
        again = Board(server, "/sensors/garden", FILE, TOKEN)
        assert again.status == 101
        opcode, payload = sensor.receive()
        assert (opcode, payload[:2]) == (8, (4000).to_bytes(2, "big"))
        again.send(1, b'{"celsius":4}')
        assert json.loads(watcher.recv())["celsius"] == 4
        for wrong in (b"{}", b"warm", b"[1]", b'{"celsius":null}', b'{"celsius":"nan"}'):
            faulty = Board(server, "/sensors/garden", TOKEN)
            faulty.send(1, wrong)
            opcode, payload = faulty.receive()
            assert (opcode, payload[:2]) == (8, (1008).to_bytes(2, "big")), wrong
            faulty.sock.close()
    for board in (sensor, again):
        board.sock.close()
    assert "Traceback" not in server.log


def test_sensor_is_pinged_and_gone_when_it_is_silent(cook: Cook) -> None:
    server = cook(SENSOR, "server", GARDEN_TOKEN="of-the-garden", GEVENTWS_PING_TIMEOUT="1")
    sensor = Board(server, "/sensors/garden", FILE, TOKEN)
    assert sensor.receive()[0] == 9
    with pytest.raises((AssertionError, ConnectionError)):
        sensor.receive()
    sensor.sock.close()


# A phone call


def signature(url: str, fields: dict[str, str], token: str = "of Twilio") -> str:
    """Return what Twilio puts into X-Twilio-Signature."""
    text = url + "".join(f"{key}{fields[key]}" for key in sorted(fields))
    return b64encode(digest(token.encode(), text.encode(), "sha1")).decode()


def test_signature_of_the_test_is_that_of_twilios_documentation() -> None:
    fields = {"CallSid": "CA1234567890ABCDE", "Caller": "+14158675309", "Digits": "1234", "From": "+14158675309"}
    fields["To"] = "+18005551212"
    url = "https://mycompany.com/myapp.php?foo=1&bar=2"
    assert signature(url, fields, token="12345") == "RSOYDt4T1cUTdK1PDd93/VVr8B8="


@both_front_ends
def test_call_says_again_what_it_hears(cook: Cook, front_end: str) -> None:
    env = {"TWILIO_AUTH_TOKEN": "of Twilio", "PUBLIC_HOST": "calls.example"}
    server = cook(CALL, front_end, **env)
    fields = {"CallSid": "CA1", "From": "+49301234"}
    right = {"X-Twilio-Signature": signature("https://calls.example/voice", fields)}
    assert post(server, "/voice", None, **fields)[0] == post(server, "/voice", right, **fields, To="x")[0] == 403
    status, answer = post(server, "/voice", right, **fields)
    [url] = re.findall(r'<Stream url="(.*?)"', answer)
    assert (status, url) == (200, "wss://calls.example/stream")

    def call(signed: str) -> Any:
        headers = {"X-Twilio-Signature": signature(signed, {})}
        return connected(server, "/stream", header=headers, suppress_origin=True, host="calls.example")

    for wrong in ("https://calls.example/stream", "wss://calls.example/stream/", "wss://evil.example/stream"):
        with pytest.raises(websocket.WebSocketBadStatusException, match="403"), call(wrong):
            pass
    with call(url) as ws:

        def say(event: str, **more: Any) -> None:
            ws.send(json.dumps({"event": event, "streamSid": "MZ1", **more}))

        ws.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
        about: dict[str, Any] = {"accountSid": "AC1", "streamSid": "MZ1", "callSid": "CA1", "tracks": ["inbound"]}
        about["mediaFormat"] = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        say("start", sequenceNumber="1", start={**about, "customParameters": {"name": "Ann"}})
        sound = bytes(range(160))
        for chunk in range(1, 51):
            media = {"track": "inbound", "chunk": str(chunk), "timestamp": str(20 * chunk)}
            payload = b64encode(sound).decode()
            say("media", sequenceNumber=str(chunk + 1), media={**media, "payload": payload})
        heard, mark = json.loads(ws.recv()), json.loads(ws.recv())
        assert (heard["event"], heard["streamSid"], b64decode(heard["media"]["payload"])) == (
            "media",
            "MZ1",
            sound * 50,
        )
        assert mark == {"event": "mark", "streamSid": "MZ1", "mark": {"name": "again"}}
        say("mark", sequenceNumber="52", mark={"name": "again"})
        say("dtmf", sequenceNumber="53", dtmf={"track": "inbound_track", "digit": "1"})
        say("stop", sequenceNumber="54", stop={"accountSid": "AC1", "callSid": "CA1"})
        assert end_of(ws) == 1000
