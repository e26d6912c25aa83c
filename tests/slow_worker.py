"""A worker that takes its time between the fork and gunicorn's own signal handlers."""

import time

import geventws


class SlowWorker(geventws.Worker):
    def patch(self) -> None:
        self.log.info("patch begins")
        time.sleep(1)
        super().patch()
