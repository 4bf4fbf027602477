"""Preparation by Ray Data: workers of one core, or of one GPU, write shards, on as many machines as the cluster has.

All machines need the corpora, the codec and the output under the same paths.
"""

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray.data


class Worker:
    """Writes shards {"name", "hours"} in a process of Ray's."""

    def __init__(self, shard_writer: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace):
        self.writer = shard_writer(arguments)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        return {"hours": sum(self.writer.write(shard["name"], shard["hours"]))}


def write_shards(
    shard_writer: Callable[[argparse.Namespace], Any], shards: dict[str, float], arguments: argparse.Namespace
) -> Iterator[float]:
    """Writes planned shards, name to hours; yields the hours of each when it is on disk.

    shard_writer: `prepare.ShardWriter`, which each worker makes of the arguments. A shard of a worker that dies is
    written again by another.
    """
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    worker: Any = Worker  # Ray makes one in each process, which its annotations do not know
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
    """The arguments, whose folders a process that runs elsewhere finds as well."""
    found = {
        name: os.path.abspath(path)
        for name in ("codec", "asr")
        if os.path.exists(path := getattr(arguments, name) or "")
    }
    return argparse.Namespace(**{**vars(arguments), **found})
