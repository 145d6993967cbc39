"""What each format becomes: its status, its pixels, and the table of docs/score.md."""

import numpy as np
import pytest
from archives.format_cases import CASES, DOCS, PATIENT, Case, table
from mutation_campaign import run

from bcd_ray.archives.images import Decoded, Limits, decode


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_format_becomes_what_the_table_says(case: Case) -> None:
    result = decode(case.make(), Limits())
    if not isinstance(result, Decoded):
        assert result.status == case.becomes, result.error
        assert PATIENT not in result.error
        return
    assert case.becomes == ("damaged" if result.damage else "scored"), result.damage
    assert result.pixels.shape == (224, 224, 3)
    if case.shows is not None:
        expected = case.shows if case.shows.ndim == 3 else case.shows[..., None]
        assert np.abs(result.pixels.astype(int) - expected).max() <= case.tolerance


def test_mutated_files_of_every_format_neither_raise_nor_hang_nor_end_the_process() -> None:
    """The short form of `python tests/mutation_campaign.py --minutes 10`."""
    found, outcomes = run(seconds=4, seed=1)
    assert found == []
    assert outcomes["scored"] > 0
    assert outcomes["corrupt_image"] > 0


def test_the_table_of_the_documentation_is_that_of_the_cases() -> None:
    assert table() in DOCS.read_text(), "write it anew: python tests/archives/format_cases.py"
