"""A room of websockets, by its broadcast(): members hear what the speaker says, and an outsider is echoed."""

import asyncio
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

members: set[ServerConnection] = set()


async def client(connection: ServerConnection) -> None:
    role = connection.request.path if connection.request else ""
    if role == "/member":
        members.add(connection)
    await connection.send("welcome")
    try:
        async for message in connection:
            if role == "/speaker":
                broadcast(members, message)
            else:
                await connection.send(message)
    finally:
        members.discard(connection)


async def main(port: int) -> None:
    async with serve(client, "127.0.0.1", port, ping_interval=None) as server:
        await server.serve_forever()


if __name__ == "__main__":
    {"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[2]](main(int(sys.argv[1])))
