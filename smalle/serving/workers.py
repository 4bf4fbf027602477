"""A server with several processes that listen at the same address."""

import os
import sys

import fastapi
import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from .app import create_app
from .metrics import FOLDER
from .settings import Settings

PATIENCE = 60  # seconds that a worker may take to answer its parent


class Workers(Multiprocess):
    """uvicorn's supervisor. Replaces processes that died and removes their gauges from the metrics."""

    def keep_subprocess_alive(self) -> None:
        if all(process.process.is_alive() for process in self.processes):
            return  # uvicorn would also kill workers that are slow to answer, for example while loading PyTorch
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            mark_process_dead(pid, os.environ[FOLDER])


def app_from_environment() -> fastapi.FastAPI:
    """The application of a worker, with the settings from the environment variable that its parent set."""
    try:
        return create_app(Settings.from_environment())
    except ValueError as error:
        print(f"smalle: {error}", file=sys.stderr)
        raise SystemExit(STARTUP_FAILURE) from error  # do not restart: the next worker would fail as well


def serve(settings: Settings, workers: int, metrics: str, **options) -> None:
    """Runs the workers until SIGTERM or Ctrl-C.

    Args:
        metrics: empty folder in which the workers share their metrics.
        options: options of `uvicorn.Config`.

    Raises:
        ValueError: a worker could not start.
    """
    os.environ.update(settings.to_environment(), **{FOLDER: metrics})
    app = f"{__name__}:{app_from_environment.__name__}"
    config = uvicorn.Config(app, factory=True, workers=workers, timeout_worker_healthcheck=PATIENCE, **options)
    supervisor = Workers(config, [config.bind_socket()])
    supervisor.run()
    if STARTUP_FAILURE in [process.exitcode for process in supervisor.processes]:
        raise ValueError("the server did not start, see above.")
