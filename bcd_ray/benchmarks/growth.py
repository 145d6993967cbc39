"""How the job's speed, memory and cost change with the archive, the shards and the nodes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.speed import bench, circumstances, run_job, write_found
from bcd_ray.progress import one_line, say

_LEAST_IMAGES = 2_000  # of a measurement of shard sizes: fewer are over before the rate is steady


def growth(config: BenchmarkConfig) -> dict[str, Any]:
    """Run the job over archives and shards of each size, on each number of nodes; write `growth.json` and `.png`.

    Nodes are simulated: they share the cores of this machine, so that a rate that stays level is the best there can be.
    """
    found: dict[str, Any] = {
        **circumstances(config),
        "archives": [_measure(config, count, config.images_per_shard) for count in config.archive_sizes],
        "shards": [_measure(config, max(_LEAST_IMAGES, 12 * size), size) for size in config.shard_sizes],
        "nodes": [_measure(config, config.images, config.images_per_shard, count) for count in config.nodes],
    }
    if config.price and found["archives"]:
        found["cost_of_a_million_images"] = cost_of_a_million(config.price, found["archives"][-1]["whole"])
    write_found(config.output, "growth", found, _plot)
    return found


def cost_of_a_million(price: float, images_a_second: float) -> float:
    """What a million images cost on a machine of this price an hour, start-up included."""
    return price * 1e6 / images_a_second / 3600


def _measure(config: BenchmarkConfig, images: int, images_per_shard: int, nodes: int = 0) -> dict[str, float]:
    """The figures of one run of the job, on `nodes` simulated nodes if any are named."""
    config = replace(config, images=images, images_per_shard=images_per_shard, archive_sizes=(images,))
    with bench(config) as made, cluster(nodes) as environment:
        figures = run_job(made, made.shards, environment)
    if nodes:
        del figures["peak_gb"], figures["cpu_s_per_1000"]  # of the driver alone: the nodes are no part of it
    asked = {"images": images, "images_per_shard": images_per_shard, "nodes": nodes or 1}
    sizes = [f"{name} {count:,}" for name, count in asked.items()]
    say("  ".join([*sizes, *(f"{name} {value:,.5g}" for name, value in figures.items())]))
    return asked | figures


@contextmanager
def cluster(nodes: int) -> Iterator[dict[str, str]]:
    """So many nodes on this machine, which share its cores as far as they go; how a program joins them."""
    if not nodes:
        yield {}
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=max(1, len(os.sched_getaffinity(0)) // nodes))
        yield {"RAY_ADDRESS": cluster.address}
    finally:
        cluster.shutdown()


def _plot(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    parts = (("archives", "images", "images"), ("shards", "images_per_shard", "images a shard"))
    for axes, (part, name, label) in zip(figure.subplots(1, 3), (*parts, ("nodes", "nodes", "nodes")), strict=True):
        x = [each[name] for each in found[part]]
        axes.plot(x, [each["steady"] for each in found[part]], "o-", label="images a second, steady")
        axes.plot(x, [each["whole"] for each in found[part]], "o--", label="images a second, whole process")
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:,}" for value in x], fontsize="small")
        axes.set_xticks([], minor=True)
        axes.set(xlabel=label, ylim=(0, None))
        if part == "archives":
            memory = axes.twinx()
            memory.plot(x, [each["peak_gb"] for each in found[part]], "s:", color="tab:red", clip_on=False)
            memory.set_ylim(0, None)
            memory.set_ylabel("peak memory, GB", color="tab:red")
            axes.legend(fontsize="small", loc="lower right")
    title = one_line(f"{found['engine']}, {found['cores']} cores, {found['source'][:60]}")
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120)
