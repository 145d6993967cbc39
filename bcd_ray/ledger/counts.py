"""What a manifest counts of published rows."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def of_rows(rows: pa.Table) -> dict[str, dict[str, int]]:
    """`statuses`, `predicted_classes` and `review`, as `schema.MANIFEST` has them."""
    review = {"rows": pc.sum(rows["review"]).as_py() or 0, **_values(pc.list_flatten(rows["review_reasons"]))}
    return {
        "statuses": _values(rows["status"]),
        "predicted_classes": _values(rows["predicted_class"]),
        "review": review,
    }


def _values(column: Any) -> dict[str, int]:
    return {each["values"]: each["counts"] for each in column.drop_null().value_counts().to_pylist()}
