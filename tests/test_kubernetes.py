"""docs/kubernetes, checked without a cluster: by Kubernetes' own models, by KubeRay's schema where it is at hand.

`KUBERAY_CRD=ray.io_rayjobs.yaml pytest tests/test_kubernetes.py` checks the RayJob by the schema of KubeRay's release.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import ray
import tyro
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

from bcd_ray.nights.config import NightlyConfig

client = pytest.importorskip("kubernetes.client")
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/kubernetes"
PARTS = list(yaml.safe_load_all((FOLDER / "night.yaml").read_text()))
CRON = next(part for part in PARTS if part["kind"] == "CronJob")
RAY_JOB = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
CLUSTER = RAY_JOB["spec"]["rayClusterSpec"]
PODS = {
    "submitter": RAY_JOB["spec"]["submitterPodTemplate"],
    "head": CLUSTER["headGroupSpec"]["template"],
    **{group["groupName"]: group["template"] for group in CLUSTER["workerGroupSpecs"]},
}
COPIED = re.compile(r"^COPY (.+) \S+$", re.MULTILINE)


def as_kubernetes_reads_it(part: dict[str, Any], kind: str) -> Any:
    """What is left of a part once it went through Kubernetes' model of its kind, which knows its own fields alone."""
    api = client.ApiClient()
    response = SimpleNamespace(data=json.dumps(part))
    return api.sanitize_for_serialization(api.deserialize(response, kind))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part["kind"])
def test_kubernetes_knows_every_field(part: dict[str, Any]) -> None:
    assert as_kubernetes_reads_it(part, f"V1{part['kind']}") == part


@pytest.mark.parametrize("name", PODS)
def test_kubernetes_knows_every_field_of_the_pods(name: str) -> None:
    assert as_kubernetes_reads_it(PODS[name], "V1PodTemplateSpec") == PODS[name]


@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD names no file of KubeRay's")
def test_kuberay_knows_every_field() -> None:
    crd = yaml.load(Path(os.environ["KUBERAY_CRD"]).read_text(), yaml.CSafeLoader)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.validate(RAY_JOB, closed(schema))


def closed(schema: Any) -> Any:
    """The schema with no fields but those that it names, as an API server prunes them."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema and "additionalProperties" not in schema:
        found["additionalProperties"] = "metadata" in schema["properties"] and "spec" in schema["properties"]
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    return found


def test_one_night_at_a_time_and_each_deadline_after_the_one_inside() -> None:
    job = CRON["spec"]["jobTemplate"]["spec"]
    assert CRON["spec"]["concurrencyPolicy"] == "Forbid"
    assert job["backoffLimit"] == 0
    assert job["activeDeadlineSeconds"] > RAY_JOB["spec"]["activeDeadlineSeconds"]


def test_the_night_is_one_that_the_job_takes(tmp_path: Path) -> None:
    entrypoint, script = RAY_JOB["spec"]["entrypoint"], (FOLDER / "night.sh").read_text()
    assert re.fullmatch(r"[\w/. -]+", entrypoint), "KubeRay puts it unquoted into a line of a shell"
    (command,) = re.findall(r"^python jobs/nightly\.py (.*?) \|\|", script, re.MULTILINE)
    words = shlex.split(command)
    options = ["--model", "m", "--output", "o", "--input", "i", *words[2:]]
    assert tyro.cli(NightlyConfig, args=options).progress == "json"
    mounts = [mount["mountPath"] for mount in PODS["head"]["spec"]["containers"][0]["volumeMounts"]]
    assert {Path(words[1]).parent.as_posix(), Path(entrypoint.split()[1]).parent.as_posix()} <= set(mounts)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 130, 137, 143])
def test_what_another_attempt_would_spoil_is_not_tried_again(code: int) -> None:
    script = re.sub(r"python jobs/nightly\.py [^|]*", f"(exit {code}) ", (FOLDER / "night.sh").read_text())
    ended = subprocess.run(["sh", "-c", script], check=False).returncode
    assert ended == (0 if code in (0, 3, 4, 5, 6, 7) else 1)


def test_the_pods_are_confined() -> None:
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert CLUSTER["autoscalerOptions"]["securityContext"] == confined
    for pod in [CRON["spec"]["jobTemplate"]["spec"]["template"], *PODS.values()]:
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            assert container["securityContext"] == CLUSTER["autoscalerOptions"]["securityContext"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_ray_s_objects_have_room_in_shared_memory() -> None:
    for group, name in ((CLUSTER["headGroupSpec"], "head"), (CLUSTER["workerGroupSpecs"][0], "cpu")):
        (shm,) = (volume["emptyDir"] for volume in PODS[name]["spec"]["volumes"] if volume["name"] == "shm")
        assert int(group["rayStartParams"]["object-store-memory"]) < int(shm["sizeLimit"].removesuffix("Gi")) << 30


def test_every_container_has_its_resources_and_no_secret_stands_in_a_file() -> None:
    pods = [CRON["spec"]["jobTemplate"]["spec"]["template"], *PODS.values()]
    for pod in pods:
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["requests"].keys(), container[
                "name"
            ]
            assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys(), container["name"]
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "bcd-ray-token"}
    text = "".join(path.read_text() for path in FOLDER.iterdir())
    assert not re.search(r"AKIA|ASIA|\b[0-9a-f]{32,}\b", text)


def test_the_cluster_is_of_the_version_that_is_tested() -> None:
    assert CLUSTER["rayVersion"] == ray.__version__


def test_the_image_installs_what_the_cluster_of_aws_does() -> None:
    pinned = re.findall(r"^    '?([^\s']+==[^\s']+)'?", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    in_cluster = re.findall(r"^    '?([^\s']+==[^\s']+)'?", (ROOT / "cluster.yaml").read_text(), re.MULTILINE)
    others = [pin for pin in pinned if pin not in in_cluster]
    assert [pin for pin in in_cluster if pin not in pinned] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["delta"]
    assert [Requirement(pin).name for pin in others] == [Requirement(need).name for need in extras]


def test_the_image_copies_what_is_there() -> None:
    sources = [name for names in COPIED.findall((FOLDER / "Dockerfile").read_text()) for name in names.split()]
    assert [name for name in sources if not (ROOT / name).exists()] == []


def test_the_dockerfile_is_as_the_linter_wants_it() -> None:
    linter = shutil.which("hadolint")
    if not linter:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
