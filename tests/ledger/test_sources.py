"""A source that is, all together, like no day that was trained on goes to review whole; of few images none can tell."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bcd_ray.learning.splits import Layout
from bcd_ray.learning.thresholds import OF_A_SOURCE, source_limit
from bcd_ray.ledger import schema
from bcd_ray.ledger.sources import SOURCE_COLUMNS, Sources, source_of
from bcd_ray.model.triage import Triage

LIMIT = {"certainty": 0.5, "images": 30}
TYPES = {name: schema.PREDICTIONS.field(name).type for name in ("review_reasons",)}


def rows_of(shards: dict[str, list[float | None]]) -> pa.Table:
    """Rows of shards with these certainties; None of an image that could not be scored."""
    flat = [(shard, each) for shard, values in shards.items() for each in values]
    reasons = [["not_scored"] if each is None else ["low_confidence"] if each < 0.1 else [] for _, each in flat]
    return pa.table(
        {
            "image_uri": [f"{shard}#{number}" for number, (shard, _) in enumerate(flat)],
            "shard_uri": [shard for shard, _ in flat],
            "status": ["scored" if each is not None else "empty_file" for _, each in flat],
            "certainty": pa.array([each for _, each in flat], pa.float32()),
            "review": [bool(given) for given in reasons],
            "review_reasons": pa.array(reasons, TYPES["review_reasons"]),
        }
    )


def judged(*units: dict[str, list[float | None]], **options: Any) -> tuple[Sources, list[dict[str, Any]]]:
    sources = Sources(LIMIT, **options)
    for unit in units:
        sources.added(rows_of(unit).select(SOURCE_COLUMNS))
    return sources, [row for unit in units for row in sources.judged(rows_of(unit)).to_pylist()]


def test_an_unfamiliar_shard_goes_to_review_whole() -> None:
    new: list[float | None] = [0.9] * 10 + [0.05] * 25 + [None]
    sources, rows = judged({"/in/new.tar": new, "/in/known.tar": [0.9] * 30 + [0.05] * 5})
    for row in rows:
        expected = row["shard_uri"] == "/in/new.tar" and row["status"] == "scored"
        assert ("unfamiliar_source" in row["review_reasons"]) == expected
        assert row["review"] == bool(row["review_reasons"])
    assert sources.told() == {
        "judged": 2,
        "judged_together": 0,
        "too_few_images": 0,
        "unfamiliar": 1,
        "unfamiliar_first": ["/in/new.tar"],
    }


def test_loose_images_are_judged_by_their_folder_over_all_units() -> None:
    first = {f"/in/new/{number}.jpg": [0.2] for number in range(20)}
    second = {f"/in/new/{number}.jpg": [0.3] for number in range(20, 40)} | {"/in/other/1.jpg": [0.1]}
    sources, rows = judged(first, second)
    flagged = [row["shard_uri"] for row in rows if "unfamiliar_source" in row["review_reasons"]]
    assert flagged == [f"/in/new/{number}.jpg" for number in range(40)]
    told = sources.told()
    assert told is not None
    assert (told["judged"], told["too_few_images"], told["unfamiliar_first"]) == (1, 1, ["/in/new"])


@pytest.mark.parametrize(("certainty", "unfamiliar"), [(0.2, 5), (0.8, 0)])
def test_small_sources_are_judged_together(certainty: float, unfamiliar: int) -> None:
    """Five slides of ten images each, and one that is large and known."""
    slides: dict[str, list[float | None]] = {f"/in/slide{number}.tar": [certainty] * 10 for number in range(5)}
    sources, rows = judged({"/in/large.tar": [0.9] * 40}, slides)
    told = sources.told()
    assert told is not None
    assert told | {"judged": 6, "judged_together": 5, "too_few_images": 0, "unfamiliar": unfamiliar} == told
    flagged = {row["shard_uri"] for row in rows if row["review_reasons"] == ["unfamiliar_source"]}
    assert flagged == (set(slides) if unfamiliar else set())


@pytest.mark.parametrize("sent", [True, False])
def test_what_nobody_can_tell_is_said_and_goes_to_review_unless_told_otherwise(sent: bool) -> None:
    few: dict[str, list[float | None]] = {f"/in/late/{number}.jpg": [0.9] for number in range(3)}
    empty: dict[str, list[float | None]] = {"/in/empty.jpg": [None]}
    sources, rows = judged({"/in/large.tar": [0.9] * 40} | few | empty, review_small=sent)
    told = sources.told()
    assert told is not None
    assert (told["judged"], told["judged_together"], told["too_few_images"], told["unfamiliar"]) == (1, 0, 1, 0)
    for row in rows[:-1]:
        assert row["review_reasons"] == (["small_source"] if sent and row["shard_uri"] in few else [])
        assert row["review"] == bool(row["review_reasons"])
    assert rows[-1]["review_reasons"] == ["not_scored"]


def test_a_pattern_names_the_sources_and_a_shard_is_one_where_it_finds_nothing() -> None:
    numbers = range(40)
    loose: dict[str, list[float | None]] = {f"/in/{n}_scanner{n % 2}.jpg": [0.2 if n % 2 else 0.9] for n in range(80)}
    other: dict[str, list[float | None]] = {"/in/other.tar": [0.1 for _ in numbers]}
    sources, rows = judged(loose, other, pattern="_(scanner[0-9])")
    flagged = {row["shard_uri"] for row in rows if row["review"]}
    assert flagged == {"/in/other.tar", *(f"/in/{n}_scanner1.jpg" for n in range(1, 80, 2))}
    told = sources.told()
    assert told is not None
    assert told["unfamiliar_first"] == ["/in/other.tar", "scanner1"]


def test_a_model_that_does_not_know_judges_nothing() -> None:
    rows = rows_of({"/in/new.tar": [0.0] * 40})
    sources = Sources(None)
    assert sources.judged(rows) is rows
    assert sources.told() is None
    assert source_of("s3://bucket/day/1.png") == "s3://bucket/day"


def test_limits_come_from_known_groups_and_pass_them() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2, 3], [200, 100, 60, 10])
    certainty = random.normal(np.array([0.8, 0.6, 0.7, 0.1])[groups], 0.1)  # the last has too few images to count
    layout = Layout(groups % 2, np.arange(370), np.arange(370), groups)
    limit = source_limit(certainty, layout)
    assert limit is not None
    assert limit["images"] == OF_A_SOURCE
    assert 0.5 < limit["certainty"] < 0.6
    triage = Triage(Triage.without_limits(8).model, {**Triage.without_limits(8).settings, "source": limit})
    assert set(groups[triage.unfamiliar(certainty, groups)]) <= {1}
    assert triage.unfamiliar(np.full(370, 0.3), groups).tolist() == (groups < 3).tolist()
    assert source_limit(certainty[-20:], layout.of(np.arange(370) >= 350)) is None


@pytest.mark.parametrize("settings", [{}, {"source": None}])
def test_bundles_of_before_know_no_sources(settings: dict[str, None]) -> None:
    triage = Triage(Triage.without_limits(8).model, {**Triage.without_limits(8).settings, **settings})
    assert not triage.unfamiliar(np.zeros(50), np.zeros(50, int)).any()
