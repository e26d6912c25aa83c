from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from .commands import APP, Answers, answers_to, assert_one_line, running, write_files

pytestmark = pytest.mark.slow  # it starts servers or installs packages

FILES = {
    "good.py": APP % "good",
    "makes.py": "def create_app():\n    from good import app\n\n    return app\n",
    "imports_what_is_missing.py": "import no_such_library\n",
    "raises.py": "raise KeyError('DATABASE_URL')\n",
    "misuses.py": "import json\n\njson.loads('no json')\n",
    "exits.py": "import sys\nsys.exit('DATABASE_URL is not set')\n",
    "misspelt.py": "def app(:\n",
    "imports_misspelt.py": "import misspelt\n",
    "imports_others.py": "from importlib import import_module\nimport_module('raises')\n",
    "chained.py": "try:\n    {}['x']\nexcept KeyError:\n    raise RuntimeError('no settings\\nat all')\n",
    "lazy.py": "def __getattr__(name):\n    raise RuntimeError('no database')\n",
    "package/__init__.py": "",
    "package/wrong.py": "from .absent import name\n",
    "things.py": "number = 3\n\ndef fails():\n    raise RuntimeError('no database')\n\n"
    "def leaves():\n    raise SystemExit('no database')\n\ndef gives_nothing():\n    pass\n\n"
    "def create_app():\n    pass\n\ndef configured(settings=None, testing=False):\n    pass\n\n"
    "async def asgi(scope, receive, send):\n    pass\n\n"
    "class Application:\n    def __call__(self, environ, start_response):\n        pass\n",
}


MISTAKES: dict[tuple[str, ...], str] = {
    ("no_such_module:app",): "there is no module no_such_module in",
    ("package.absent:app",): "there is no module package.absent in",
    ("good:absent",): "module good has no attribute absent",
    (":app",): "MODULE:APP",
    ("",): "MODULE:APP",
    ("good:()",): "MODULE:APP",
    ("good.py:app",): "did you mean good:app",
    ("./package/wrong.py",): r"did you mean package\.wrong:app",
    ("help",): "there is no command or module help in",
    ("exits:app",): "importing exits failed: .*DATABASE_URL is not set",
    ("things:number",): "things:number is no WSGI app: it is int",
    ("things:leaves()",): r"calling things:leaves\(\) failed: .*no database",
    ("things:gives_nothing()",): r"things:gives_nothing\(\) is no WSGI app: it is NoneType",
    ("things:create_app",): r"things:create_app is no WSGI app: .*; if it makes the app, write things:create_app\(\)$",
    ("things:configured",): r"things:configured is no WSGI app: .*; if it makes the app, write things:configured\(\)$",
    ("things:Application",): r"things:Application is no WSGI app: .* write things:Application\(\)$",
    ("things:asgi",): "things:asgi is no WSGI app: it cannot be called with environ and start_response$",
    ("good:app()",): r"calling good:app\(\) failed: TypeError",
}


# What its app raises, by file and line of the first frame that the traceback shows.
FAILURES = {
    "imports_what_is_missing:app": ("imports_what_is_missing.py", 1, "ModuleNotFoundError: .*no_such_library"),
    "package.wrong:app": ("package/wrong.py", 1, "ModuleNotFoundError: .*package.absent"),
    "imports_others:app": ("imports_others.py", 2, "KeyError: 'DATABASE_URL'"),
    "raises:app": ("raises.py", 1, "KeyError: 'DATABASE_URL'"),
    "misuses:app": ("misuses.py", 3, r"JSONDecodeError: .* \(misuses.py, line 3\)"),
    "chained:app": ("chained.py", 2, "RuntimeError: no settings"),
    "misspelt:app": ("misspelt.py", 1, "SyntaxError: .*misspelt.py, line 1"),
    "imports_misspelt:app": ("imports_misspelt.py", 1, "SyntaxError: .*misspelt.py, line 1"),
    "lazy:app": ("lazy.py", 2, "RuntimeError: no database"),
    "things:fails()": ("things.py", 4, "RuntimeError: no database"),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path, FILES)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    directory = write_files(tmp_path_factory.mktemp("mistakes"), FILES)
    return answers_to([*MISTAKES, *((app,) for app in FAILURES)], directory)


@pytest.mark.parametrize("made", MISTAKES, ids=shlex.join)
def test_a_mistake_gets_one_line_and_status_2(answers: Answers, made: tuple[str, ...]) -> None:
    assert_one_line(answers[made], MISTAKES[made])


@pytest.mark.parametrize("app", FAILURES)
def test_an_exception_of_the_app_shows_its_traceback_from_its_own_frames_on(answers: Answers, app: str) -> None:
    file, line, text = FAILURES[app]
    answer = answers[app,]
    shown, complaint = answer.stderr[:-1].rsplit("\n", 1)
    frames = re.findall(r'^  File "(.+)", line (\d+)', shown, re.MULTILINE)
    assert frames[0][0].endswith(f"/{file}") and int(frames[0][1]) == line, shown
    doing = "calling" if app.endswith("()") else "importing"
    assert re.match(f"geventws: {doing} {re.escape(app.removesuffix(':app'))}(:app)? failed: {text}", complaint)
    assert answer.returncode == 2


@pytest.mark.parametrize("app", ["good:app", "good", "makes:create_app()"])
def test_the_app_comes_from_the_current_directory(directory: Path, app: str) -> None:
    with running(directory, app, "--bind", "127.0.0.1:0") as program:
        assert program.get().startswith("good ")
        assert f" serves {app} on " in program.err
