"""The fuzzing client's home: autobahntestsuite in a virtual environment of CPython 2.7, made once and kept.

Knows pip and virtualenv; knows no case and no server.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Its metadata pins every requirement that still moves, to the last release that CPython 2.7 runs.
AUTOBAHN = "25.10.1"
# The last release that runs on CPython 2.7 itself, so it matters not which Python runs these tests.
VIRTUALENV = "16.7.12"
STEP_TIMEOUT = 900.0  # seconds


class NoPython27(Exception):
    """This machine shows no CPython 2.7."""


def python27() -> str:
    """Return the path of the CPython 2.7 that PYTHON27 names, else of pyenv's newest. Raises NoPython27."""
    named = os.environ.get("PYTHON27")
    if named:
        path = shutil.which(named)
        if path is None:
            raise FileNotFoundError(f"PYTHON27 names {named!r}, which is no command")
        return os.path.abspath(path)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = list(pyenv.glob("versions/2.7*/bin/python"))
    if not found:
        raise NoPython27(f"autobahntestsuite needs CPython 2.7: PYTHON27 is not set, pyenv has none in {pyenv}")
    return str(max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parts[-3])]))


def fuzzing_client() -> str:
    """Return the path of a Python that can import autobahntestsuite.

    The first call makes it, in about half a minute, with PyPI and a C compiler (wsaccel has no wheel);
    any other process waits for it meanwhile.

    Raises NoPython27, or RuntimeError with the output of the step that failed.
    """
    interpreter = python27()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geventws"
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"autobahn-{AUTOBAHN}"
    # Written last: an installation that was cut short has none, and one of another interpreter names it.
    made_with = home / "made-with"
    with open(cache / f"{home.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made_with.is_file() or made_with.read_text() != interpreter:
            shutil.rmtree(home, ignore_errors=True)
            _install(interpreter, home)
            made_with.write_text(interpreter)
    return str(home / "bin" / "python")


def environ(**more: str) -> dict[str, str]:
    """Return our environment for a Python 2.7, without what is meant for the Python that runs us, and with more."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | more


def _install(interpreter: str, home: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _step(sys.executable, "-m", "pip", "install", "--no-deps", "--target", scratch, f"virtualenv=={VIRTUALENV}")
        _step(interpreter, "-m", "virtualenv", str(home), PYTHONPATH=scratch)
    _step(str(home / "bin" / "python"), "-m", "pip", "install", f"autobahntestsuite=={AUTOBAHN}")


def _step(*command: str, **more: str) -> None:
    done = subprocess.run(
        command,
        env=environ(PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_TIMEOUT,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}")
