from __future__ import annotations

import io
import os
import ssl
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import trustme

from geventws import Rooms

from .pairs import Opener, watched_hub
from .servers import missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that processes which share the files end together.

    In CI their tests, which meet whatever else the machine does, have a second try: it is named at the end of the run.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if "CI" in os.environ and item.get_closest_marker("slow") and not item.get_closest_marker("flaky"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, ssl.SSLContext]:
    """Names of a certificate and its key file for localhost, and a client's context that trusts it."""
    directory: Path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return str(directory / "cert.pem"), str(directory / "key.pem"), context


@pytest.fixture
def errors() -> Iterator[io.StringIO]:
    """What the hub says of errors, of which there are none in the end: who expects one empties it."""
    with watched_hub() as errors:
        yield errors


@pytest.fixture
def opened(certificate: tuple[str, str, ssl.SSLContext], errors: io.StringIO) -> Iterator[Opener]:
    """Opens WebSockets on sockets joined in pairs, and ends them behind the test."""
    opener = Opener(certificate)
    yield opener
    opener.close()


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    """Rooms whose users are gone at once when they have left."""
    rooms = Rooms(linger=0)
    yield rooms
    rooms.close()


@pytest.fixture
def bottle_websocket() -> None:
    if find_spec("bottle_websocket") is None:
        missing("bottle-websocket is not installed")
