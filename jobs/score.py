"""Score an archive: `python jobs/score.py --model DIR --input URI [URI ...] --output URI`."""

from bcd_ray.cli import run
from bcd_ray.errors import EXIT_OK, EXIT_UNSCORED
from bcd_ray.scoring.config import ScoreConfig


def main(config: ScoreConfig) -> int:
    from bcd_ray.archives.suffixes import left_out_words, unexpected
    from bcd_ray.scoring.job import score
    from bcd_ray.scoring.ledger import unscored

    outcome = score(config)
    if outcome.manifest is None:
        print(f"nothing to do: all {outcome.shards:,} shards are published in {config.output}")
        return EXIT_OK
    statuses = outcome.manifest["statuses"]
    failed = unscored(statuses)
    print(f"{statuses.get('scored', 0):,} images scored, {failed:,} could not be scored")
    for name, count in statuses.items():
        if name != "scored":
            print(f"  {count:>9,}  {name}")
    for name, count in outcome.manifest["predicted_classes"].items():
        print(f"  {count:>9,}  suggested as {name}")
    review = outcome.manifest["review"]
    print(f"{review.get('rows', 0):,} rows need review")
    for name, count in review.items():
        if name != "rows":
            print(f"  {count:>9,}  {name}")
    left_out = outcome.manifest["left_out"]
    for kind, counts in left_out.items():
        if counts:
            print(f"{sum(counts.values()):,} {kind} left out, which are no images: {left_out_words(counts)}")
    if incomplete := outcome.manifest["incomplete_shards"]:
        print(f"{incomplete:,} shards could not be read to their end: an unknown number of images has no row")
    print(f"predictions  {outcome.manifest['outputs'][0]['uri']}")
    print(f"manifest     {config.output}/manifests/{outcome.manifest['run_id']}.json")
    too_many = sum(map(unexpected, left_out.values())) > config.max_left_out
    return EXIT_UNSCORED if failed > config.max_unscored or too_many or incomplete else EXIT_OK


if __name__ == "__main__":
    run(ScoreConfig, main)
