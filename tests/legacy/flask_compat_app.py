"""A Flask app that imports geventwebsocket, and shows whose it is."""

from __future__ import annotations

import geventwebsocket
from flask import Flask

app = Flask(__name__)


@app.route("/")
def index() -> str:
    return str(geventwebsocket.WebSocketError)
