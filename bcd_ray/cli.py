"""From a command line to a configuration, and from an outcome to an exit code."""

import gc
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from bcd_ray.errors import EXIT_FAILED, BcdRayError

_Config = TypeVar("_Config")


def run(config_type: type[_Config], main: Callable[[_Config], int]) -> NoReturn:
    """Parse the command line into a configuration, run the job, and exit: 0, or the code of the error."""
    try:
        sys.exit(main(tyro.cli(config_type)))
    except BcdRayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    finally:
        gc.freeze()  # Python's last collection, through all that Ray and Matplotlib leave, takes a second
