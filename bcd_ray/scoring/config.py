"""What scoring and its verification can be told."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bcd_ray import uris
from bcd_ray.archives.memory import share_out
from bcd_ray.config import at_least, normalize, valid_pattern
from bcd_ray.errors import ConfigError
from bcd_ray.ledger.roots import roots_of

if TYPE_CHECKING:
    from bcd_ray.archives.images import Limits


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score every image of an archive and publish the predictions as Parquet."""

    model: str
    """Model bundle, written by jobs/train.py: a path or s3://."""
    input: tuple[str, ...] = ()
    """Archives: folders or single shards (tar, zip, Parquet, loose images), paths or s3://."""
    input_list: str = ""
    """A file that names more of them: a text with one in each line, or CSV or Parquet with a column `uri`. A file that
    it names and that is gone has a row that says so."""
    output: str
    """Where predictions/, manifests/ and the working state go: a path or s3://."""
    root: tuple[str, ...] = ()
    """NAME=URI: images below the URI are called NAME:/PATH in rows and ids, and keep both when the archive moves and
    the same name is given another URI."""
    source_pattern: str = ""
    """Regular expression searched in an image's URI: its first group, or else all it matches, names the source of the
    image, such as a slide or a scanner. Without it, and where it finds nothing, a shard or folder is one."""
    small_sources: Literal["review", "pass"] = "review"
    """What becomes of images of sources that, all together, have too few in a run to tell whether their day was trained
    on. `pass` judges them image by image alone: for labs whose model knows their days."""
    max_unscored: int = 0
    """Images that may fail before the exit code says so (3). A shard that cannot be read to its end always says so."""
    max_left_out: int = 0
    """Files and members of shards that are no images, by name or first bytes, before the exit code says so (3). Hidden
    ones, and what usually lies beside images (.json, .cls, .txt, .csv, .md, .sha256 ...), are counted apart."""
    max_undelivered: float = 0.5
    """Share of the images that may fail for the moment (`missing`, `changed`, `read_error`, `resource_error`,
    `interrupted`); where more do, nothing is published."""
    max_superseded: float = 0.1
    """Share of the published shards of these inputs that another model or other settings may score anew, unasked."""
    supersede: bool = False
    """Score anew whatever another model or other settings change, also where that is more than `--max-superseded`."""
    dry_run: bool = False
    """Say what a run would do, and why; nothing is scored and nothing written."""
    compare_digests: bool = False
    """Read all published shards, and find those whose content changed while size and times stayed. Without it, only
    those of other times are read, and what is equal keeps its rows."""
    max_image_bytes: int = 64 << 20
    """Larger images are refused unread."""
    max_pixels: int = 100_000_000
    """Images of more pixels are refused undecoded."""
    max_decode_seconds: float = 30.0
    """Processor time for decoding an image, after which it is given up."""
    actor_memory: int = 4 << 30
    """Memory, in bytes, that an actor and its helpers may take together, whatever is in the archive. A machine has one
    actor, a large one an actor for each eight cores."""
    max_actors: int = 0
    """Most scoring actors on a cluster that grows; 0: as many as its cores allow, also those of nodes that join."""
    keep_features: bool = True
    """Keep the embeddings of scored images in features/, 2 kB each: another model of the same backbone then scores
    them without reading an image. With `openvino-int8` none are kept."""
    small_run_bytes: int = 64 << 20
    """Shards of fewer bytes together are scored in the job's own process, where it would have to start Ray; 0: none."""
    engine: Literal["auto", "openvino", "openvino-int8", "torch", "torch-cuda"] = "auto"
    """What the network runs on: `openvino`, CPUs in fp32; `openvino-int8`, about twice as fast; `torch-cuda`, GPUs in
    half precision; `torch`, the reference in fp32 on CPUs. `auto`: GPUs where the cluster has them, else `openvino`."""

    def __post_init__(self) -> None:
        if not self.input and not self.input_list:
            raise ConfigError("nothing to score: give --input or --input-list")
        if self.input_list:
            normalize(self, "input_list")
        object.__setattr__(self, "input", tuple(self.spelled(uri) for uri in self.input))
        object.__setattr__(self, "root", tuple("=".join(each) for each in roots_of(self.root).items()))
        normalize(self, "model", "output")
        at_least(self, 0, "max_unscored", "max_left_out", "max_undelivered", "max_superseded", "max_actors")
        at_least(self, 0, "small_run_bytes")
        valid_pattern(self, "source_pattern")
        at_least(self, 1, "max_image_bytes", "max_pixels", "max_decode_seconds")
        share_out(self.actor_memory, self.max_image_bytes, self.max_pixels)

    @property
    def limits(self) -> "Limits":
        """What an image and its actor must keep."""
        from bcd_ray.archives.images import Limits

        shares = share_out(self.actor_memory, self.max_image_bytes, self.max_pixels)
        return Limits(self.max_image_bytes, self.max_pixels, self.max_decode_seconds, *shares)

    @staticmethod
    def spelled(uri: str) -> str:
        """The one spelling of an input."""
        return uris.real(uris.normalize(uri))


@dataclass(frozen=True)
class VerifyConfig:
    """Check published predictions against their manifests."""

    output: str
    """Output of jobs/score.py: a path or s3://."""
    clear_leftovers: bool = False
    """Delete the working state of finished and abandoned runs, after the check; not while a run is under way."""
    rebuild_table: bool = False
    """Delete the Delta table of the rows that hold with all its versions, and make it anew from the manifests."""

    def __post_init__(self) -> None:
        normalize(self, "output")


@dataclass(frozen=True)
class ForgetConfig:
    """Withdraw images from what is published, for good, and see that no later run takes them up again."""

    output: str
    """Output of jobs/score.py: a path or s3://."""
    images: tuple[str, ...] = ()
    """Images by URI (a folder or a shard with all that is in it), by `image_id`, or by `image_sha256`."""
    list: str = ""
    """A file with more of them, one in each line: a path or s3://."""
    erase: bool = False
    """Also write the files of earlier runs anew, without what was said of these images; not while a run is on."""
    dry_run: bool = False
    """Say how many rows would be withdrawn; nothing is written."""
    moved: bool = False
    """Withdraw only the rows under these names, and let the same contents be scored elsewhere: for an archive that was
    moved or packed anew."""

    def __post_init__(self) -> None:
        normalize(self, "output")
        if self.list:
            normalize(self, "list")
