#!/usr/bin/env bash
# pyarrow 26.0.1 beside pandas 3.1.1: the first array made of a plain list, or an empty table of a schema, imports pandas.
#
# Seen: `import pyarrow.parquet`, writing a file and reading it by `ParquetFile(...).read()` load no module of pandas. After the
#   first `pa.array([1])` some 300 are there, and it took 0.3 s of a core, as much as `import pyarrow` itself; likewise after
#   `pa.scalar(1)` and `schema.empty_table()`. Where pandas is not installed, the same call gives the same array within 1 ms.
# One would have guessed: pandas is loaded when pandas objects are handed over or asked for. Whoever installs Ray Data has it;
#   a constant such as `NOTHING = SCHEMA.empty_table()` at the top of a module then costs each start of each worker 0.3 s.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1
cat >"$folder/look.py" <<'PYTHON'
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq


def loaded() -> int:
    return sum(name.split(".")[0] == "pandas" for name in sys.modules)


at_import = loaded()
schema = pa.schema([("image_id", pa.string())])
with pq.ParquetWriter(sys.argv[1], schema):
    pass
pq.ParquetFile(sys.argv[1]).read()
after_parquet, began = loaded(), time.process_time()
{"array": lambda: pa.array([1]), "scalar": lambda: pa.scalar(1), "table": schema.empty_table}[sys.argv[2]]()
print(at_import, after_parquet, loaded(), round(1000 * (time.process_time() - began)))
PYTHON
look() { "$folder/venv/bin/python" "$folder/look.py" "$folder/x.parquet" "$1"; }
read -r _ _ alone alone_ms <<<"$(look array)"
"$folder/venv/bin/pip" install --quiet pandas==3.1.1
for what in array scalar table; do
    read -r at_import after_parquet after_call ms <<<"$(look "$what")"
    echo "$what: modules of pandas after import $at_import, with Parquet $after_parquet, after the call $after_call; $ms ms;" \
        "without pandas installed $alone_ms ms"
    [ "$alone" -eq 0 ] && [ "$after_parquet" -eq 0 ] && [ "$after_call" -gt 100 ] ||
        { echo "pyarrow does otherwise now" >&2; exit 1; }
done
echo "as described"
