"""The same application on Ray Serve: replicas of one core each, on as many machines as the cluster has.

    serve run smalle.serving.ray:app
    serve run smalle.serving.ray:app voices=/shared/voices max_replicas=16

Arguments are fields of `Settings`, and `min_replicas` and `max_replicas`.
"""

import dataclasses
from typing import Any

import pydantic
from ray import serve

from .app import create_app
from .settings import Settings

WAITING = 100  # requests that Ray queues until a replica is free; further requests get status 503
SCALING = {  # one replica for each request that is running or waiting
    "min_replicas": 1,
    "max_replicas": 4,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 5,
    "downscale_delay_s": 300,
}
RAYS = "host", "streams", "queue", "wyoming"  # settings that Ray controls


def app(arguments: dict[str, Any]) -> serve.Application:
    """Builds the application for `serve run` and `serve.run`.

    Args:
        arguments: see above. Numbers may be strings, as from a command line.

    Raises:
        ValueError: an argument is unknown or wrong.
    """
    scaling = {name: int(arguments.get(name, SCALING[name])) for name in ("min_replicas", "max_replicas")}
    given = {name: value for name, value in arguments.items() if name not in scaling}
    known = {field.name for field in dataclasses.fields(Settings)}.difference(RAYS)
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{unknown[0]}={given[unknown[0]]!r}: expected one of {sorted(known.union(scaling))}.")
    uploads = {} if "voices" in given else {"max_voices": 0}  # the other replicas would not know them
    settings = pydantic.TypeAdapter(Settings).validate_python({**given, **uploads, "streams": 1})
    deployment = serve.deployment(
        name="smalle",
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=1,  # so that no request waits for one replica while another is free
        max_queued_requests=WAITING,
        autoscaling_config={**SCALING, **scaling},
    )
    return deployment(serve.ingress(lambda: create_app(settings))()).bind()
