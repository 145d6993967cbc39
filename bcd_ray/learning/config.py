"""What training can be told; how heads are fitted and images split is told alike in cross-validation."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from bcd_ray.config import at_least, normalize, valid_pattern
from bcd_ray.errors import ConfigError

MOST_UNFROZEN = 4  # blocks whose maps have a side of 7
STAINED = "stain_"  # before the number of a view that `stain.restained` makes

Protocol = Literal["random", "blocked", "forward", "grouped"]


def _default_cache() -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "bcd_ray")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How heads are fitted and the images split, in training and in cross-validation."""

    epochs: int = 5
    """Passes over the training images and their augmented views."""
    learning_rate: float = 0.003
    """Step size of Adam."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes; 0 for the paper's plain cross-entropy."""
    batch_size: int = 32
    """Images a step, over all workers together."""
    representation: Literal["field", "cells", "both"] = "both"
    """What of a field the model looks at: `field`, the whole of it, as in the paper; `cells`, its largest white cells
    one by one; `both`, which is right most often on a day that training did not see."""
    augmented_views: int = 4
    """Augmented views of each training image; an epoch goes through the image itself and all of them."""
    stain: bool = False
    """Augmented views also differ in how much there is of each stain."""
    white: bool = False
    """Map the background of each field to one white before `field` looks at it; `cells` and `both` always do."""
    weights: Literal["keras", "torchvision", "efficientnet_lite0"] = "keras"
    """ImageNet weights of `field`: of MobileNetV2 the paper's, which come with the package, or torchvision's own, which
    it downloads; or those of another backbone, EfficientNet-Lite0, which come with the package too."""
    test_fraction: float = 0.3
    """Share of each class that is kept for the test; cross-validation uses it for `forward` alone."""
    block: int = 100
    """Images in a block of file numbers, at most: what `blocked` keeps whole, and what the intervals draw."""
    embargo: int = 40
    """Images left out of training on each side of a test block in file numbers, with `blocked` and `forward`."""
    group_pattern: str = ""
    """Regular expression that finds an image's group (patient, slide or sitting at the microscope) in its path; its
    first group, if any."""
    group_table: str = ""
    """CSV or Parquet that says the groups, with the columns `image` (path below --data) and that of --group-column: a
    path or s3://."""
    group_column: str = "group"
    """Column of --group-table that says the group."""
    allow_missing_classes: bool = False
    """Go on where a class has no image, whose folder may have another name than it should."""
    max_left_out: int = 0
    """Files that are no images, images whose folders name no class, and images that cannot be used, all together,
    before the exit code says so (3). Hidden ones, and what usually lies beside images (.json, .txt, .csv ...), are
    counted apart."""
    cache: str = field(default_factory=_default_cache)
    """Folder that keeps embeddings, so that the next run on the same images starts at once: a path or s3://; empty
    for none."""
    max_cache_bytes: int = 20 << 30
    """How large that folder may become; the oldest embeddings make room. A view takes 5 kB."""

    def __post_init__(self) -> None:
        normalize(self, *(name for name in ("cache", "group_table") if getattr(self, name)))
        at_least(self, 1, "epochs", "batch_size", "block")
        at_least(self, 0, "augmented_views", "embargo", "max_left_out", "max_cache_bytes")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError("--learning-rate must be above 0, and finite")
        if self.weights != "keras" and self.representation != "field":
            raise ConfigError(f"--weights {self.weights} goes with --representation field")
        if self.white and self.representation != "field":
            raise ConfigError(f"--white goes with --representation field: {self.representation} does it always")
        if self.stain and not self.augmented_views:
            raise ConfigError("--stain needs --augmented-views of 1 or more")
        if not 0 < self.test_fraction < 1:
            raise ConfigError("--test-fraction must be between 0 and 1")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError("--label-smoothing must be at least 0 and below 1")
        if self.group_pattern and self.group_table:
            raise ConfigError("--group-pattern and --group-table exclude each other: give one")
        valid_pattern(self, "group_pattern")

    @property
    def fitted_on(self) -> list[int | str]:
        """The views of each training image: itself and the augmented ones."""
        numbers = range(1, self.augmented_views + 1)
        return [0, *(f"{STAINED}{number}" if self.stain else number for number in numbers)]

    def _check_groups(self, protocols: Collection[str]) -> None:
        if "grouped" in protocols and not (self.group_pattern or self.group_table):
            raise ConfigError(
                "--split grouped needs --group-pattern or --group-table: the images do not say which patient, slide or "
                "sitting they are of; without such ids no split tells what a new day will bring"
            )


@dataclass(frozen=True)
class TrainConfig(FitOptions):
    """Fit the classifier on a folder per class and write a model bundle."""

    data: str
    """Folder of labelled images, one folder per class (names of both public releases): a path or s3://."""
    output: str
    """Where the model bundle goes: an empty or new folder, a path or s3://."""
    split: Protocol = "random"
    """Which images are the test: `random`, the paper's; `blocked`, runs of file numbers; `forward`, the first share of
    the file numbers; `grouped`, whole patients, slides or sittings. Only `grouped` says what a new day will bring."""
    holdout: Literal["test", "validation"] = "test"
    """Part to evaluate on. `validation` sets the test images aside, unseen, and evaluates on a fifth of the training
    images: choose settings with it."""
    workers: int | None = None
    """Ray Train workers that fit the head, at most two a core; 0 fits it, with the same result, in the job's own
    process. Unless you say: 2 on a cluster (`ray job submit`, RAY_ADDRESS, `ray start`), 0 on a machine alone, where it
    saves some 20 s of start-up."""
    unfreeze: int = 0
    """With `field`: train this many of the backbone's last blocks further, 4 at most, at a thirtieth of the rate and
    after a pass for the head alone; through Ray Train, over 2 workers unless --workers says otherwise."""
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
        normalize(self, "data", "output")
        at_least(self, 0, "seed", "unfreeze", *(["workers"] if self.workers is not None else []))
        self._check_groups((self.split,))
        if self.unfreeze > MOST_UNFROZEN:
            raise ConfigError(
                f"--unfreeze must be at most {MOST_UNFROZEN}: the maps of earlier blocks are four times as large"
            )
        if self.unfreeze and self.representation != "field":
            raise ConfigError("--unfreeze goes with --representation field")
        if self.int8 and (self.white or self.unfreeze):
            raise ConfigError("--int8 goes with neither --white nor --unfreeze")
