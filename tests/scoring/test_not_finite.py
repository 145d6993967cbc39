"""A network that gives no finite numbers says nothing: its images are not scored, whatever class stands first."""

import numpy as np
import pytest

from bcd_ray.archives.images import Decoded
from bcd_ray.archives.shards import Entry
from bcd_ray.model.bundle import EMBEDDING_SIZE, Bundle, pretrained
from bcd_ray.model.quality import OF_PIXELS
from bcd_ray.model.triage import Triage
from bcd_ray.scoring.worker import _Row, _table


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", range(3))
def test_a_row_of_numbers_that_are_not_finite_is_not_scored(part: int, value: float) -> None:
    pixels = np.zeros((224, 224, 3), np.uint8)
    entries = [Entry(f"{number:032x}", f"a.tar#{number}.jpg", "a.tar", "1", b"x") for number in range(3)]
    rows = [_Row(entry, "0" * 64, Decoded(pixels, 224, 224)) for entry in entries]
    computed = [np.ones((3, size), np.float32) for size in (EMBEDDING_SIZE, 4, len(OF_PIXELS))]
    computed[part][1, 2] = value
    of_images = (computed[0], computed[1], computed[2], np.ones(3, np.int32))
    bundle = Bundle(pretrained("keras"), Triage.without_limits(EMBEDDING_SIZE), {}, "0" * 64)
    table = _table(rows, [of_images], bundle, keep=True)
    assert table["status"].to_pylist() == ["scored", "not_finite", "scored"]
    broken = table.slice(1, 1).to_pylist()[0]
    assert broken["predicted_class"] is broken["p_benign"] is broken["confidence"] is broken["focus"] is None
    assert (broken["review"], broken["review_reasons"]) == (True, ["not_scored"])
    assert "look at the model" in broken["error"]
    assert broken["embedding"] is None
    assert None not in table["predicted_class"].take([0, 2]).to_pylist()
