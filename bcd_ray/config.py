"""What each job can be told; the field comments are the command line's help.

Configurations check themselves when made, before anything is imported, read or started.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Literal

from bcd_ray import storage
from bcd_ray.errors import ConfigError

Protocol = Literal["random", "blocked", "forward", "grouped"]


def _default_cache() -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "bcd_ray")


@dataclass(frozen=True, kw_only=True)
class _FitOptions:
    """How heads are fitted and the images split, in training and in cross-validation."""

    epochs: int = 5
    """Passes over the training images and their augmented views."""
    learning_rate: float = 0.003
    """Step size of Adam."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes; 0 for the paper's plain cross-entropy."""
    batch_size: int = 32
    """Images a step, over all workers together."""
    augmented_views: int = 4
    """Augmented views of each training image; an epoch goes through the image itself and all of them."""
    weights: Literal["keras", "torchvision"] = "keras"
    """ImageNet weights: the paper's, which come with the package, or torchvision's own, which it downloads."""
    test_fraction: float = 0.3
    """Share of each class that is kept for the test; cross-validation uses it for `forward` alone."""
    block: int = 100
    """Images in a block of capture order, at most: what `blocked` keeps whole, and what the intervals draw."""
    embargo: int = 40
    """Images left out of training on each side of a test block in capture order, with `blocked` and `forward`."""
    group_pattern: str = ""
    """For `grouped`: regular expression that finds the patient or slide in an image's path; its first group, if any."""
    group_table: str = ""
    """For `grouped`: CSV or Parquet with the columns `image` (path below --data) and `group`: a path or s3://."""
    cache: str = field(default_factory=_default_cache)
    """Folder that keeps embeddings, so that the next run on the same images starts at once: a path or s3://; empty
    for none."""

    def __post_init__(self) -> None:
        _normalize(self, *(name for name in ("cache", "group_table") if getattr(self, name)))
        _at_least(self, 1, "epochs", "batch_size", "block")
        _at_least(self, 0, "augmented_views", "embargo")
        if not self.learning_rate > 0:
            raise ConfigError("--learning-rate must be above 0")
        if not 0 < self.test_fraction < 1:
            raise ConfigError("--test-fraction must be between 0 and 1")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError("--label-smoothing must be at least 0 and below 1")
        if self.group_pattern and self.group_table:
            raise ConfigError("--group-pattern and --group-table exclude each other: give one")
        try:
            re.compile(self.group_pattern)
        except re.error as error:
            raise ConfigError(f"--group-pattern {self.group_pattern!r} is no regular expression: {error}") from error

    def _check_groups(self, protocols: Collection[str]) -> None:
        if "grouped" in protocols and not (self.group_pattern or self.group_table):
            raise ConfigError(
                "--split grouped needs --group-pattern or --group-table: the images do not say which patient they are "
                "of; without such ids use --split blocked"
            )


