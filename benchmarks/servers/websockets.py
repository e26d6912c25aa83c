"""Echo on websockets' own servers: asyncio, asyncio on uvloop, or a thread for each connection."""

import asyncio
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.sync.server import ServerConnection as ThreadConnection
from websockets.sync.server import serve as serve_threads


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


def echo_in_thread(connection: ThreadConnection) -> None:
    for message in connection:
        connection.send(message)


async def main(port: int) -> None:
    async with serve(echo, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    port, mode = int(sys.argv[1]), sys.argv[2]
    if mode == "sync":
        with serve_threads(echo_in_thread, "127.0.0.1", port) as server:
            server.serve_forever()
    else:
        {"asyncio": asyncio.run, "uvloop": uvloop.run}[mode](main(port))
