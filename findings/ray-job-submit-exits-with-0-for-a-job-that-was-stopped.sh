#!/usr/bin/env bash
# Ray 2.60.0: `ray job submit`, which waits for its job, exits with 0 when somebody stops the job, as when it succeeds.
#
# Seen: the driver is ended by SIGTERM before its work is done (what follows its wait is never printed), the job's status
#   is STOPPED and its driver_exit_code null, and the command that waited exits with 0. A job whose driver ends with 3
#   makes it exit with 1, whatever the driver's own code.
# One would have guessed: another code than 0, as of any shell command that a signal ends (143), so that a scheduler that
#   goes by exit codes does not take an interrupted night for a whole one. Only the status tells.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill -- -"$head" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray[default]==2.60.0'
export HOME="$folder" RAY_USAGE_STATS_ENABLED=0 RAY_BACKEND_LOG_LEVEL=fatal RAY_AUTH_MODE=disabled PATH="$folder/venv/bin:$PATH"
read -r gcs dashboard agent client < <(python -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*[each.getsockname()[1] for each in sockets])')
set -m # the head gets a process group of its own
ray start --head --block --num-cpus=1 --node-ip-address=127.0.0.1 --port="$gcs" --dashboard-port="$dashboard" \
    --dashboard-agent-listen-port="$agent" --ray-client-server-port="$client" >"$folder/head.log" 2>&1 &
head=$!
set +m
export RAY_API_SERVER_ADDRESS="http://127.0.0.1:$dashboard"
until ray job list >/dev/null 2>&1; do kill -0 "$head"; done
submit() { ray job submit --submission-id "$1" -- "${@:2}" >"$folder/$1.log" 2>&1; }
status() { python -c 'import sys; from ray.job_submission import JobSubmissionClient as C
info = C().get_job_info(sys.argv[1]); print(info.status.value, info.driver_exit_code)' "$1"; }

submit stopped sh -c 'echo begun; sleep 600; echo done' &
waiting=$!
until grep -qx begun "$folder/stopped.log" 2>/dev/null; do kill -0 "$waiting"; sleep 0.2; done
ray job stop stopped >/dev/null 2>&1
code_of_stopped=0; wait "$waiting" || code_of_stopped=$?
code_of_failed=0; submit failed sh -c 'exit 3' || code_of_failed=$?
echo "stopped: ray job submit exits with $code_of_stopped, status and driver_exit_code are $(status stopped)"
echo "driver ends with 3: ray job submit exits with $code_of_failed, status and driver_exit_code are $(status failed)"
if grep -qx 'done' "$folder/stopped.log"; then exit 1; fi
[ "$(status failed)" = "FAILED 3" ] && [ "$code_of_failed" = 1 ]
[ "$(status stopped)" = "STOPPED None" ] && [ "$code_of_stopped" = 0 ] || { echo "Ray does otherwise now" >&2; exit 1; }
echo "as described"
