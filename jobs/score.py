"""Score an archive: `python jobs/score.py --model DIR --input URI [URI ...] --output URI`."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bcd_ray.cli import run
from bcd_ray.errors import EXIT_OK, EXIT_UNSCORED
from bcd_ray.scoring.config import ScoreConfig

if TYPE_CHECKING:
    from bcd_ray.ledger.plan import Plan


def main(config: ScoreConfig) -> int:
    from bcd_ray.ledger.manifests import unscored
    from bcd_ray.scoring.job import look, score

    if config.dry_run:
        _print_plan(look(config))
        return EXIT_OK
    outcome = score(config)
    failed = outcome.missed.not_scored.total()
    if outcome.manifest is None:
        print(f"nothing to do: all {outcome.shards:,} shards are published in {config.output}")
    else:
        _print_run(outcome.manifest, config.output)
    if failed and not (outcome.manifest and unscored(outcome.manifest["statuses"]) == failed):
        print(f"{failed:,} images of these inputs are not scored as they are now")
        _print_counts(sorted(outcome.missed.not_scored.items()))
    _print_left_out("files", outcome.left_out)
    _print_left_out("members", outcome.missed.left_out)
    if incomplete := outcome.missed.incomplete.total():
        print(f"{incomplete:,} shards could not be read to their end: an unknown number of images has no row")
    return EXIT_UNSCORED if outcome.shortfall(config) else EXIT_OK


def _print_plan(plan: "Plan") -> None:
    print(f"would score {plan.shards:,} shards; the rows of {plan.current_shards:,} hold")
    _print_counts(plan.reasons.items())
    if kept := plan.units.kept.numbers.shards:
        print(f"  {kept:>9,}  of these from kept embeddings, which reads no image")
    print(f"the rows of {plan.superseded_shards:,} shards would be superseded")
    if plan.rescored_shards:
        print(f"  {plan.rescored_shards:>9,}  of them by another model or other settings: see --supersede")


def _print_run(manifest: dict[str, Any], output: str) -> None:
    statuses = dict(manifest["statuses"])
    withdrawn = statuses.pop("withdrawn", 0)
    print(f"{statuses.pop('scored', 0):,} images scored, {sum(statuses.values()):,} could not be scored")
    if withdrawn:
        print(f"{withdrawn:,} images were withdrawn, and not looked at")
    _print_counts(statuses.items())
    if kept := manifest["kept_shards"]:
        print(f"{kept:,} shards could not be read this time: their earlier rows hold")
    _print_counts((f"suggested as {name}", count) for name, count in manifest["predicted_classes"].items())
    review = dict(manifest["review"])
    print(f"{review.pop('rows', 0):,} rows need review")
    _print_counts(review.items())
    _print_sources(manifest["sources"])
    print(f"predictions  {manifest['outputs'][0]['uri']}")
    print(f"manifest     {output}/manifests/{manifest['run_id']}.json")


def _print_sources(sources: Mapping[str, Any] | None) -> None:
    if not sources:
        return
    if unfamiliar := sources["unfamiliar"]:
        names = ", ".join(sources["unfamiliar_first"][:3])
        print(f"{unfamiliar:,} of {sources['judged']:,} sources are like no day that was trained on, such as {names}")
        print("  all of their images need review: label some of them and train again, with the source as a group")
    if together := sources["judged_together"]:
        print(f"{together:,} sources of few images were judged together, as one")
    if few := sources["too_few_images"]:
        print(f"{few:,} sources have too few images to tell whether their day was trained on: see --small-sources")


def _print_left_out(kind: str, counts: Mapping[str, int]) -> None:
    from bcd_ray.archives.suffixes import left_out_words

    if counts:
        print(f"{sum(counts.values()):,} {kind} left out, which are no images: {left_out_words(counts)}")


def _print_counts(counts: Iterable[tuple[str, int]]) -> None:
    for name, count in counts:
        print(f"  {count:>9,}  {name}")


if __name__ == "__main__":
    run(ScoreConfig, main)
