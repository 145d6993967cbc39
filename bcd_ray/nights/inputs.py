"""Tonight's input: which folders the templates with a date stand for, and whether what is expected is there."""

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import date, timedelta

from bcd_ray.archives.listing import walk_archive
from bcd_ray.archives.shards import kind_of
from bcd_ray.errors import BcdRayError, MissedError, NotFoundError
from bcd_ray.ledger.roots import roots_of
from bcd_ray.nights.config import NightlyConfig, of_day
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.inputs import entries_of


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
    found, lacking = [], []
    for uri in config.input:
        if "{" not in uri:
            found.append(uri)
            continue
        folders = _folders(uri, config)
        there = [folder for folder in dict.fromkeys(folders) if _holds_something(folder)]
        found += there
        if folders[0] not in there:
            lacking.append(folders[0])
    if lacking and config.expect:
        raise MissedError(f"--expect: nothing is at {', '.join(lacking)}: look for the delivery, then the same command")
    return Inputs(tuple(found), tuple(lacking))


def as_scored(config: NightlyConfig, inputs: Inputs) -> ScoreConfig:
    """What scoring is told."""
    options = {field.name: getattr(config, field.name) for field in fields(ScoreConfig)}
    return ScoreConfig(**options | {"input": inputs.uris})


def places(config: NightlyConfig) -> list[str]:
    """What names of files come behind: the folders of the inputs, and the names of `--root`."""
    folders = [folder for uri in config.input for folder in (_folders(uri, config) if "{" in uri else [uri])]
    files = [folder for folder in folders if kind_of(folder)]
    below = {f"{folder}/" for folder in folders} | {f"{uri.rpartition('/')[0]}/" for uri in files}
    if config.input_list:
        with suppress(BcdRayError):  # told when it is read
            common = os.path.commonprefix(entries_of(config.input_list))  # noqa: RUF071 (cut at a slash)
            below.add(f"{common.rpartition('/')[0]}/")
    return sorted(below, key=len, reverse=True) + [f"{name}:" for name in roots_of(config.root)]


def _folders(template: str, config: NightlyConfig) -> list[str]:
    """Tonight's folder, and those of the days before."""
    tonight = date.fromisoformat(config.date)
    return [of_day(template, tonight - timedelta(days)) for days in range(config.days)]


def _holds_something(folder: str) -> bool:
    try:
        return any(True for _ in walk_archive(folder, Counter()))
    except NotFoundError:
        return False
