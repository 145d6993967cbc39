"""Checks that every job's options share; the options themselves stand in each room's own `config`.

Configurations check themselves when made, before anything is imported, read or started; their field comments are the
command line's help.
"""

import math
import re
from typing import Any

from bcd_ray import uris
from bcd_ray.errors import ConfigError


def normalize(config: object, *names: str) -> None:
    for name in names:
        object.__setattr__(config, name, uris.normalize(getattr(config, name)))


def outside(config: Any, *names: str) -> None:
    """ConfigError where `output` lies inside what is read: the next run would read what this one writes."""
    output = f"{uris.real(config.output)}/"
    for name in names:
        given = getattr(config, name)
        for uri in (given,) if isinstance(given, str) else given:
            if output.startswith(f"{uris.real(uri)}/"):
                raise ConfigError(f"--output {config.output} lies inside --{name} {uri}: choose another folder")


def at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        if not least <= getattr(config, name) < math.inf:  # of no number nothing is true
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, and finite")


def shares(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} is a share: give 0 to 1")


def valid_pattern(config: object, *names: str) -> None:
    for name in names:
        pattern = getattr(config, name)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"--{name.replace('_', '-')} {pattern!r} is no regular expression: {error}") from error
