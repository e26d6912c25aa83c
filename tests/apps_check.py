"""A Flask app without Sockets, whose routes are for pages or for WebSockets."""

from __future__ import annotations

from flask import Flask, request

app = Flask(__name__)


@app.route("/page")
def page() -> str:
    return "a page"


@app.route("/echo", websocket=True)
def echo() -> str:
    ws = request.environ["wsgi.websocket"]
    for message in ws:
        ws.send(message)
    return ""
