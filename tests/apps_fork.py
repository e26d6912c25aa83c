"""A page that forks, as one does that starts a multiprocessing.Process; the child lets its hub run for a while."""

from __future__ import annotations

import multiprocessing

import gevent

from tests.apps import app

__all__ = ["app"]

fork = multiprocessing.get_context("fork")


def child() -> None:
    print("child runs", flush=True)
    gevent.sleep(600)


@app.route("/fork")
def start() -> str:
    process = fork.Process(target=child, daemon=True)
    process.start()
    return str(process.pid)