@dataclass(frozen=True)
class TrainConfig(_FitOptions):
    """Fit the classifier on a folder per class and write a model bundle."""

    data: str
    """Folder of labelled images, one folder per class (names of both public releases): a path or s3://."""
    output: str
    """Where the model bundle goes: an empty or new folder, a path or s3://."""
    split: Protocol = "random"
    """Which images are the test: `random`, the paper's; `blocked`, runs of the capture order; `forward`, the first
    share of the capture order; `grouped`, whole patients or slides."""
    holdout: Literal["test", "validation"] = "test"
    """Part to evaluate on. `validation` sets the test images aside, unseen, and evaluates on a fifth of the training
    images: choose settings with it."""
    workers: int = 0
    """Ray Train workers that fit the head, at most two a core; 0 fits in the driver and saves some 20 s of start-up."""
    seed: int = 0
    """Of the split and the fit: the same seed gives the same metrics."""
    audit: bool = True
    """Measure what background, corners and blanked cells give away, for the report and the model card. `--no-audit`
    saves two views of each image to embed."""
    int8: bool = False
    """Put the network in 8-bit integers into the bundle too, calibrated on training images: for `jobs/score.py
    --engine openvino-int8`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _normalize(self, "data", "output")
        _at_least(self, 0, "workers", "seed")
        self._check_groups((self.split,))


@dataclass(frozen=True)
class EvaluateConfig(_FitOptions):
    """Measure a trained model on a folder of labelled images, or, with --cross-validate, the settings themselves."""

    data: str
    """Folder of labelled images, one folder per class: a path or s3://."""
    output: str
    """Where metrics and figures go: an empty or new folder, a path or s3://."""
    model: str = ""
    """Model bundle, written by jobs/train.py: a path or s3://. Not with --cross-validate."""
    cross_validate: bool = False
    """Fit heads over folds and seeds instead of measuring a model."""
    spoil: bool = False
    """Also spoil the images (blur, too much and too little light), and say how many of them are sent to review."""
    split: tuple[Protocol, ...] = ("random", "blocked", "forward")
    """Protocols to cross-validate (see jobs/train.py)."""
    folds: int = 5
    """Folds of each protocol; `forward` always has two: the first share of the capture order and the last."""
    seeds: int = 3
    """Repetitions, each with a split and a fit of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _normalize(self, "data", "output", *(["model"] if self.model else []))
        if self.cross_validate == bool(self.model):
            raise ConfigError("give either --model, to measure a model, or --cross-validate, to measure the settings")
        if self.cross_validate and self.spoil:
            raise ConfigError("--spoil goes with --model")
        if not self.cross_validate:
            kept = {
                "data",
                "output",
                "model",
                "cross_validate",
                "cache",
                "block",
                "group_pattern",
                "group_table",
                "spoil",
            }
            for each in fields(self):
                if each.name not in kept and getattr(self, each.name) != each.default:
                    raise ConfigError(f"--{each.name.replace('_', '-')} goes with --cross-validate")
        _at_least(self, 2, "folds")
        _at_least(self, 1, "seeds")
        if not self.split:
            raise ConfigError("--split names no protocol")
        self._check_groups(self.split)


@dataclass(frozen=True)
class PackConfig:
    """Pack loose images into shards; the images' bytes are kept as they are."""

    input: str
    """Folder of loose images: a path or s3://."""
    output: str
    """Where the shards go: an empty or new folder, a path or s3://."""
    format: Literal["tar", "parquet"] = "tar"
    """tar in WebDataset naming, or Parquet with the columns image_id, image and label."""
    images_per_shard: int = 512
    """Images in each shard but the last."""

    def __post_init__(self) -> None:
        _normalize(self, "input", "output")
        _at_least(self, 1, "images_per_shard")


@dataclass(frozen=True)
class ScoreConfig:
    """Score every image of an archive and publish the predictions as Parquet."""

    model: str
    """Model bundle, written by jobs/train.py: a path or s3://."""
    input: tuple[str, ...]
    """Archives: folders or single shards (tar, Parquet, loose JPEG, PNG, TIFF, BMP), paths or s3://."""
    output: str
    """Where predictions/, manifests/ and the working state go: a path or s3://."""
    max_unscored: int = 0
    """Images that may fail before the exit code says so (3)."""
    max_image_bytes: int = 64 << 20
    """Larger images are refused unread."""
    max_pixels: int = 100_000_000
    """Images of more pixels are refused undecoded."""
    max_actors: int = 0
    """Most scoring actors; 0: as many as the cluster's cores allow when the job starts. Set it on a cluster that
    grows on demand."""
    engine: Literal["auto", "openvino", "openvino-int8", "torch", "torch-cuda"] = "auto"
    """What the network runs on: `openvino`, CPUs in fp32; `openvino-int8`, about twice as fast; `torch-cuda`, GPUs in
    half precision; `torch`, the reference in fp32 on CPUs. `auto`: GPUs where the cluster has them, else `openvino`."""

    def __post_init__(self) -> None:
        if not self.input:
            raise ConfigError("--input names no archive")
        object.__setattr__(self, "input", tuple(storage.normalize(uri) for uri in self.input))
        _normalize(self, "model", "output")
        _at_least(self, 0, "max_unscored", "max_actors")
        _at_least(self, 1, "max_image_bytes", "max_pixels")


