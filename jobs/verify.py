"""Check what was published: `python jobs/verify.py --output URI`."""

from bcd_ray import storage
from bcd_ray.cli import run
from bcd_ray.errors import EXIT_FAILED, EXIT_OK
from bcd_ray.progress import one_line
from bcd_ray.scoring.config import VerifyConfig


def main(config: VerifyConfig) -> int:
    from bcd_ray.ledger.verification import clear_leftovers, verify
    from bcd_ray.nights.table import CurrentTable

    problems = verify(config.output)
    if config.rebuild_table and not problems:
        print(f"{len(CurrentTable(config.output).rebuild()):,} runs taken into {config.output}/table")
    if not problems and storage.list_names(storage.join(config.output, "table")):
        problems += CurrentTable(config.output).differences()
    for problem in problems:
        print(one_line(problem))
    if problems:
        return EXIT_FAILED
    print(f"all that is published in {config.output} is as its manifests say")
    if config.clear_leftovers:
        print(f"{clear_leftovers(config.output):,} leftovers deleted")
    return EXIT_OK


if __name__ == "__main__":
    run(VerifyConfig, main)
