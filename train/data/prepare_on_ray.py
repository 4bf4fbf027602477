"""Preparation with Ray Data: workers with one core or one GPU each write shards, on all machines of the cluster.

All machines need access to the corpora, the codec and the output under the same paths.
"""

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray.data


class Worker:
    """Writes shards {"name", "hours"} in a process of Ray."""

    def __init__(self, shard_writer: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace):
        self.writer = shard_writer(arguments)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        return {"hours": sum(self.writer.write(shard["name"], shard["hours"]))}


def write_shards(
    shard_writer: Callable[[argparse.Namespace], Any], shards: dict[str, float], arguments: argparse.Namespace
) -> Iterator[float]:
    """Writes planned shards, {name: hours}; yields the hours of each shard when it is on disk.

    shard_writer: `prepare.ShardWriter`, which each worker creates from the arguments. If a worker dies, another one
    writes its shard.
    """
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    worker: Any = Worker  # Ray creates one in each process; its annotations do not cover that
    gpus = int(arguments.device.startswith("cuda"))
    rows = [{"name": name, "hours": hours} for name, hours in shards.items()]
    written = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        worker,
        fn_constructor_args=(shard_writer, with_absolute_paths(arguments)),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(rows)),
        num_cpus=1 - gpus,
        num_gpus=gpus,
    )
    for row in written.iter_rows():
        yield row["hours"]


def with_absolute_paths(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with absolute paths, for processes with another working directory."""
    found = {
        name: os.path.abspath(path)
        for name in ("codec", "asr")
        if os.path.exists(path := getattr(arguments, name) or "")
    }
    return argparse.Namespace(**{**vars(arguments), **found})
