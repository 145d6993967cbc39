"""Heat maps on demand, top to bottom: load the model, find the images, map them, check the maps, write."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bcd_ray import storage
from bcd_ray.archives.images import Decoded, Limits, Pixels
from bcd_ray.archives.isolation import decode
from bcd_ray.archives.listing import list_archive
from bcd_ray.archives.shards import Entry, digest, read_shards
from bcd_ray.errors import ConfigError, NotFoundError
from bcd_ray.evaluation.config import ExplainConfig
from bcd_ray.labels import CLASSES
from bcd_ray.ledger.roots import Roots, named, place_of
from bcd_ray.ledger.state import State
from bcd_ray.model.bundle import Bundle, load_bundle
from bcd_ray.model.heatmap import class_activation, draw, randomised, similarity
from bcd_ray.reports.results import refuse_to_replace
from bcd_ray.storage import parquet
from bcd_ray.threads import in_chunks
from bcd_ray.uris import from_printable, to_json

_OF_A_ROW = (
    *("image_id", "image_uri", "shard_uri", "image_sha256"),
    *("status", "review", "review_reasons", "model_version", "run_number"),
)


@dataclass(frozen=True)
class _Found:
    """Images to explain, and why others are left out."""

    entries: list[Entry] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    reasons: list[list[str]] = field(default_factory=list)  # for review, of scored rows
    left_out: dict[str, str] = field(default_factory=dict)
    files: Counter[str] = field(default_factory=Counter)  # and members of shards, that are no images, by suffix

    def add(self, entry: Entry, reasons: list[str]) -> None:
        decoded = decode(entry.content, Limits()) if isinstance(entry.content, bytes) else entry.content
        if isinstance(decoded, Decoded):
            self.entries.append(replace(entry, content=b""))
            self.pixels.append(decoded.pixels)
            self.reasons.append(reasons)
        else:
            self.left_out[storage.printable(entry.image_uri)] = f"{decoded.status}: {decoded.error}"


def explain(config: ExplainConfig) -> dict[str, Any]:
    """Write a heat map for each image and `explanations.json`, which is returned."""
    bundle = load_bundle(config.model)
    refuse_to_replace(config.output, "explanations.json")
    found = _sent_to_review(config, bundle) if config.scores else _given(config)
    if not found.entries:
        raise ConfigError("there is no image to explain: no row of this model was sent to review, or none can be read")
    altered = randomised(bundle.model)
    batches = [np.stack(chunk) for chunk in in_chunks(found.pixels, 8)]
    mapped = [class_activation(model, batches) for model in (bundle.model, *altered.values())]
    images: list[dict[str, Any]] = []
    for batch, maps, *altered_maps in zip(batches, *mapped, strict=True):
        logits = maps.mean(axis=(2, 3)) + bundle.model.tensors["head.bias"]
        predicted, rows = logits.argmax(axis=1), np.arange(len(batch))
        alike = {
            part: similarity(maps[rows, predicted], others[rows, predicted])
            for part, others in zip(altered, altered_maps, strict=True)
        }
        for row, label in enumerate(predicted.tolist()):
            entry, reasons = found.entries[len(images)], found.reasons[len(images)]
            name = f"{entry.image_id}.png"
            caption = f"{CLASSES[label]}; review: {', '.join(reasons)}" if reasons else CLASSES[label]
            data = draw(batch[row], maps[row, label], f"{caption}\n{entry.image_uri[-70:]}")
            storage.write_bytes(storage.join(config.output, name), data)
            images.append(
                {
                    "file": name,
                    "image_id": entry.image_id,
                    "image_uri": storage.printable(entry.image_uri),
                    "predicted_class": CLASSES[label],
                    "review_reasons": reasons,
                    "logits": logits[row].tolist(),
                    "map": maps[row, label].tolist(),
                    "similarity_to_randomised": {part: float(values[row]) for part, values in alike.items()},
                }
            )
    result = {
        "model_version": bundle.version,
        "similarity_to_randomised": {
            part: float(np.mean([each["similarity_to_randomised"][part] for each in images])) for part in altered
        },
        "images": images,
        "left_out": found.left_out,
        "files_left_out": found.files,
    }
    storage.write_bytes(storage.join(config.output, "explanations.json"), to_json(result, indent=None))
    return result


def _sent_to_review(config: ExplainConfig, bundle: Bundle) -> _Found:
    """The images of the scored rows that this model sent to review, the first `limit` by URI."""
    found, roots = _Found(), State(config.scores).roots
    for shard, rows in groupby(_rows_to_explain(config, bundle), itemgetter("shard_uri")):
        wanted = {row["image_id"]: row for row in rows}
        for entry in _entries(place_of(from_printable(shard), roots), found, roots=roots):
            row = wanted.pop(entry.image_id, None)
            if row and isinstance(entry.content, bytes) and digest(entry.content) == row["image_sha256"]:
                found.add(entry, row["review_reasons"])
            elif row:
                found.left_out[row["image_uri"]] = "changed since it was scored"
        found.left_out.update({row["image_uri"]: "gone since it was scored" for row in wanted.values()})
    return found


def _rows_to_explain(config: ExplainConfig, bundle: Bundle) -> list[dict[str, Any]]:
    """The first `limit` rows, by shard and image id; of a shard's rows, those of its last run hold."""
    try:
        listed = [each.uri for each in storage.list_objects(storage.join(config.scores, "predictions"))]
    except NotFoundError as error:
        raise ConfigError(f"--scores: {error}; give an --output of jobs/score.py") from error
    files = [uri for uri in listed if uri.endswith(".parquet")]  # people lay other files beside them
    if not files:
        raise ConfigError(f"--scores {config.scores} holds no predictions: give an --output of jobs/score.py")
    last_run, sent_to_review = dict[str, int](), []
    for uri in files:  # each is of one run; of millions of rows, only those to review are kept
        rows = parquet.read(uri, "restore it from a copy", _OF_A_ROW)
        rows = rows.filter(pc.equal(rows["model_version"], bundle.version))
        for shard in rows["shard_uri"].unique().to_pylist():
            last_run[shard] = max(last_run.get(shard, 0), rows["run_number"][0].as_py())
        sent_to_review.append(rows.filter(pc.and_(rows["review"], pc.equal(rows["status"], "scored"))))
    chosen = list[dict[str, Any]]()
    order = [("shard_uri", "ascending"), ("image_id", "ascending")]
    for batch in pa.concat_tables(sent_to_review).sort_by(order).to_batches(max_chunksize=1000):
        chosen += [row for row in batch.to_pylist() if row["run_number"] == last_run[row["shard_uri"]]]
        if len(chosen) >= config.limit:
            break
    return chosen[: config.limit]


def _given(config: ExplainConfig) -> _Found:
    """The first `limit` images of the inputs."""
    found = _Found()
    for uri in config.input:
        try:
            listing = list_archive(uri)
        except NotFoundError as error:
            raise ConfigError(f"--input: {error}") from error
        found.files.update(listing.left_out)
        for shard in listing.shards:
            for entry in _entries(shard.uri, found, found.files):
                if len(found.entries) == config.limit:
                    return found
                found.add(entry, [])
    return found


def _entries(uri: str, found: _Found, files: Counter[str] | None = None, roots: Roots | None = None) -> Iterator[Entry]:
    try:
        yield from read_shards((named(shard, roots or {}) for shard in storage.list_objects(uri)), Limits(), files)
    except NotFoundError as error:
        found.left_out[storage.printable(uri)] = str(error)
