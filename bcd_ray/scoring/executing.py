"""Where the units of a run are scored: by actors of Ray Data or, where they are small, in the job's own process."""

import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bcd_ray.archives.memory import UNITS_AT_A_TIME
from bcd_ray.errors import DeadlineError, JobError, StorageError
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.plan import Handed, Plan
from bcd_ray.ledger.roots import roots_of
from bcd_ray.ledger.units import Unit, Units
from bcd_ray.model.bundle import Bundle
from bcd_ray.model.choice import Choice
from bcd_ray.progress import Progress
from bcd_ray.runtime import actor_pool, library_versions, own_cores, ray_runs
from bcd_ray.scoring.access import folders_of
from bcd_ray.scoring.attempts import APART, start_counter
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.kept import Kept
from bcd_ray.scoring.rescoring import rescore
from bcd_ray.scoring.watch import Watch
from bcd_ray.scoring.worker import Scored, ScoringActor, UnitScorer
from bcd_ray.threads import keep_blas_to_its_thread, map_ahead

# Of Ray Data, each of one unit or several: a task costs 50 core milliseconds, 14 of them in its actor. Of shards
# of 64 small images, a task each, two cores did 0.75 times as many with a network that takes no time.
# On a GPU an image takes 0.6 core milliseconds, not 12: with tasks as small as a CPU's an H200 did 0.96 times as many.
_TASK_BYTES, _TASK_BYTES_ON_GPU = 16 << 20, 64 << 20
# For each unit that an actor has under way: with fewer, some have nothing left to do at the end.
_LEAST_TASKS, _LEAST_TASKS_ON_GPU = 8, 4
_MOST_TASKS = 4000  # its driver keeps state for every task


class Work(NamedTuple):
    """What there is to do, and with what."""

    plan: Plan
    units: Units  # of it, that are to be done
    bundle: Bundle
    choice: Choice
    ledger: Ledger
    config: ScoreConfig
    withdrawn: Collection[str]  # contents and images that are not to be looked at
    watch: Watch
    keep: bool  # embeddings beside the rows


Done = Iterator[Scored]  # of each unit


def needs_ray(units: Units, config: ScoreConfig, begun: bool) -> bool:
    """Whether actors are to score these units, which were `begun` by an earlier attempt or not.

    To start Ray and end it takes as long as to score some thousand images. But who was killed in the job's own process
    killed the job, so what was begun before is for actors, which are begun again.
    """
    small = units.numbers.size < config.small_run_bytes
    gpu = config.engine == "torch-cuda" or (config.engine == "auto" and any(Path("/dev").glob("nvidia[0-9]*")))
    return begun or not small or gpu or ray_runs()


def score_units(work: Work, executor: Callable[[Work], Done]) -> None:
    """Score units and write their rows, `on_ray`, `here` or `from_features`.

    Raises:
        DeadlineError: the deadline came before the last unit was begun.
        JobError: some units could not be written.
    """
    units, watch = work.units, work.watch
    shards, loose = units.numbers.shards, units.numbers.loose
    progress = Progress("scoring", loose if loose == shards else None, units=len(units))
    errors, left = list[str](), 0
    for scored in executor(work):
        errors += [scored.error] if scored.error else []
        watch.units_done += scored.begun and not scored.error
        watch.images += scored.rows
        watch.read_bytes += scored.read_bytes
        watch.retries += scored.retries
        left += not scored.begun
        if scored.begun:
            progress.add(scored.rows)
    progress.finish()
    if left:
        raise DeadlineError(f"stopped at the deadline, {left:,} of {len(units):,} units to go: the next run goes on")
    if errors:
        raise JobError(
            f"{len(errors)} of {len(units)} units could not be written ({errors[0]}): "
            "make room or mend the store; the same command does only what is missing"
        )


def on_ray(work: Work) -> Done:
    """Actors read in the plan what their units are, and write their rows to storage; only counts come back."""
    import ray

    plan, units, bundle, choice, ledger, config, withdrawn, watch, keep = work
    pool, starts = actor_pool(config.max_actors, choice.on_gpu), start_counter(watch.deadline)
    how = (choice.name, ledger, config.limits, pool.threads, starts, withdrawn, keep)
    handed = Handed(ledger.plan_uri(plan.run_id), roots_of(config.root))
    share = pool.most > 1 and not choice.on_gpu  # there asking would cost an image 5 % of its time
    arguments = (ray.put(bundle), folders_of(units), handed, share, *how)
    tasks = count_tasks(units, pool.most, choice.on_gpu)
    places = [place._asdict() for place in plan.units.places(units)]
    counts = ray.data.from_items(places, override_num_blocks=tasks).map_batches(
        ScoringActor,
        batch_size=1,
        fn_constructor_args=arguments,
        **pool.options(calls=UNITS_AT_A_TIME, tasks=tasks),
    )
    counts.set_name(watch.run_id)  # which Ray's own metrics then carry
    for batch in counts.iter_batches(batch_size=1):
        yield Scored(**{name: values.tolist()[0] for name, values in batch.items()})


def here(work: Work) -> Done:
    """Each unit in this process, and every image decoded in one apart: an image must not end the job."""
    how = (work.config.limits, own_cores(), None, work.withdrawn, work.keep)
    scorer = UnitScorer(work.bundle, work.choice.name, work.ledger, *how)
    for unit in work.units:
        if time.time() >= work.watch.deadline:
            yield Scored(begun=False)
            continue
        try:
            yield Scored(scorer.score(unit, APART), read_bytes=unit.size)
        except StorageError as error:  # the other units may do better
            yield Scored(error=str(error))


def from_features(work: Work) -> Done:
    """Each unit of which embeddings are kept, in threads of this process: no image is read, and no network runs."""
    units, threads = work.units, own_cores()
    made_by = {"engine": "features", "versions": library_versions()}
    with keep_blas_to_its_thread(), Kept(work.ledger.output, units) as kept, ThreadPoolExecutor(threads) as pool:

        def score(unit: Unit) -> Scored:
            if time.time() >= work.watch.deadline:
                return Scored(begun=False)
            try:
                return Scored(rescore(unit, kept, work.bundle, work.ledger, work.withdrawn, made_by))
            except StorageError as error:  # the other units may do better
                return Scored(error=str(error))

        yield from map_ahead(pool, score, units, ahead=2 * threads)


def count_tasks(units: Units, actors: int, on_gpu: bool = False) -> int:
    """How many tasks of Ray Data the units are dealt to: small units share one, but no actor is left without work."""
    of_task, least = (_TASK_BYTES_ON_GPU, _LEAST_TASKS_ON_GPU) if on_gpu else (_TASK_BYTES, _LEAST_TASKS)
    wanted = max(units.numbers.size // of_task, least * UNITS_AT_A_TIME * actors)
    return min(len(units), wanted, _MOST_TASKS)
