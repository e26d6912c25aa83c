"""Frameworks: what the gateway finds out about an app without importing what it is made with."""

from __future__ import annotations

from flask import Flask

from geventws import ConnectionClosed
from geventws.frameworks import expect_disconnects


def test_the_dictionaries_of_flask_1_take_the_handler_of_disconnects() -> None:
    app = Flask("app")
    app.error_handler_spec = {}  # as Flask 1 makes it
    expect_disconnects(app)
    assert ConnectionClosed in app.error_handler_spec[None][None]
