"""What packing can be told."""

from dataclasses import dataclass
from typing import Literal

from bcd_ray.config import at_least, normalize, outside


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
    max_left_out: int = 0
    """Files that are no images, by name or first bytes, before the exit code says so (3). Hidden ones, and what usually
    lies beside images (.json, .txt, .csv, .md, .sha256 ...), are counted apart."""

    def __post_init__(self) -> None:
        normalize(self, "input", "output")
        outside(self, "input")
        at_least(self, 1, "images_per_shard")
        at_least(self, 0, "max_left_out")
