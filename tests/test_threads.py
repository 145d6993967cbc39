"""Chunks keep order and lose nothing, however many items and however heavy."""

from hypothesis import given
from hypothesis import strategies as st

from bcd_ray.threads import in_chunks


@given(weights=st.lists(st.integers(0, 9)), most=st.integers(1, 5), most_weight=st.integers(0, 20))
def test_chunks_are_of_so_many_items_or_end_with_the_one_that_is_too_much(
    weights: list[int], most: int, most_weight: int
) -> None:
    chunks = list(in_chunks(weights, most, lambda weight: weight, most_weight))
    assert [weight for chunk in chunks for weight in chunk] == weights
    for chunk in chunks:
        assert 1 <= len(chunk) <= most
        assert sum(chunk[:-1]) <= most_weight
    assert all(len(chunk) == most or sum(chunk) > most_weight for chunk in chunks[:-1])
