from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import ssl
import subprocess
import termios
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from .commands import APP, PATIENCE, Answers, answers_to, assert_one_line, command, environment, running, write_files

pytestmark = pytest.mark.slow  # it starts servers or installs packages

FILES = {"good.py": APP % "good", "junk.pem": "junk\n"}


MISTAKES: dict[tuple[str, ...], str] = {
    ("good:app", "--keyfile", "key.pem"): "--keyfile needs --certfile",
    ("good:app", "--certfile", "absent.pem"): "absent.pem: No such file or directory",
    ("good:app", "--certfile", "junk.pem"): "junk.pem is no PEM file",
    ("good:app", "--certfile", "cert.pem"): "cert.pem.*private key.*--keyfile",
    ("good:app", "--certfile", "cert.pem", "--keyfile", "absent.pem"): "absent.pem: No such file or directory",
    ("good:app", "--certfile", "cert.pem", "--keyfile", "junk.pem"): "junk.pem",
    ("good:app", "--certfile", "cert.pem", "--keyfile", "other.pem"): "other.pem is not the private key of cert.pem",
    ("good:app", "--certfile", "cert.pem", "--keyfile", "secret.pem"): (
        "secret.pem has a passphrase, and there is no terminal .* openssl pkey -in secret.pem -out plain.pem"
    ),
    ("good:app", "--certfile", "secret-too.pem"): "secret-too.pem has a passphrase, and there is no terminal",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path, FILES)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    directory = write_files(tmp_path_factory.mktemp("mistakes"), FILES)
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    authority.issue_cert("localhost").private_key_pem.write_to_path(directory / "other.pem")
    lock(directory / "key.pem", directory / "secret.pem")
    both = (directory / "secret.pem").read_text() + (directory / "cert.pem").read_text()
    (directory / "secret-too.pem").write_text(both)
    return answers_to(MISTAKES, directory)


def lock(key: Path, locked: Path) -> None:
    """Write a private key again, with the passphrase open sesame."""
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    how = serialization.BestAvailableEncryption(b"open sesame")
    locked.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))


@pytest.mark.parametrize("made", MISTAKES, ids=shlex.join)
def test_a_mistake_gets_one_line_and_status_2(answers: Answers, made: tuple[str, ...]) -> None:
    assert_one_line(answers[made], MISTAKES[made])


@pytest.mark.parametrize("files", ["one", "two"])
def test_tls(directory: Path, certificate: tuple[str, str, ssl.SSLContext], files: str) -> None:
    certfile, keyfile, context = certificate
    arguments = ["--certfile", certfile, "--keyfile", keyfile]
    if files == "one":
        both = directory / "both.pem"
        both.write_text(Path(keyfile).read_text() + Path(certfile).read_text())
        arguments = ["--certfile", str(both)]
    with running(directory, "good:app", "--bind", "127.0.0.1:0", *arguments) as program:
        assert program.address().startswith("https://")
        assert program.get(tls=context).startswith("good")


def test_ctrl_d_at_the_prompt_for_a_passphrase_is_a_mistake_of_one_line(
    directory: Path, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    lock(Path(certificate[1]), directory / "secret.pem")
    arguments = ["good:app", "--bind=127.0.0.1:0", "--certfile", certificate[0], "--keyfile", "secret.pem"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        cwd=directory,
        env=environment({}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    shown = b""
    try:
        while b"Passphrase of secret.pem: " not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, b"\x04")
        assert process.wait(PATIENCE) == 2
        shown += os.read(ours, 1024)
        assert b"geventws: no passphrase was given for secret.pem" in shown
        assert b"Traceback" not in shown
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_passphrase_may_come_by_stdin_where_there_is_no_terminal(
    directory: Path, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    lock(Path(certificate[1]), directory / "secret.pem")
    arguments = ["good:app", "--bind=127.0.0.1:0", "--certfile", certificate[0], "--keyfile", "secret.pem"]

    def start(passphrase: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(*arguments),
            cwd=directory,
            env=environment({}),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(f"{passphrase}\n")
        process.stdin.close()
        return process

    with start("open sesame") as process:
        assert process.stderr is not None
        assert "serves good:app on https://" in process.stderr.readline()
        process.terminate()
    with start("wrong") as process:
        assert process.stderr is not None
        assert re.match("geventws: the passphrase does not open secret.pem", process.stderr.readline())
