"""Scoring, top to bottom: load the model, list the archives, plan, score what is missing, publish."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from bcd_ray import storage
from bcd_ray.archives.images import DECODER_VERSION
from bcd_ray.archives.suffixes import unexpected
from bcd_ray.errors import ConfigError
from bcd_ray.ledger import roots, schema, unchanged
from bcd_ray.ledger.expiry import expire
from bcd_ray.ledger.features import identity_of
from bcd_ray.ledger.held import Held, hold_against
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.listed import Listed, refuse_other_names
from bcd_ray.ledger.manifests import identity_digest
from bcd_ray.ledger.plan import Plan
from bcd_ray.ledger.planning import make_plan
from bcd_ray.ledger.state import Missed, State
from bcd_ray.model.bundle import Bundle, load_bundle
from bcd_ray.model.choice import Choice, choose_engine, precision
from bcd_ray.model.network import NETWORK_VERSION
from bcd_ray.model.quality import QUALITY_VERSION
from bcd_ray.model.triage import TRIAGE_VERSION
from bcd_ray.progress import of_run, say
from bcd_ray.runtime import gpu_count, library_versions, ray_session
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.executing import Work, from_features, here, needs_ray, on_ray, score_units
from bcd_ray.scoring.inputs import list_shards
from bcd_ray.scoring.watch import Watch


@dataclass(frozen=True)
class Outcome:
    """What a run did, and what holds of its inputs now, whichever run published it."""

    manifest: dict[str, Any] | None  # None where everything was published before
    shards: int
    missed: Missed
    left_out: Counter[str]  # files of the archive that are no images, by suffix

    def shortfall(self, config: ScoreConfig) -> str:
        """What of the inputs has no prediction, more than is allowed, in words; empty where all is well."""
        not_scored, incomplete = self.missed.not_scored.total(), self.missed.incomplete.total()
        too_many = unexpected(self.left_out) + unexpected(self.missed.left_out)
        found = [f"{not_scored:,} images are not scored"] if not_scored > config.max_unscored else []
        found += [f"{incomplete:,} shards cannot be read to their end"] if incomplete else []
        found += [f"{too_many:,} files and members are no images"] if too_many > config.max_left_out else []
        return ", ".join(found)


def score(config: ScoreConfig, watch: Watch | None = None) -> Outcome:
    """Score every image of the archives that is not published yet, and publish the rows.

    Raises:
        DeadlineError: the deadline of `watch` came before the last unit was begun.
    """
    watch = watch or Watch()
    bundle = load_bundle(config.model)
    listed, left_out = list_shards(config)
    storage.check_creates(storage.join(config.output, "_work"))
    ledger = Ledger(config.output)
    for run_id in ledger.recover():
        say(f"run {run_id}: its rows were there, its manifest was not; published now")
    identity, features = _identity(bundle, config), _features(bundle, config)
    state = ledger.state()
    state.keep()
    held, plan = _plan(state, listed, identity, features, config)
    if not plan.units:
        return Outcome(None, held.shards, held.missed, left_out)
    refuse_to_supersede(plan, config)
    unfinished = ledger.unfinished(plan)
    to_read, kept = unfinished.to_read, unfinished.kept
    with_ray = bool(to_read) and needs_ray(to_read, config, begun=ledger.is_begun(plan))
    with ray_session() if with_ray else nullcontext():
        choice = choose_engine(config.engine, gpu_count() if with_ray else 0)
        keep = features is not None and config.keep_features
        plan = ledger.begin(plan, _facts(config, bundle, choice, left_out, features if keep else None))
        of_run(plan.run_id)
        watch.begun(plan, done := len(plan.units) - len(unfinished))
        expire(config.output, plan.run_id)
        how = "" if with_ray or not to_read else "; too little to start Ray for"
        how += f"; {len(kept):,} units of kept embeddings" if kept else ""
        say(f"run {plan.run_id}: {done:,} of {len(plan.units):,} units done before; {choice}{how}")
        work = Work(plan, to_read, bundle, choice, ledger, config, state.withdrawn, watch, keep)
        if kept:
            score_units(work._replace(units=kept), from_features)
        if to_read:
            score_units(work, on_ray if with_ray else here)
    watch.before_publish()
    manifest, after = ledger.publish(plan, config.max_undelivered), state.later()
    if after.withdrawn - state.withdrawn:
        say("images were withdrawn while this run was under way: run jobs/forget.py again, in case it took some up")
    missed = after.missed(held.waiting.tables(), identity_digest(identity))
    return Outcome(manifest, held.shards, held.missed + missed, left_out)


def look(config: ScoreConfig) -> Plan:
    """What a run would do; nothing is written, and no Ray is needed."""
    listed, _ = list_shards(config)
    bundle = load_bundle(config.model)
    state = Ledger(config.output).state()
    return _plan(state, listed, _identity(bundle, config), _features(bundle, config), config)[1]


def _facts(
    config: ScoreConfig, bundle: Bundle, choice: Choice, left_out: Counter[str], features: dict[str, Any] | None
) -> dict[str, Any]:
    """For the manifest: how the run was begun. `features` says what the embeddings that it keeps are of."""
    return {
        "engine": asdict(choice),
        "versions": library_versions(),
        "configuration": asdict(config),
        "left_out": left_out,
        "source_limit": bundle.triage.settings.get("source"),
        "features": features,
    }


def _identity(bundle: Bundle, config: ScoreConfig) -> dict[str, Any]:
    """Everything besides the shards that changes the rows."""
    return {
        "model_version": bundle.version,
        "schema_version": schema.SCHEMA_VERSION,
        "decoder_version": DECODER_VERSION,
        "network_version": NETWORK_VERSION,
        "quality_version": QUALITY_VERSION,
        "triage_version": TRIAGE_VERSION,
        "precision": precision(config.engine, bundle),
        "max_image_bytes": config.max_image_bytes,
        "max_pixels": config.max_pixels,
        "max_decode_seconds": config.max_decode_seconds,
        "actor_memory": config.actor_memory,
    }


def _features(bundle: Bundle, config: ScoreConfig) -> dict[str, Any] | None:
    """What changes embeddings; None in 8 bits, where it depends on the head which of them 32 bits made."""
    identity = _identity(bundle, config)
    return identity_of(identity, bundle.model) if identity["precision"] == "float" else None


def _plan(
    state: State, listed: Listed, identity: dict[str, Any], features: dict[str, Any] | None, config: ScoreConfig
) -> tuple[Held, Plan]:
    """What is to be done of the shards; those that only look changed are found out, and keep their rows."""
    refuse_other_names(listed, state.below, state.roots)
    if not config.dry_run:
        roots.keep(state.output, dict(listed.roots.items() - state.roots.items()))
    identified = identity_digest(identity)
    held = hold_against(state, listed, identified, config.compare_digests)
    found = unchanged.compare(state, held.waiting, identified, config.limits, config.compare_digests)
    held.settle(found.equal, found.changed)
    if found.equal:
        state.equal.add(found.equal)
        say(f"{len(found.equal):,} shards were compared and are equal to what was scored: their rows hold")
        if not config.dry_run:
            state.equal.keep(state.output, state.of)
    return held, make_plan(state, held, identity, features)


def refuse_to_supersede(plan: Plan, config: ScoreConfig) -> None:
    """ConfigError where another model or other settings would supersede more than is allowed."""
    published = plan.current_shards + plan.superseded_shards
    if config.supersede or plan.rescored_shards <= config.max_superseded * published:
        return
    why = "; ".join(reason for reason in plan.reasons if " -> " in reason)
    raise ConfigError(
        f"{plan.rescored_shards:,} of {published:,} published shards would be scored anew ({why}): "
        "give --supersede if that is meant; --dry-run says all that a run would do"
    )
