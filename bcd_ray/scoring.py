"""Scoring, top to bottom: load the model, list the archives, plan, score what is missing, publish."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bcd_ray import schema, storage
from bcd_ray.archive import Entry, given_up, kind_of, read_shards
from bcd_ray.config import ScoreConfig
from bcd_ray.engine import Choice, EngineName, choose_engine, open_engine, precision
from bcd_ray.errors import ConfigError, JobError, NotFoundError, StorageError
from bcd_ray.images import DECODER_VERSION, Decoded, Limits, Pixels, Rejected, decode
from bcd_ray.isolation import MAX_ATTEMPTS, Decoder, Turns, decode_apart, die_at_once, start_counter
from bcd_ray.labels import CLASSES
from bcd_ray.ledger import Ledger, Unit
from bcd_ray.model import Bundle, load_bundle
from bcd_ray.quality import MEASURES, measure
from bcd_ray.runtime import Progress, actor_pool, gpu_count, library_versions, ray_session, say
from bcd_ray.storage import StoredObject
from bcd_ray.threads import EngineThreads, in_chunks, keep_blas_to_its_thread
from bcd_ray.triage import Triage

# Of Ray Data, each of one unit or several: a task costs 50 core milliseconds, 14 of them in its actor. Of shards
# of 64 small images, a task each, two cores did 0.75 times as many with a network that takes no time.
# On a GPU an image takes 0.6 core milliseconds, not 12: with tasks as small as a CPU's an H200 did 0.96 times as many.
_TASK_BYTES, _TASK_BYTES_ON_GPU = 16 << 20, 64 << 20
# For each unit that an actor has under way: with fewer, some have nothing left to do at the end.
_LEAST_TASKS, _LEAST_TASKS_ON_GPU = 8, 4
_MOST_TASKS = 4000  # its driver keeps state for every task
_CHUNK_BYTES = 16 << 20  # 8 JPEGs of 5 megapixels; a TIFF of 20 MB goes alone
_Floats = npt.NDArray[np.float32]
_Computed = tuple[_Floats, _Floats, _Floats]  # embeddings, logits and quality measures of some images
_UNITS_AT_A_TIME = 2  # of an actor: while one opens its shard or writes its rows, the other keeps the cores busy


@dataclass(frozen=True)
class Outcome:
    """What a run did: its manifest, or None where everything was published before."""

    manifest: dict[str, Any] | None
    shards: int


def score(config: ScoreConfig) -> Outcome:
    """Score every image of the archives that is not published yet, and publish the rows."""
    bundle = load_bundle(config.model)
    shards = list_shards(config)
    storage.check_writable(storage.join(config.output, "_work"))
    ledger = Ledger(config.output)
    for run_id in ledger.recover():
        say(f"run {run_id}: its rows were there, its manifest was not; published now")
    plan = ledger.plan(shards, _identity(bundle, config))
    if not plan.units:
        return Outcome(None, len(shards))
    unfinished = ledger.unfinished(plan)
    with ray_session() if unfinished else nullcontext():
        choice = choose_engine(config.engine, gpu_count() if unfinished else 0)
        facts = {"engine": asdict(choice), "versions": library_versions(), "configuration": asdict(config)}
        ledger.begin(plan, facts)
        done = len(plan.units) - len(unfinished)
        say(f"run {plan.run_id}: {done:,} of {len(plan.units):,} units done before; {choice}")
        if unfinished:
            _score_units(unfinished, bundle, choice, ledger, config)
    return Outcome(ledger.publish(plan), len(shards))


def list_shards(config: ScoreConfig) -> list[StoredObject]:
    """The shards of all inputs, each once, sorted by URI; says which files are none.

    Raises:
        ConfigError: an input is missing or holds no shard, or the output lies inside it.
    """
    found: dict[str, StoredObject] = {}
    others: Counter[str] = Counter()
    for uri in config.input:
        if f"{config.output}/".startswith(f"{uri}/"):
            raise ConfigError(f"--output {config.output} lies inside --input {uri}: choose another folder")
        count = len(found)
        try:
            for listed in storage.list_objects(uri):
                if kind_of(listed.uri):
                    found[listed.uri] = listed
                else:
                    others[PurePosixPath(listed.uri).suffix.lower() or "no suffix"] += 1
        except NotFoundError as error:
            raise ConfigError(f"--input: {error}") from error
        if len(found) == count and not any(name.startswith(uri) for name in found):
            raise ConfigError(f"--input {uri} holds no tar, Parquet, JPEG, PNG, TIFF or BMP file")
    if others:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(5))
        say(f"{others.total():,} files that are neither shards nor images are left out: {kinds}")
    return [found[uri] for uri in sorted(found)]


def _identity(bundle: Bundle, config: ScoreConfig) -> dict[str, Any]:
    """Everything besides the shards that changes the rows."""
    return {
        "model_version": bundle.version,
        "schema_version": schema.SCHEMA_VERSION,
        "decoder_version": DECODER_VERSION,
        "precision": precision(config.engine, bundle),
        "max_image_bytes": config.max_image_bytes,
        "max_pixels": config.max_pixels,
    }


def _score_units(units: list[Unit], bundle: Bundle, choice: Choice, ledger: Ledger, config: ScoreConfig) -> None:
    """Each unit's rows go from the actor that made them straight to storage; only counts come back."""
    import ray

    pool = actor_pool(config.max_actors, choice.on_gpu)
    limits = Limits(config.max_image_bytes, config.max_pixels)
    counts = ray.data.from_items(
        [{"unit": unit} for unit in units], override_num_blocks=count_tasks(units, pool.most, choice.on_gpu)
    ).map_batches(
        _ScoringActor,
        batch_size=1,
        fn_constructor_args=(ray.put(bundle), choice.name, ledger, limits, pool.threads, start_counter()),
        **pool.options(calls=_UNITS_AT_A_TIME),
    )
    loose = sum(len(unit.shards) for unit in units if kind_of(unit.shards[0].uri) == "image")
    all_loose = all(kind_of(unit.shards[0].uri) == "image" for unit in units)
    progress = Progress("scoring", loose if all_loose else None, units=len(units))
    errors = []
    for batch in counts.iter_batches(batch_size=1):
        errors += [str(error) for error in batch["error"] if error]
        progress.add(int(batch["rows"][0]))
    progress.finish()
    if errors:
        raise JobError(
            f"{len(errors)} of {len(units)} units could not be written ({errors[0]}): "
            "make room or mend the store; the same command does only what is missing"
        )


