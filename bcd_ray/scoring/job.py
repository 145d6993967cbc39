"""Scoring, top to bottom: load the model, list the archives, plan, score what is missing, publish."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from bcd_ray import storage, uris
from bcd_ray.archives.images import DECODER_VERSION, Limits
from bcd_ray.archives.listing import list_archive
from bcd_ray.archives.shards import is_loose
from bcd_ray.archives.suffixes import left_out_words
from bcd_ray.errors import ConfigError, JobError, NotFoundError
from bcd_ray.model.bundle import Bundle, load_bundle
from bcd_ray.model.choice import Choice, choose_engine, precision
from bcd_ray.model.quality import QUALITY_VERSION
from bcd_ray.model.triage import TRIAGE_VERSION
from bcd_ray.progress import Progress, say
from bcd_ray.runtime import actor_pool, gpu_count, library_versions, ray_session
from bcd_ray.scoring import schema
from bcd_ray.scoring.access import folders_of
from bcd_ray.scoring.attempts import start_counter
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.ledger import Ledger
from bcd_ray.scoring.plan import Unit
from bcd_ray.scoring.state import Missed, digest
from bcd_ray.scoring.worker import UNITS_AT_A_TIME, ScoringActor
from bcd_ray.storage import StoredObject

# Of Ray Data, each of one unit or several: a task costs 50 core milliseconds, 14 of them in its actor. Of shards
# of 64 small images, a task each, two cores did 0.75 times as many with a network that takes no time.
# On a GPU an image takes 0.6 core milliseconds, not 12: with tasks as small as a CPU's an H200 did 0.96 times as many.
_TASK_BYTES, _TASK_BYTES_ON_GPU = 16 << 20, 64 << 20
# For each unit that an actor has under way: with fewer, some have nothing left to do at the end.
_LEAST_TASKS, _LEAST_TASKS_ON_GPU = 8, 4
_MOST_TASKS = 4000  # its driver keeps state for every task


@dataclass(frozen=True)
class Outcome:
    """What a run did, and what holds of its inputs now, whichever run published it."""

    manifest: dict[str, Any] | None  # None where everything was published before
    shards: int
    missed: Missed
    left_out: Counter[str]  # files of the archive that are no images, by suffix


def score(config: ScoreConfig) -> Outcome:
    """Score every image of the archives that is not published yet, and publish the rows."""
    bundle = load_bundle(config.model)
    shards, left_out = list_shards(config)
    storage.check_creates(storage.join(config.output, "_work"))
    ledger = Ledger(config.output)
    for run_id in ledger.recover():
        say(f"run {run_id}: its rows were there, its manifest was not; published now")
    identity = _identity(bundle, config)
    plan = ledger.plan(shards, identity)
    if not plan.units:
        return Outcome(None, len(shards), ledger.state().missed(shards, digest(identity)), left_out)
    unfinished = ledger.unfinished(plan)
    with ray_session() if unfinished else nullcontext():
        choice = choose_engine(config.engine, gpu_count() if unfinished else 0)
        facts: dict[str, Any] = {"engine": asdict(choice), "versions": library_versions()}
        facts["configuration"] = asdict(config)
        facts |= {"left_out": left_out, "source_limit": bundle.triage.settings.get("source")}
        plan = ledger.begin(plan, facts)
        done = len(plan.units) - len(unfinished)
        say(f"run {plan.run_id}: {done:,} of {len(plan.units):,} units done before; {choice}")
        if unfinished:
            _score_units(unfinished, bundle, choice, ledger, config)
    manifest = ledger.publish(plan, config.max_undelivered)
    return Outcome(manifest, len(shards), ledger.state().missed(shards, digest(identity)), left_out)


def list_shards(config: ScoreConfig) -> tuple[list[StoredObject], Counter[str]]:
    """The shards of all inputs, each once, sorted by URI, and how many files are none, by suffix; says which.

    Raises:
        ConfigError: an input is missing or holds no shard, or the output lies inside it.
    """
    found: dict[str, StoredObject] = {}
    left_out = Counter[str]()
    output = uris.real(config.output)
    for uri in config.input:
        if f"{output}/".startswith(f"{uri}/"):
            raise ConfigError(f"--output {config.output} lies inside --input {uri}: choose another folder")
        try:
            listing = list_archive(uri)
        except NotFoundError as error:
            raise ConfigError(f"--input: {error}") from error
        if not listing.shards:
            raise ConfigError(f"--input {uri} holds no tar, zip or Parquet file, and no image")
        found |= {shard.uri: shard for shard in listing.shards}
        for folder in {shard.uri.rpartition("/")[0] for shard in listing.shards}:
            if f"{uris.real(folder)}/".startswith(f"{output}/"):
                raise ConfigError(f"--output {config.output} is reached from --input {uri} by {folder}: take it out")
        left_out += listing.left_out
    if left_out:
        say(f"{left_out.total():,} files that are neither shards nor images are left out: {left_out_words(left_out)}")
    return [found[uri] for uri in sorted(found)], left_out


def _identity(bundle: Bundle, config: ScoreConfig) -> dict[str, Any]:
    """Everything besides the shards that changes the rows."""
    return {
        "model_version": bundle.version,
        "schema_version": schema.SCHEMA_VERSION,
        "decoder_version": DECODER_VERSION,
        "quality_version": QUALITY_VERSION,
        "triage_version": TRIAGE_VERSION,
        "precision": precision(config.engine, bundle),
        "max_image_bytes": config.max_image_bytes,
        "max_pixels": config.max_pixels,
        "max_decode_seconds": config.max_decode_seconds,
    }


def _score_units(units: list[Unit], bundle: Bundle, choice: Choice, ledger: Ledger, config: ScoreConfig) -> None:
    """Each unit's rows go from the actor that made them straight to storage; only counts come back."""
    import ray

    pool = actor_pool(config.max_actors, choice.on_gpu)
    limits = Limits(config.max_image_bytes, config.max_pixels, config.max_decode_seconds, config.max_decode_bytes)
    arguments = (ray.put(bundle), folders_of(units), choice.name, ledger, limits, pool.threads, start_counter())
    counts = ray.data.from_items(
        [{"unit": unit} for unit in units], override_num_blocks=count_tasks(units, pool.most, choice.on_gpu)
    ).map_batches(
        ScoringActor,
        batch_size=1,
        fn_constructor_args=arguments,
        **pool.options(calls=UNITS_AT_A_TIME),
    )
    loose = sum(len(unit.shards) for unit in units if is_loose(unit.shards[0].uri))
    all_loose = all(is_loose(unit.shards[0].uri) for unit in units)
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
    wanted = max(size // of_task, least * UNITS_AT_A_TIME * actors)
    return min(len(units), wanted, _MOST_TASKS)
