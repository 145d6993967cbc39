"""One run at a time: who holds an output, who takes over, and what the holder that was slow finds."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bcd_ray import storage
from bcd_ray.errors import HeldError
from bcd_ray.nights.lease import Lease

_HOLD = """
import sys, time
from bcd_ray.nights.lease import Lease
with Lease(sys.argv[1]).held():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output on disk and in the store."""
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}" if request.param == "s3" else str(tmp_path)


def leases(output: str) -> list[dict[str, object]]:
    folder = f"{output}/_work/lease"
    return [json.loads(storage.read_bytes(f"{folder}/{name}")) for name in sorted(storage.list_names(folder))]


def test_a_second_run_is_refused_until_the_first_gives_back(output: str) -> None:
    with Lease(output).held() as first:
        with pytest.raises(HeldError, match=r"the run of process \d+ on \S+ holds the output"), Lease(output).held():
            pass
        first.check()
    for _ in range(3):
        with Lease(output).held():
            assert {"host", "pid", "expires"} <= leases(output)[-1].keys()
    assert len(leases(output)) <= 2, "old leases are cleared"


def test_a_dead_holder_s_lease_is_taken_over_at_once_on_its_machine(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=f"process {holder.pid}"), Lease(output).held():
            pass
        holder.kill()
    with Lease(output).held():
        assert f"process {holder.pid} on" in capsys.readouterr().err


def test_a_holder_elsewhere_has_until_its_lease_ends(output: str) -> None:
    lease = {"host": "elsewhere", "pids": "others", "pid": 1, "began": 0, "expires": time.time() + 60}
    uri = f"{output}/_work/lease/00000007.json"
    storage.write_bytes(uri, json.dumps(lease).encode())
    with pytest.raises(HeldError, match="process 1 on elsewhere"), Lease(output).held():
        pass
    storage.write_bytes(uri, json.dumps(lease | {"expires": time.time()}).encode())
    with Lease(output).held():
        assert "00000008.json" in storage.list_names(f"{output}/_work/lease")


def test_a_holder_that_was_slow_finds_its_lease_lost(output: str) -> None:
    with Lease(output).held() as slow:
        slow.check()
        other = {"host": "elsewhere", "pids": "others", "pid": 1, "began": 0, "expires": time.time() + 60}
        assert storage.create(f"{output}/_work/lease/00000002.json", json.dumps(other).encode())
        with pytest.raises(HeldError, match=r"process 1 on elsewhere took over .*: nothing is published"):
            slow.check()
    assert leases(output)[-1]["host"] == "elsewhere", "the other one keeps it"


def test_a_lease_is_renewed_while_its_holder_lives(tmp_path: Path) -> None:
    with Lease(str(tmp_path), lifetime_s=0.5).held():
        first = leases(str(tmp_path))[-1]["expires"]
        for _ in range(600):
            if leases(str(tmp_path))[-1]["expires"] != first:
                return
            time.sleep(0.05)
    pytest.fail("not renewed within 30 s")
