"""A night, top to bottom: take the output, find tonight's input, score it until the deadline, judge what came of it."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any

from bcd_ray import progress, storage
from bcd_ray.errors import EXIT_ALARM, EXIT_OK, EXIT_UNSCORED, ConfigError, JobError, MissedError, NoInputError
from bcd_ray.ledger.manifests import read_manifests
from bcd_ray.nights import metrics
from bcd_ray.nights.config import NightlyConfig, day_of, deadline_at
from bcd_ray.nights.drift import drift
from bcd_ray.nights.estimate import estimate, words_of
from bcd_ray.nights.inputs import Inputs, as_scored, inputs_of, places
from bcd_ray.nights.lease import Lease
from bcd_ray.nights.record import Record
from bcd_ray.nights.table import CurrentTable
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.job import Outcome, look, refuse_to_supersede, score
from bcd_ray.scoring.watch import Watch

_UNDER_WAY_S = 600  # for what was begun before the deadline


def night(config: NightlyConfig, record: Record) -> int:
    """Score what is new tonight, and fill in the record; returns the exit code.

    Raises:
        DeadlineError: the deadline came before the end.
        HeldError: another run holds the output, or took it over.
        MissedError: what was expected is not there.
    """
    record.date = config.date
    progress.configure(config.progress, () if config.log_names else places(config))
    if config.dry_run:
        return _looked(config, record)
    if config.metrics:
        record.at_end = partial(metrics.write, config.metrics)
    deadline = deadline_at(config.deadline, datetime.now())
    watch = Watch(deadline=deadline.timestamp()) if deadline else Watch()
    storage.check_creates(storage.join(config.output, "_work"))
    record.fill = partial(_fill, watch)
    table = CurrentTable(config.output) if config.table == "delta" else None
    with Lease(config.output).held() as lease, _given_up_at(watch.deadline + _UNDER_WAY_S) as calm:

        def before_publish() -> None:
            calm()
            lease.check()

        watch.before_publish = before_publish
        if table:
            _mend(table)
        code = _scored(config, watch, record)
        if table:
            table.update()
        return code


def _fill(watch: Watch, record: Record) -> None:
    """Put into the record how far the run came, whatever ends it."""
    for name in ("units", "units_done", "images", "read_bytes", "new_shards"):
        setattr(record, name, getattr(watch, name))
    record.run_id, record.retries = watch.run_id or None, watch.retries + storage.take_retries()


def _mend(table: CurrentTable) -> None:
    """Take in what a night published that died before it did; what is wrong with the table keeps no image from rows."""
    try:
        table.update()
    except JobError as error:
        progress.say(str(error))


def _looked(config: NightlyConfig, record: Record) -> int:
    """What a run would do, in the record; nothing is written, no lease is taken and no Ray started."""
    inputs = inputs_of(config)
    if not inputs.uris and not config.input_list:
        record.reason = _nothing_at(inputs)
        return EXIT_OK
    plan = look(scoring := as_scored(config, inputs))
    record.estimate = estimate(plan, config.output, config.hourly_cost)
    record.reason = words_of(record.estimate)
    try:
        refuse_to_supersede(plan, scoring)
    except ConfigError as error:
        record.reason += f"; but {error}"
    return EXIT_OK


def _scored(config: NightlyConfig, watch: Watch, record: Record) -> int:
    inputs = inputs_of(config)
    if not inputs.uris and not config.input_list:
        record.reason = _nothing_at(inputs)
        return EXIT_OK
    scoring = as_scored(config, inputs)
    try:
        outcome = score(scoring, watch)
    except NoInputError as error:
        if config.expect:
            raise MissedError(f"--expect: {error}") from error
        raise
    dated = any("{" in uri for uri in config.input)
    if config.expect and not dated and not outcome.manifest and not _published_on(config):
        raise MissedError(
            f"--expect: nothing is new in {', '.join(config.input) or config.input_list} on {config.date}"
        )
    return _judged(outcome, config, scoring, record)


def _nothing_at(inputs: Inputs) -> str:
    return f"nothing is at {', '.join(inputs.without_tonight)}, nor of the days before"


def _published_on(config: NightlyConfig) -> bool:
    """Whether a run of this day is published: a second run of the same night finds nothing new, and misses nothing."""
    times = [datetime.fromisoformat(run.content["published_at"]) for run in read_manifests(config.output)]
    ends = [each.astimezone().replace(tzinfo=None) for each in times]
    return config.date in {day_of(name, end).isoformat() for end in ends for name in ("tonight", "today")}


def _judged(outcome: Outcome, config: NightlyConfig, scoring: ScoreConfig, record: Record) -> int:
    """The exit code of a night that came to its end, with the reason and what was published in the record."""
    record.not_scored = dict(sorted(outcome.missed.not_scored.items()))
    shortfall, alarms = outcome.shortfall(scoring), list[str]()
    if manifest := outcome.manifest:
        record.run_id, record.run_number = manifest["run_id"], manifest["run_number"]
        record.manifest = storage.join(config.output, "manifests", f"{manifest['run_id']}.json")
        record.statuses, record.classes = manifest["statuses"], manifest["predicted_classes"]
        record.superseded_shards = manifest["superseded_shards"]
        record.drift = drift(config.output, manifest)
        if rows := sum(record.statuses.values()):
            record.review_share = round(manifest["review"].get("rows", 0) / rows, 4)
        alarms = list(_alarms(manifest, record.review_share or 0.0, config))
    record.reason = "; ".join([*alarms, *filter(None, [shortfall])]) or ("published" if manifest else "nothing new")
    return EXIT_ALARM if alarms else EXIT_UNSCORED if shortfall else EXIT_OK


def _alarms(manifest: dict[str, Any], review_share: float, config: NightlyConfig) -> Iterator[str]:
    """Which limits the published rows pass, in words."""
    if review_share > config.max_review:
        yield f"{review_share:.1%} of the rows need review, more than --max-review {config.max_review:g}"
    if sources := manifest["sources"]:
        judged, unfamiliar = sources["judged"], sources["unfamiliar"]
        if unfamiliar > config.max_unfamiliar * judged:
            yield (
                f"{unfamiliar:,} of {judged:,} sources are like no day that was trained on, more than "
                f"--max-unfamiliar {config.max_unfamiliar:g}"
            )


@contextmanager
def _given_up_at(when: float) -> Iterator[Callable[[], None]]:
    """Let `cli.run` break the night off at a time, unless what is yielded is called before."""

    def calm() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    if not math.isinf(when) and signal.getsignal(signal.SIGALRM) != signal.SIG_DFL:  # nobody would hear it
        signal.setitimer(signal.ITIMER_REAL, max(0.001, when - time.time()))
    try:
        yield calm
    finally:
        calm()