def count_tasks(units: Sequence[Unit], actors: int, on_gpu: bool = False) -> int:
    """How many tasks of Ray Data the units are dealt to: small units share one, but no actor is left without work."""
    size = sum(shard.size for unit in units for shard in unit.shards)
    of_task, least = (_TASK_BYTES_ON_GPU, _LEAST_TASKS_ON_GPU) if on_gpu else (_TASK_BYTES, _LEAST_TASKS)
    wanted = max(size // of_task, least * _UNITS_AT_A_TIME * actors)
    return min(len(units), wanted, _MOST_TASKS)


class UnitScorer:
    """Reads, decodes and scores units, and writes their rows; several threads may call it."""

    def __init__(
        self, bundle: Bundle, engine: EngineName, ledger: Ledger, limits: Limits, threads: int, starts: Any
    ) -> None:
        keep_blas_to_its_thread()
        self._engine = open_engine(engine, bundle, threads)
        self._version, self._triage, self._ledger, self._limits = bundle.version, bundle.triage, ledger, limits
        self._threads = EngineThreads(threads)
        self._starts, self._turns = starts, Turns(_UNITS_AT_A_TIME)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        (unit,) = batch["unit"]
        die_at_once()  # here, not when it is made: only in an actor does somebody start it again
        with self._turns.turn(alone=ray.get(self._starts.known.remote(unit.unit_id)) > 0):
            attempt = ray.get(self._starts.count.remote(unit.unit_id))
            try:
                if attempt > 1 and self._ledger.is_finished(unit):  # it died after this unit, in another
                    return _written(0)
                rows = self.rows(unit, attempt)
                self._ledger.write_unit(unit, rows)
            except StorageError as error:  # the other units may do better: the driver tells at the end
                return _written(0, str(error))
            return _written(len(rows))

    def rows(self, unit: Unit, attempt: int) -> pa.Table:
        """One row for each image of the unit, of all columns but the run's.

        Ray starts a unit again, without end, when it killed its worker. So the second attempt decodes each image in a
        process of its own, and what even then kills the worker is given up after `MAX_ATTEMPTS`.
        """
        decode_one = decode if attempt == 1 else decode_apart
        entries = given_up(unit.shards) if attempt > MAX_ATTEMPTS else read_shards(unit.shards, self._limits)

        def score_chunk(chunk: list[Entry]) -> tuple[list[_Row], list[_Computed]]:
            described = [_describe(decode_one, self._limits, entry) for entry in chunk]
            pixels = [each for _, each in described if each is not None]
            return [row for row, _ in described], [self._compute(pixels)] if pixels else []

        rows, computed = list[_Row](), list[_Computed]()
        for some, of_some in self._threads.map(
            score_chunk, in_chunks(entries, self._engine.chunk, _bytes_in, _CHUNK_BYTES)
        ):
            rows += some
            computed += of_some
        return _table(rows, computed, self._triage, self._version)

    def _compute(self, pixels: list[Pixels]) -> _Computed:
        embeddings, logits, quality = self._engine.infer(pixels)
        return embeddings, logits, measure(pixels) if quality is None else quality


class _ScoringActor(UnitScorer):
    """Ray Data actor of a `UnitScorer`."""

    def __init__(self, bundle_ref: Any, *others: Any) -> None:
        """`bundle_ref` refers to a `Bundle`: the arguments themselves are printed by Ray Data, tensors in 2.4 s."""
        import ray

        super().__init__(ray.get(bundle_ref), *others)


def _bytes_in(entry: Entry) -> int:
    return 0 if isinstance(entry.content, Rejected) else len(entry.content)


def _written(rows: int, error: str = "") -> dict[str, Any]:
    """What comes back of a unit: a batch of one row."""
    return {"rows": np.array([rows]), "error": np.array([error], object)}


def _describe(decode_one: Decoder, limits: Limits, entry: Entry) -> "tuple[_Row, Pixels | None]":
    if isinstance(entry.content, Rejected):
        return _Row(entry, None, entry.content), None
    decoded = decode_one(entry.content, limits)
    row = _Row(entry, hashlib.sha256(entry.content).hexdigest(), decoded)
    return row, None if isinstance(decoded, Rejected) else decoded.pixels


class _Row:
    """What is known of an image before it is scored; it keeps neither bytes nor pixels."""

    def __init__(self, entry: Entry, digest: str | None, result: Decoded | Rejected) -> None:
        self.image_id, self.image_uri = entry.image_id, entry.image_uri
        self.shard_uri, self.shard_etag = entry.shard_uri, entry.shard_etag
        self.image_sha256, self.width, self.height = digest, result.width, result.height
        self.status = result.status if isinstance(result, Rejected) else "scored"
        self.error = result.error if isinstance(result, Rejected) else None


def _table(rows: list[_Row], computed: list[_Computed], triage: Triage, model_version: str) -> pa.Table:
    scored = np.array([row.status == "scored" for row in rows], bool)
    quality = np.full((len(rows), len(MEASURES)), np.nan, np.float32)
    probabilities = np.full((len(rows), len(CLASSES)), np.nan)
    ood_score, certainty = np.full((2, len(rows)), np.nan)
    reasons = [["not_scored"]] * len(rows)
    if computed:
        embeddings, logits, quality[scored] = (np.concatenate(parts) for parts in zip(*computed, strict=True))
        decisions = triage.decide(embeddings, logits, quality[scored])
        probabilities[scored], ood_score[scored] = decisions.probabilities, decisions.ood_score
        certainty[scored] = decisions.certainty
        for index, given in zip(np.flatnonzero(scored), decisions.reason_names(), strict=True):
            reasons[index] = given
    predicted = [CLASSES[index] if ok else None for index, ok in zip(probabilities.argmax(1), scored, strict=True)]

    def measured(values: Any) -> pa.Array:
        return pa.array(values, pa.float32(), mask=~scored)

    names = ("image_id", "image_uri", "shard_uri", "shard_etag", "image_sha256", "width", "height", "status", "error")
    columns: dict[str, Any] = {
        name: pa.array([getattr(row, name) for row in rows], schema.PREDICTIONS.field(name).type) for name in names
    }
    columns |= {"predicted_class": pa.array(predicted, pa.string()), "confidence": measured(probabilities.max(axis=1))}
    columns |= {f"p_{name}": measured(probabilities[:, index]) for index, name in enumerate(CLASSES)}
    columns["p_malignant"] = measured(probabilities[:, 1:].sum(axis=1))
    columns["review"] = pa.array([bool(given) for given in reasons], pa.bool_())
    columns["review_reasons"] = pa.array(reasons, schema.PREDICTIONS.field("review_reasons").type)
    columns |= {"ood_score": measured(ood_score), "certainty": measured(certainty)}
    columns |= {name: measured(quality[:, index]) for index, name in enumerate(MEASURES)}
    columns["model_version"] = pa.array([model_version] * len(rows), pa.string())
    columns["scored_at"] = pa.array([datetime.now(UTC)] * len(rows), pa.timestamp("us", "UTC"))
    return pa.table(columns)
