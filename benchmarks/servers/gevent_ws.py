"""Flask under gevent-ws: gevent's own WSGI server with the handler of that package."""

import sys

from gevent.pywsgi import WSGIServer
from gevent_ws import WebSocketHandler

from .flask_environ import app

if __name__ == "__main__":
    WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None, handler_class=WebSocketHandler).serve_forever()
