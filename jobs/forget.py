"""Withdraw images from what is published: `python jobs/forget.py --output URI --images URI-OR-ID [...]`."""

from bcd_ray import storage
from bcd_ray.cli import run
from bcd_ray.errors import EXIT_OK
from bcd_ray.scoring.config import ForgetConfig


def main(config: ForgetConfig) -> int:
    from bcd_ray.nights.table import CurrentTable
    from bcd_ray.scoring.withdrawal import forget

    done = forget(config)
    if config.dry_run:
        print(f"would withdraw {done.images:,} rows, and {done.contents:,} contents from later runs")
        return EXIT_OK
    if storage.list_names(f"{config.output}/table"):  # its earlier versions hold the rows, too
        table = CurrentTable(config.output)
        runs = table.rebuild() if config.erase else table.update()
        print(f"{len(runs):,} runs taken into {table.uri}")
    if done.manifest is None:
        print(f"nothing to do: all that is named is withdrawn from {config.output}")
        return EXIT_OK
    print(f"{done.images:,} rows are withdrawn, {done.contents:,} contents will not be taken up again")
    if config.erase:
        print(f"{done.erased:,} files of earlier runs were written anew without them")
    else:
        print("files of earlier runs still hold what was said of them: --erase writes those anew")
    print(f"manifest     {config.output}/manifests/{done.manifest['run_id']}.json")
    return EXIT_OK


if __name__ == "__main__":
    run(ForgetConfig, main)
