"""What the benchmarks can be told."""

from dataclasses import dataclass
from typing import Literal

from bcd_ray.config import at_least, normalize
from bcd_ray.errors import ConfigError


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure speed, start-up, and what the scoring ledger costs."""

    what: Literal[
        "speed",
        "turns",
        "growth",
        "startup",
        "training",
        "ledger",
        "plan",
        "night",
        "memory",
        "shard",
        "rescore",
        "history",
    ]
    """`speed`: the job beside a PyTorch loop, Ray's pattern and the engine alone; `turns`: the job and the engine alone
    in turns of five seconds, for a ratio that a machine's ups and downs leave alone; `growth`: the job as archives,
    shards and nodes grow; `startup`: the time to the first row, itemised; `training`: a training run beside the bare
    forward passes of its images and views; `ledger`: scoring with and without it, in turn, on synthetic images; `plan`:
    plans of large archives; `night`: a night of 200 new images, `memory`: images in tars, and `shard`: images in one
    Parquet file on simulated nodes, each beside the revision of `--against`; `rescore`: another head from kept
    embeddings beside scoring the images anew, and scoring with embeddings kept beside scoring without, in turns;
    `history`: the plan of a night of 200 new images where `--images` loose ones are published, and of a night where
    none is."""
    output: str = "benchmarks"
    """Folder for the figures of `speed` and `growth` as JSON and as a plot."""
    data: str = ""
    """Folder of images to measure with, one folder per class; drawn ones where none is named."""
    images: int = 1280
    """Images for `speed`, `turns`, `training`, `memory`, `shard` and the nodes of `growth`; those of `--data` are
    repeated where they are fewer."""
    peer_images: int = 0
    """How many of them the programs of others get for `speed`, which take up to ten times as long; 0 for all."""
    peers: bool = True
    """Whether `speed` runs the programs of others, or the job and its ceilings alone."""
    image_width: int = 224
    """Of drawn images, in pixels."""
    image_height: int = 224
    """Of drawn images, in pixels."""
    images_per_shard: int = 64
    """Images in each shard for `speed` and `turns`, and for the archives and nodes of `growth`."""
    engine: Literal["openvino", "openvino-int8", "torch-cuda"] = "openvino"
    """Of the job and of the ceiling; with `torch-cuda` the programs of others use the GPU too, and `speed` has two
    ceilings: decoding alone and the network alone."""
    representation: Literal["field", "cells", "both"] = "field"
    """What of a field the model of `turns` looks at; another than `field` is measured beside a job of `field`."""
    s3: str = ""
    """Folder on S3, `s3://`: `speed` and `turns` put the shards there too, and measure the job from there beside the
    others."""
    archive_sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Images of each archive for `growth`."""
    shard_sizes: tuple[int, ...] = (32, 128, 512, 2_048, 4_096)
    """Images in each shard for `growth`, over at least twelve shards."""
    nodes: tuple[int, ...] = (1, 2, 4)
    """Simulated nodes for `growth`, all on this machine; `shard` takes the most."""
    price: float = 0.0
    """Of an hour of this machine, in any currency: `growth` then says what a million images cost."""
    units: int = 4
    """Shards of 512 synthetic images to score for `ledger`."""
    rounds: int = 3
    """Rounds to count."""
    against: str = ""
    """Git revision of this project to compare with, both in turns on the same input; for `night`, `memory` and `shard`,
    and for `rescore` and `history` if you like."""

    def __post_init__(self) -> None:
        normalize(self, "output", *(name for name in ("data", "s3") if getattr(self, name)))
        at_least(self, 1, "images_per_shard", "units", "rounds")
        at_least(self, 0, "peer_images")
        at_least(self, 32, "image_width", "image_height")
        if self.what == "turns" and self.engine == "torch-cuda":
            raise ConfigError("--what turns is for CPUs, where the job has one ceiling: use --what speed")
        if self.representation != "field" and (self.what != "turns" or self.s3):
            raise ConfigError("--representation goes with --what turns, without --s3")
        beside = self.what in ("night", "memory", "shard")
        if self.what not in ("rescore", "history") and beside != bool(self.against):
            raise ConfigError("--what night, memory and shard compare with a git revision, which --against names")
        if self.s3 and not self.s3.startswith("s3://"):
            raise ConfigError(f"--s3 {self.s3} is no folder on S3: it starts with s3://")
        if min((1, *self.archive_sizes, *self.shard_sizes, *self.nodes)) < 1:
            raise ConfigError("--archive-sizes, --shard-sizes and --nodes must be at least 1")
        sizes = (self.images, *(self.archive_sizes if self.what == "growth" else ()))
        if min(sizes) < 10 * self.images_per_shard:
            raise ConfigError(
                f"{min(sizes)} images must be at least ten times --images-per-shard: fewer results give no rate"
            )
