"""A Flask view that echoes over environ["wsgi.websocket"], for gevent-websocket, gevent-ws and geventws-receive."""

from flask import Flask, request

app = Flask(__name__)


@app.route("/", websocket=True)
def echo() -> str:
    ws = request.environ["wsgi.websocket"]
    while (message := ws.receive()) is not None:
        ws.send(message)
    return ""