@dataclass(frozen=True)
class ExplainConfig:
    """Draw heat maps: of rows that were sent to review, or of any images."""

    model: str
    """Model bundle, written by jobs/train.py: a path or s3://."""
    output: str
    """Where the maps and explanations.json go: an empty or new folder, a path or s3://."""
    scores: str = ""
    """Output of jobs/score.py: its scored rows that this model sent to review are explained."""
    input: tuple[str, ...] = ()
    """Archives of images to explain, in place of --scores."""
    limit: int = 100
    """Most images to explain."""

    def __post_init__(self) -> None:
        if bool(self.scores) == bool(self.input):
            raise ConfigError("give either --scores, for rows sent to review, or --input, for images")
        object.__setattr__(self, "input", tuple(storage.normalize(uri) for uri in self.input))
        _normalize(self, "model", "output", *(["scores"] if self.scores else []))
        _at_least(self, 1, "limit")


@dataclass(frozen=True)
class VerifyConfig:
    """Check published predictions against their manifests."""

    output: str
    """Output of jobs/score.py: a path or s3://."""
    clear_leftovers: bool = False
    """Delete the working state of finished and abandoned runs, after the check; not while a run is under way."""

    def __post_init__(self) -> None:
        _normalize(self, "output")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure speed, start-up, and what the scoring ledger costs."""

    what: Literal["speed", "turns", "growth", "startup", "training", "ledger", "plan"]
    """`speed`: the job beside a PyTorch loop, Ray's pattern and the engine alone; `turns`: the job and the engine alone
    in turns of five seconds, for a ratio that a machine's ups and downs leave alone; `growth`: the job as archives,
    shards and nodes grow; `startup`: the time to the first row, itemised; `training`: a training run beside the bare
    forward passes of its images and views; `ledger`: scoring with and without it, in turn, on synthetic images; `plan`:
    plans of large archives."""
    output: str = "benchmarks"
    """Folder for the figures of `speed` and `growth` as JSON and as a plot."""
    data: str = ""
    """Folder of images to measure with, one folder per class; drawn ones where none is named."""
    images: int = 1280
    """Images for `speed`, `turns`, `training` and the nodes of `growth`; those of `--data` are repeated where they are
    fewer."""
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
    s3: str = ""
    """Folder on S3, `s3://`: `speed` and `turns` put the shards there too, and measure the job from there beside the
    others."""
    archive_sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Images of each archive for `growth`."""
    shard_sizes: tuple[int, ...] = (32, 128, 512, 2_048, 4_096)
    """Images in each shard for `growth`, over at least twelve shards."""
    nodes: tuple[int, ...] = (1, 2, 4)
    """Simulated nodes for `growth`, all on this machine."""
    price: float = 0.0
    """Of an hour of this machine, in any currency: `growth` then says what a million images cost."""
    units: int = 4
    """Shards of 512 synthetic images to score for `ledger`."""
    rounds: int = 3
    """Rounds to count."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "images_per_shard", "units", "rounds")
        _at_least(self, 0, "peer_images")
        _at_least(self, 32, "image_width", "image_height")
        if self.what == "turns" and self.engine == "torch-cuda":
            raise ConfigError("--what turns is for CPUs, where the job has one ceiling: use --what speed")
        if self.s3 and not self.s3.startswith("s3://"):
            raise ConfigError(f"--s3 {self.s3} is no folder on S3: it starts with s3://")
        if min((1, *self.archive_sizes, *self.shard_sizes, *self.nodes)) < 1:
            raise ConfigError("--archive-sizes, --shard-sizes and --nodes must be at least 1")
        sizes = (self.images, *(self.archive_sizes if self.what == "growth" else ()))
        if min(sizes) < 10 * self.images_per_shard:
            raise ConfigError(
                f"{min(sizes)} images must be at least ten times --images-per-shard: fewer results give no rate"
            )


@dataclass(frozen=True)
class QuickstartConfig:
    """Draw a synthetic archive, train, evaluate, pack, score: the whole path in some two minutes."""

    output: str = "quickstart"
    """Folder for everything the quickstart writes; emptied at each run."""
    images_per_class: int = 60
    """Synthetic smears to draw for each of the four classes."""

    def __post_init__(self) -> None:
        _normalize(self, "output")
        _at_least(self, 10, "images_per_class")


def _normalize(config: object, *names: str) -> None:
    for name in names:
        object.__setattr__(config, name, storage.normalize(getattr(config, name)))


def _at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}")
