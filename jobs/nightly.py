"""Score what is new tonight: `python jobs/nightly.py --config FILE`."""

from bcd_ray.cli import run
from bcd_ray.nights.config import NightlyConfig, with_file
from bcd_ray.nights.record import Record

record = Record()


def main(config: NightlyConfig) -> int:
    from bcd_ray.nights.job import night

    return night(config, record)


if __name__ == "__main__":
    run(NightlyConfig, main, arguments=with_file, at_end=record.tell)
