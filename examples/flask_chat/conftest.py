from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from flask import Flask


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a chat begins with; to hash passwords takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("instance")
        patch.setenv("CHAT_INSTANCE", str(folder))
        import app  # noqa: F401
    return folder


@pytest.fixture
def app(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """A chat of one's own."""
    from app import create_app

    folder = shutil.copytree(fresh, tmp_path / "instance")
    monkeypatch.setenv("CHAT_INSTANCE", str(folder))
    return create_app()
