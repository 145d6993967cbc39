"""Tonight's input: which folders the templates with a date stand for, and whether what is expected is there."""

from dataclasses import dataclass
from datetime import date, timedelta

from bcd_ray.archives.listing import list_archive
from bcd_ray.errors import MissedError, NotFoundError
from bcd_ray.nights.config import NightlyConfig, of_day


@dataclass(frozen=True)
class Inputs:
    """What a night is to score."""

    uris: tuple[str, ...]
    without_tonight: tuple[str, ...]  # inputs with a date that have nothing of this day


def inputs_of(config: NightlyConfig) -> Inputs:
    """The folders of all inputs; of those with a date each day's that holds a shard or an image.

    Raises:
        MissedError: tonight's is expected, and is not among them.
    """
    tonight = date.fromisoformat(config.date)
    found, lacking = [], []
    for uri in config.input:
        if "{" not in uri:
            found.append(uri)
            continue
        folders = [of_day(uri, tonight - timedelta(days)) for days in range(config.days)]
        there = [folder for folder in dict.fromkeys(folders) if _holds_something(folder)]
        found += there
        if folders[0] not in there:
            lacking.append(folders[0])
    if lacking and config.expect:
        raise MissedError(f"--expect: nothing is at {', '.join(lacking)}: look for the delivery, then the same command")
    return Inputs(tuple(found), tuple(lacking))


def _holds_something(folder: str) -> bool:
    try:
        return bool(list_archive(folder).shards)
    except NotFoundError:
        return False
