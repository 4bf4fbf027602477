"""The settings of a server."""

import dataclasses
import json
import os
from typing import Any

ENVIRONMENT = "SMALLE_SERVE"  # environment variable that passes the settings to worker processes
LOOPBACK = "127.0.0.1", "localhost", "::1"


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of `smalle.serving.app.create_app`; `smalle serve --help` describes the corresponding options.

    model: checkpoint, a folder or a Hub name; None: the default one.
    lexicon: file with respellings of names; None: no lexicon.
    host: address to listen at. Without api_keys and `public`, requests must use this or the loopback address.
    streams: number of texts that are spoken at the same time. queue: number of requests that may wait.
    max_characters: longest text. max_seconds: longest speech; pauses could make it endless otherwise.
    max_upload: largest request in bytes. max_recording: longest recording in seconds.
    voices: folder for uploaded voices; None: they are kept in memory. max_voices: maximum number of uploaded voices.
    cors_origins: sites whose pages may use the server.
    wyoming: URI for a Wyoming server, such as tcp://127.0.0.1:10200; None: no such server.
    """

    model: str | None = None
    lexicon: str | None = None
    host: str = LOOPBACK[0]
    streams: int = dataclasses.field(default_factory=available_cores)
    queue: int = 32
    max_characters: int = 4096
    max_seconds: float = 1800.0
    max_upload: int = 10 << 20
    max_recording: float = 30.0
    voices: str | None = None
    max_voices: int = 100
    api_keys: tuple[str, ...] = ()
    public: bool = False
    cors_origins: tuple[str, ...] = ()
    wyoming: str | None = None

    def __post_init__(self):
        for name in ("streams", "max_characters", "max_seconds", "max_upload", "max_recording"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0.")
        for name in ("queue", "max_voices"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more.")
        if any(not key.isascii() or not key.strip() for key in self.api_keys):
            raise ValueError("An API key is empty or not ASCII: HTTP headers cannot carry it.")

    @property
    def allowed_hosts(self) -> list[str]:
        """Host names that requests may use, so that pages of other sites cannot reach the server under a name of their
        own (DNS rebinding)."""
        return ["*"] if self.public or self.api_keys else [*LOOPBACK, "[::1]", self.host]

    def to_environment(self) -> dict[str, str]:
        return {ENVIRONMENT: json.dumps(dataclasses.asdict(self))}

    @classmethod
    def from_environment(cls) -> "Settings":
        """The settings that `to_environment` wrote; otherwise the defaults."""
        values: dict[str, Any] = json.loads(os.environ.get(ENVIRONMENT, "{}"))
        for name in ("api_keys", "cors_origins"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)
