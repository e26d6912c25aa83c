"""Raw TCP echo on gevent's StreamServer: the same bytes as the WebSocket servers carry, and no protocol."""

import socket
import sys

from gevent.server import StreamServer


def echo(connection: socket.socket, address: tuple[str, int]) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(65536):
        connection.sendall(data)


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), echo, backlog=1024).serve_forever()
