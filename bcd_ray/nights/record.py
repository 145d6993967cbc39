"""What a night ends with: the last line of standard output, one JSON object for programs."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from bcd_ray.progress import say, shown

RECORD_VERSION = 1


@dataclass(frozen=True)
class Estimate:
    """What a run would do, and how long it would take at the rates of earlier runs; null where there was none."""

    shards: int
    """Shards, or loose images, that are to be scored."""
    current_shards: int
    """Those whose rows hold."""
    kept_shards: int
    """Of those that are to be scored, those whose embeddings are kept: they are not read."""
    bytes: int
    """Size of the shards that are to be read."""
    images: int | None = None
    """Images to be scored, if those of the shards to be read are as large as those of that run."""
    seconds: float | None = None
    """From the start of the run to its publication; where no run before was of kept embeddings, at most so long."""
    cost: float | None = None
    """By `--hourly-cost`."""


@dataclass
class Record:
    """The last line of standard output, whatever became of the night."""

    record_version: int = RECORD_VERSION
    """Version of this object."""
    date: str | None = None
    """Day of the night; null where the command was not understood."""
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When the process began, UTC."""
    seconds: float = 0.0
    """From then to the end."""
    exit_code: int = 0
    """0 done, or nothing new; 1 failed; 2 configuration; 3 published, with images that are not scored; 4 stopped at the
    deadline; 5 what was expected is not there; 6 another run holds the output; 7 published, and a limit is passed; 129,
    130 and 143 ended by a terminal that closed, Ctrl-C or SIGTERM."""
    reason: str = ""
    """Why the exit code is that, in words."""
    run_id: str | None = None
    """The run that was begun, published or not; null where there was none."""
    run_number: int | None = None
    """Of the run that was published."""
    units: int = 0
    """Units of the run."""
    units_done: int = 0
    """Units whose rows are there, of earlier attempts at the same run too."""
    images: int = 0
    """Images that this process had made rows of."""
    images_per_second: float = 0.0
    """These, over the seconds from start to end."""
    read_bytes: int = 0
    """Bytes of the shards of these images."""
    retries: int = 0
    """Requests to the store that were tried again."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Published rows of the run, by status."""
    classes: dict[str, int] = field(default_factory=dict)
    """Published rows of the run that are scored, by suggested class."""
    review_share: float | None = None
    """Share of the published rows of the run that need review; null where none was published."""
    drift: dict[str, float] = field(default_factory=dict)
    """Means of `certainty`, `ood_score` and the quality measures over the scored rows of the run, and of its sources
    the share that is like no day that was trained on, `unfamiliar_sources`."""
    new_shards: int = 0
    """Shards of the run of which nothing was published before."""
    superseded_shards: int = 0
    """Shards of the run that were published before with other content, or by another model."""
    not_scored: dict[str, int] = field(default_factory=dict)
    """Images of tonight's inputs without a prediction as they are now, by status, whichever run found them."""
    manifest: str | None = None
    """Manifest of the run that was published."""
    estimate: Estimate | None = None
    """Of `--dry-run`: what a run would do now; null for a run."""

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self.fill: Callable[[Record], None] = lambda record: None  # puts in what is known by now
        self.at_end: Callable[[Record], None] = lambda record: None  # called before the line is printed

    def tell(self, code: int, reason: str) -> None:
        """End the night with its exit code: print the line."""
        self.fill(self)
        self.exit_code, self.reason = code, shown(reason or self.reason)
        self.seconds = round(time.monotonic() - self._began, 1)
        self.images_per_second = round(self.images / self.seconds, 1) if self.seconds else 0.0
        self.at_end(self)
        if not reason:  # of an error, which is said
            say(f"{self.reason} (exit code {code})")
        print(json.dumps(asdict(self)), flush=True)
