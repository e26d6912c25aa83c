"""A Django project in one file; its views find the WebSocket in request.META."""

from __future__ import annotations

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    DEBUG=False,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a test",
    USE_TZ=True,
)
django.setup()


def index(request: HttpRequest) -> HttpResponse:
    return HttpResponse("page")


def echo(request: HttpRequest, greeting: str) -> HttpResponse:
    ws = request.META["wsgi.websocket"]
    assert ws is request.environ["wsgi.websocket"]
    ws.send(greeting)
    for message in ws:
        ws.send(message)
    return HttpResponse()


def refused(request: HttpRequest) -> HttpResponse:
    return HttpResponse("not you", status=403)


urlpatterns = [path("", index), path("echo/<str:greeting>", echo), path("refused", refused)]
app = get_wsgi_application()
