"""The columns of the published Parquet and the statuses of a row: one place for code, tests and documentation."""

from typing import NamedTuple

import pyarrow as pa

from bcd_ray.archives.images import PASSING_STATUSES as PASSING_STATUSES
from bcd_ray.labels import CLASSES

SCHEMA_VERSION = 5


class Column(NamedTuple):
    """A published column; a null is only found where the description says so."""

    name: str
    type: pa.DataType
    unit: str
    description: str


_TEXT = pa.string()

COLUMNS = (
    Column("image_id", _TEXT, "-", "Id by place: the same image in the same shard always gets the same"),
    Column(
        "image_uri", _TEXT, "-", "Where the image is: SHARD#NAME, or the file itself; below a named root NAME:/PATH"
    ),
    Column("shard_uri", _TEXT, "-", "The tar, the Parquet file or the loose image that was read"),
    Column(
        "shard_etag", _TEXT, "-", "Version of the shard that was read: the store's etag, or size and times of a file"
    ),
    Column(
        "image_sha256",
        _TEXT,
        "hex",
        "Id by content: the digest of the encoded image; null where there were no bytes to read",
    ),
    Column("width", pa.int32(), "pixels", "Width of the original, upright if scored; null if unknown"),
    Column("height", pa.int32(), "pixels", "Height of the original, upright if scored; null if unknown"),
    Column("status", _TEXT, "-", "`scored`, or the kind of failure (table below)"),
    Column("error", _TEXT, "-", "What was wrong, in one line; null if scored, but for what is `damaged`"),
    Column("predicted_class", _TEXT, "-", "A suggestion for an expert: the most probable class; null if not scored"),
    Column("confidence", pa.float32(), "0..1", "Calibrated probability of the predicted class; null if not scored"),
    *(
        Column(f"p_{name}", pa.float32(), "0..1", f"Calibrated probability of {name}; null if not scored")
        for name in CLASSES
    ),
    Column("p_malignant", pa.float32(), "0..1", "Sum of the three malignant classes; null if not scored"),
    Column(
        "review",
        pa.bool_(),
        "-",
        "Whether an expert must look at it before anything else; true if not scored, false if withdrawn",
    ),
    Column(
        "review_reasons",
        pa.list_(pa.field("element", _TEXT)),
        "-",
        "Why (table below); an empty list where `review` is false",
    ),
    Column(
        "ood_score",
        pa.float32(),
        "-",
        "Distance of the embedding from the nearest class; above 1 is out of distribution; null if not scored",
    ),
    Column(
        "certainty",
        pa.float32(),
        "0..1",
        "Confidence, times how clearly the suggested class is the nearest: 1 less the distance to it over that to the "
        "next, 0 where another is nearer; null if not scored",
    ),
    Column("focus", pa.float32(), "log", "Variance of the Laplacian, low if blurred; null if not scored"),
    Column("brightness", pa.float32(), "0..255", "Mean value of the pixels; null if not scored"),
    Column("clipped", pa.float32(), "0..1", "Share of nearly white values in the lightest colour; null if not scored"),
    Column(
        "contrast",
        pa.float32(),
        "0..255",
        "Largest standard deviation of a colour, low if unstained or empty; null if not scored",
    ),
    Column("noise", pa.float32(), "levels", "Standard deviation of what no edge explains; null if not scored"),
    Column("colour", pa.float32(), "log", "Mean distance of red and blue from green, low if grey; null if not scored"),
    Column(
        "compression",
        pa.float32(),
        "levels",
        "What rounding can have changed, root mean square, by the quantisation table of a JPEG; 0 of other files, null "
        "if not scored",
    ),
    Column(
        "cells",
        pa.int32(),
        "-",
        "White cells found in the field, of which the largest are looked at; null if not scored, or if the model looks "
        "at whole fields",
    ),
    Column("model_version", _TEXT, "hex", "Digest of the model bundle"),
    Column("run_id", _TEXT, "-", "The run that published the row; names its manifest"),
    Column("run_number", pa.int32(), "-", "Runs of one output count up; of a shard's rows, those of its last run hold"),
    Column("scored_at", pa.timestamp("us", "UTC"), "UTC", "When the row was made"),
)

STATUSES = {
    "scored": "The image was scored",
    "withdrawn": "The image is to be forgotten (`jobs/forget.py`): the row says where it was, and nothing of it",
    "empty_file": "The file has no bytes",
    "not_an_image": "The bytes are no image of a known kind, whatever the name says",
    "corrupt_image": "The image is truncated, or too damaged to be shown",
    "too_large": "More bytes than `--max-image-bytes`; not read",
    "too_many_pixels": "More pixels than `--max-pixels`; not decoded",
    "multiple_pictures": "A multi-page or animated file, a stack in one page, or DICOM of several frames",
    "unsupported_mode": "Pixels whose range or colours nothing defines, or a kind that is not read, such as HEIC",
    "unsafe_member": "A link or path out of the archive, a pipe, a device; in tar and zip any link or name with `..`",
    "unreadable_shard": "One row for the part of a shard that cannot be read",
    "empty_shard": "One row for a tar, zip or Parquet file without images",
    "not_finite": "The network gave no finite numbers for it: look at the model and the machine",
    "crashed": "Reading, decoding or scoring it alone killed the process that did it, time and again",
    "out_of_memory": "Decoding it alone takes more memory than `--actor-memory` leaves: give more, or save it smaller",
    "timed_out": "Decoding it took more processor time than `--max-decode-seconds`",
    "interrupted": "Whoever worked at it was killed time and again, from outside or by want of memory",
    "missing": "Listed, but gone when it was read",
    "changed": "Replaced by other content between listing and reading",
    "read_error": "The storage did not deliver it, after retries",
    "resource_error": "Disk, open files or processes ran out while it was decoded",
}

