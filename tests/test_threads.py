"""Chunks keep order and lose nothing, however many items and however heavy."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bcd_ray.threads import in_chunks, map_ahead


@given(weights=st.lists(st.integers(0, 9)), most=st.integers(1, 5), most_weight=st.integers(0, 20))
def test_chunks_are_of_so_many_items_or_as_heavy_as_may_be(weights: list[int], most: int, most_weight: int) -> None:
    chunks = list(in_chunks(weights, most, lambda weight: weight, most_weight))
    assert [weight for chunk in chunks for weight in chunk] == weights
    for chunk in chunks:
        assert 1 <= len(chunk) <= most
        assert sum(chunk) <= most_weight or len(chunk) == 1
    for chunk, after in pairwise(chunks):
        assert len(chunk) == most or sum(chunk) + after[0] > most_weight


@given(
    weights=st.lists(st.integers(0, 9)),
    ahead=st.integers(1, 5),
    most_weight=st.integers(0, 20),
    threads=st.integers(1, 4),
)
def test_what_is_under_way_or_waits_is_bounded_in_number_and_weight(
    weights: list[int], ahead: int, most_weight: int, threads: int
) -> None:
    begun = list[int]()

    def work(weight: int) -> int:
        begun.append(weight)
        return weight

    results = list[int]()
    with ThreadPoolExecutor(threads) as pool:
        for result in map_ahead(pool, work, weights, ahead, lambda weight: weight, most_weight):
            results.append(result)
            waiting = weights[len(results) : len(begun)]
            assert len(waiting) < ahead
            assert sum(waiting) <= most_weight or len(waiting) == 1
    assert results == weights
