"""`smalle serve` runs a server with OpenAI's speech API, a web page, and the Wyoming protocol."""

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from urllib.parse import urlsplit

import uvicorn

from ..serving.app import create_app
from ..serving.settings import LOOPBACK, Settings, available_cores
from ..serving.workers import serve

DEFAULTS = Settings()
WYOMING = "tcp://127.0.0.1:10200"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="smalle serve", description=__doc__)
    add = parser.add_argument
    add("--model", help="checkpoint: folder or Hub name (default: $SMALLE_MODEL, else the embedded one)")
    add("--lexicon", metavar="FILE", help="respellings of names: a line WORD = RESPELLING each")
    add("--host", default=DEFAULTS.host, help="address to listen at (default: %(default)s, this machine only)")
    add("--port", type=int, default=8000, help="default: %(default)s; 0: any free port")
    add("--api-key", action="append", default=[], metavar="KEY", help="key that clients must send; may be repeated")
    add(
        "--api-key-file",
        metavar="FILE",
        help="file with one key per line; unlike --api-key, it does not appear in process lists",
    )
    add("--public", action="store_true", help="accept requests from other machines without a key")
    add("--workers", type=int, default=1, help="processes that share the cores (default: %(default)s)")
    add("--streams", type=int, help="texts that each worker speaks at the same time (default: number of cores)")
    add(
        "--queue",
        type=int,
        default=DEFAULTS.queue,
        help="requests that may wait in each worker (default: %(default)s)",
    )
    add("--max-characters", type=int, default=DEFAULTS.max_characters, help="longest text (default: %(default)s)")
    add("--max-seconds", type=float, default=DEFAULTS.max_seconds, help="longest speech (default: 1800)")
    add("--max-upload", type=int, default=DEFAULTS.max_upload, help="largest request in bytes (default: %(default)s)")
    add(
        "--max-recording", type=float, default=DEFAULTS.max_recording, help="longest recording in seconds (default: 30)"
    )
    add("--voices", metavar="FOLDER", help="store uploaded voices there (default: in memory, until the server ends)")
    add(
        "--max-voices",
        type=int,
        default=DEFAULTS.max_voices,
        help="maximum number of uploaded voices (default: %(default)s)",
    )
    add("--cors", action="append", default=[], metavar="ORIGIN", help="site whose pages may use the server")
    add("--wyoming", nargs="?", const=WYOMING, metavar="URI", help="also serve Home Assistant (default URI: %(const)s)")
    return parser


def read_keys(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The API keys of the arguments. Raises ValueError for a file without keys."""
    keys = list(arguments.api_key)
    if arguments.api_key_file:
        lines = pathlib.Path(arguments.api_key_file).read_text(encoding="utf-8").split("\n")
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{arguments.api_key_file} contains no key: expected one per line.")
        keys += found
    return tuple(keys)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings of the arguments. Raises ValueError if they are unsafe or contradict each other."""
    if not 1 <= arguments.workers <= 1024:
        raise ValueError(f"--workers {arguments.workers}: expected 1 or more.")
    if not 0 <= arguments.port < 1 << 16:
        raise ValueError(f"--port {arguments.port}: expected 0 to 65535.")
    if arguments.workers > 1 and arguments.wyoming:
        raise ValueError("--workers and --wyoming cannot be combined: only one process can listen at the Wyoming port.")
    names = {field.name for field in dataclasses.fields(Settings)}
    values = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    values.setdefault("streams", max(1, available_cores() // arguments.workers))
    settings = Settings(**values, api_keys=read_keys(arguments), cors_origins=tuple(arguments.cors))
    exposed = [host for host in (settings.host, wyoming_host(settings)) if host not in (*LOOPBACK, None)]
    if exposed and not settings.public and (settings.wyoming or not settings.api_keys):
        raise ValueError(
            f"{exposed[0]} can be reached from other machines: use --api-key-file (the Wyoming protocol has no keys), "
            "or --public."
        )
    return settings


def wyoming_host(settings: Settings) -> str | None:
    """The host of the Wyoming server; None without such a server, or for a Unix socket."""
    url = urlsplit(settings.wyoming or "")
    if settings.wyoming and (url.scheme not in ("tcp", "unix") or url.scheme == "tcp" and not url.port):
        raise ValueError(f"--wyoming {settings.wyoming}: expected tcp://HOST:PORT or unix:///PATH.")
    return url.hostname


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `smalle serve` until it is interrupted. Raises ValueError for wrong input."""
    arguments = parser().parse_args(argv)
    settings = settings_of(arguments)
    options = {"host": settings.host, "port": arguments.port, "log_level": "info", "timeout_graceful_shutdown": 10}
    try:
        if arguments.workers == 1:
            uvicorn.run(create_app(settings), **options)
        else:
            run_workers(settings, arguments.workers, options)
    except KeyboardInterrupt:
        pass  # the usual way to stop the server
    return 0


def run_workers(settings: Settings, workers: int, options: dict) -> None:
    """Runs several processes with common metrics and shared uploaded voices."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = pathlib.Path(folder, "metrics")
        metrics.mkdir()
        if settings.voices is None:
            settings = dataclasses.replace(settings, voices=str(pathlib.Path(folder, "voices")))
        serve(settings, workers, str(metrics), **options)
