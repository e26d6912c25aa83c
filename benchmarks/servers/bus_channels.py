"""Groups of Django Channels over the layer and the Redis of LAYER and BUS: a speaker's message names its group."""

import os
from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

# By redis-py's own limits the core layer runs out of connections, and its reads end as they begin to wait.
url = os.environ["BUS"] + "?max_connections=10000&socket_timeout=30"
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    CHANNEL_LAYERS={"default": {"BACKEND": os.environ["LAYER"], "CONFIG": {"hosts": [url]}}},
)
django.setup()
urlpatterns: list[Any] = []


class Member(AsyncWebsocketConsumer):  # type: ignore[misc, unused-ignore]
    async def connect(self) -> None:
        self.group = "room" + self.scope["url_route"]["kwargs"]["room"]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()
        await self.send("welcome")

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def said(self, event: dict[str, str]) -> None:
        await self.send(event["text"])


class Speaker(AsyncWebsocketConsumer):  # type: ignore[misc, unused-ignore]
    async def connect(self) -> None:
        await self.accept()
        await self.send("welcome")

    async def receive(self, text_data: str) -> None:
        await self.channel_layer.group_send("room" + text_data[1:7], {"type": "said", "text": text_data})


app = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter([path("member/<room>", Member.as_asgi()), path("speaker", Speaker.as_asgi())]),
    }
)
