from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from flask import Flask


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a chat begins with, but for passwords that are checked in no time."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("instance")
        patch.setenv("CHAT_INSTANCE", str(folder))
        from app import app
        from models import User, db
        from werkzeug.security import generate_password_hash

        with app.app_context():
            for user in db.session.scalars(db.select(User)):
                user.password = generate_password_hash("demo", "pbkdf2:sha256:1")
            db.session.commit()
            db.session.remove()
            db.engine.dispose()
    return folder


@pytest.fixture
def app(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """A chat of one's own."""
    from app import create_app

    folder = shutil.copytree(fresh, tmp_path / "instance")
    monkeypatch.setenv("CHAT_INSTANCE", str(folder))
    return create_app()
