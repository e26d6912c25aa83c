"""The fixture of the pytest plugin, in a suite of its users."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from .test_testing import run_pytest


def test_the_fixture_is_there_for_every_suite(tmp_path: Path) -> None:
    (tmp_path / "test_users.py").write_text(
        textwrap.dedent("""
        import gevent

        def echo(environ, start_response):
            ws = environ["wsgi.websocket"]
            try:
                for message in ws:
                    if message == "fail":
                        raise KeyError("in the view")
                    if message == "sleep":
                        gevent.sleep(1000)
                    ws.send(message)
            finally:
                ended.append(True)
            return []

        ended = []

        def test_it_connects(websocket_connect):
            one, other = websocket_connect(echo, "/"), websocket_connect(app=echo, path="/", deflate=True)
            for ws in (one, other):
                ws.send("hello")
                assert ws.receive() == "hello"
            assert ended == []

        def test_all_were_closed():
            assert ended == [True, True]

        def test_a_view_that_fails(websocket_connect):
            websocket_connect(echo, "/").send("fail")

        def test_a_view_that_stays(websocket_connect):
            websocket_connect(echo, "/stay", timeout=0.5).send("sleep")
        """)
    )
    run = run_pytest(tmp_path, "-rA")
    assert "4 passed, 2 errors" in run.stdout, run.stdout + run.stderr
    assert re.search("^E +KeyError: 'in the view'", run.stdout, re.MULTILINE)
    assert not re.search(r"^\S*testing\.py:\d+:", run.stdout, re.MULTILINE)  # no lines of the client
    assert re.search("^E +TimeoutError: the view of /stay did not end", run.stdout, re.MULTILINE)
    help_text = run_pytest(tmp_path, "--fixtures")
    assert "websocket_connect -- " in help_text.stdout
