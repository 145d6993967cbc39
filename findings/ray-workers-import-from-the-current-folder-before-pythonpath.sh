#!/usr/bin/env bash
# Ray 2.60.0: a worker looks for modules first in the folder where its driver was begun, before PYTHONPATH and before
# what is installed. The driver, a script in some other folder, does not look there at all.
#
# Seen: a script that is run as `python elsewhere/job.py` from a folder with an older copy of a package imports the
#   release that PYTHONPATH names (the installed one would do as well), and each of its tasks the older copy. Nothing
#   says so, and one run computes with two releases. A function of the package that is sent to a task goes by its name:
#   it is the older one, too.
# One would have guessed: the same modules on both sides, since `python elsewhere/job.py` has no current folder in
#   sys.path. From an empty folder it is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray==2.60.0'
export HOME="$folder" RAY_USAGE_STATS_ENABLED=0 RAY_BACKEND_LOG_LEVEL=fatal
mkdir -p "$folder"/{release,older,empty,scripts}
for name in release older; do
    mkdir "$folder/$name/smears"
    echo "def version(): return '$name'" >"$folder/$name/smears/__init__.py"
done
cat >"$folder/scripts/job.py" <<'PYTHON'
import ray
import smears


@ray.remote
def asked():
    import smears

    return smears.version()


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
print(smears.version(), ray.get(asked.remote()), ray.get(ray.remote(smears.version).remote()))
PYTHON
run() { (cd "$folder/$1" && PYTHONPATH="$folder/release" "$folder/venv/bin/python" "$folder/scripts/job.py"); }
from_empty=$(run empty) from_older=$(run older)
echo "begun in an empty folder: driver, task, function sent: $from_empty"
echo "begun beside an older copy: driver, task, function sent: $from_older"
[ "$from_empty" = "release release release" ]
[ "$from_older" = "release older older" ] || { echo "Ray does otherwise now" >&2; exit 1; }
echo "as described"