PREDICTIONS = pa.schema(
    [
        pa.field(column.name, column.type, metadata={"description": column.description, "unit": column.unit})
        for column in COLUMNS
    ],
    metadata={"bcd_ray.schema_version": str(SCHEMA_VERSION)},
)
ROWS_PER_GROUP = 65_536  # of files of them

WITHDRAWN = "withdrawn"

MANIFEST_VERSION = 6
MANIFEST = {
    "manifest_version": "Version of this table",
    "run_id": "Names the run's files; made from its inputs, its model and its number",
    "run_number": "Runs of one output count up from 1 in the order of their plans; one that was given up leaves a gap",
    "started_at": "When the run was planned, UTC",
    "published_at": "When the rows were published, UTC",
    "identity": "Everything besides the shards that changes the rows: model, schema, limits, versions of what computes",
    "engine": "What the network was to run on when the run was begun, and why that",
    "versions": "Versions of this package, Python and the libraries where the run was begun",
    "made_by": "What made the rows, by count: `rows`, `engine`, `versions`; several where a run was ended elsewhere",
    "configuration": "The job's options",
    "statuses": "Rows by status",
    "undelivered": "Images that failed for the moment, by status; the next run tries them again",
    "kept_shards": "How many shards of these keep their earlier rows: a failure of the moment takes nobody's place",
    "predicted_classes": "Scored rows by suggested class",
    "review": "Rows that an expert must look at: `rows`, and by reason (a row can have several)",
    "source_limit": "Mean certainty of at least so many images under which a source (see `--source-pattern`) is "
    "of no day that was trained on; null where the model does not know",
    "sources": "How many sources were `judged`, of these how many small ones as one (`judged_together`), how many had "
    "`too_few_images` to tell even so, and how many are `unfamiliar`, with the first names; null where the model does "
    "not know",
    "reasons": "Shards by why they were to be scored: new, other content, failed for the moment before, or in what the "
    "model or settings differ from those before",
    "superseded_shards": "Shards that were published before with other content or another identity",
    "current_images": "Images of the same inputs that were published before, as they are now",
    "withdrawn": "Of a withdrawal (`jobs/forget.py`), else null: the `contents` by digest, and by id the `images` "
    "whose content is not known, that no later run takes up; and `erased`, files of earlier runs that were written "
    "anew, with what holds of each instead of what its own manifest says",
    "outputs": "The published Parquet: `uri`, `rows`, `bytes`, `sha256`",
    "features": "The published embeddings, described in the same way, and what they are of, `identity`; null where "
    "none were kept",
    "inputs": "A Parquet file with a row for each shard read, described in the same way; its columns are `uri`, "
    "`size` in bytes, `etag`, `unit_id`, `rows`, `passing_failure` where the next run is to try again, `holds`, false "
    "where earlier rows were kept, "
    "`not_scored`, the images that were not scored by status, `left_out`, its members that are no images by suffix, as "
    "JSON, `made_by`, the engine and versions, as JSON, `incomplete` where nobody knows how many images it holds, and "
    "`features`, the run that keeps its embeddings, if one does: where it is another run, the rows were made of these, "
    "and the shard was not read",
    "left_out": "By suffix, how many `files` of the archive and `members` of shards are no images, and have no row",
    "incomplete_shards": "Shards that could not be read, or not to their end: how many images they hold is unknown",
    "previous": "The manifests that came before, each by `run_id` and `sha256`: none of them can go or change unseen",
}

# What later versions brought, by version: an output is verified by what it was written as. 3 and 2 are the first known.
_COLUMNS_ADDED = {4: ("cells",), 5: ("noise", "colour", "compression")}
_MANIFEST_ADDED = {
    3: ("made_by", "undelivered", "kept_shards", "current_images", "left_out", "incomplete_shards", "previous"),
    4: ("source_limit", "sources"),
    5: ("reasons", "withdrawn"),
    6: ("features",),
}


def columns_of(version: int) -> pa.Schema:
    """Names and types of the published columns of a schema version."""
    later = {name for since, names in _COLUMNS_ADDED.items() if since > version for name in names}
    return pa.schema([(column.name, column.type) for column in COLUMNS if column.name not in later])


def manifest_keys(version: int) -> set[str]:
    """What stands in a manifest of a version."""
    return MANIFEST.keys() - {name for since, names in _MANIFEST_ADDED.items() if since > version for name in names}
