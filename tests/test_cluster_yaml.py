"""cluster.yaml, checked without AWS: Ray accepts it, its nodes want the token and install what is tested."""

import os
import re
import shlex
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest
import ray
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray._private.authentication.authentication_token_setup import _get_default_token_path
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]


def _refuse(*args: object, **kwargs: object) -> NoReturn:
    raise AssertionError("checking cluster.yaml must not use the network")


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The file as `ray up` reads it: with Ray's AWS defaults, validated (by jsonschema, in ray[default])."""
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)
    prepared: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(prepared)
    return prepared


@pytest.fixture
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def ray_start(commands: list[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments and environment that `ray start` gets when a node's commands run, with a stub `ray`.

    The launcher's shell comes with OMP_NUM_THREADS=1 and its own word on usage statistics; so does this one.
    """
    stub = folder / "ray"
    stub.write_text('#!/bin/sh\necho "$@" > "$HOME/$1.arguments"\nenv > "$HOME/$1.environment"\n')
    stub.chmod(0o755)
    shell = {"PATH": f"{folder}:{os.defpath}", "HOME": str(folder), "RAY_HEAD_IP": "10.0.0.1"}
    launcher = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "1"}
    for command in commands:  # one shell each, as over SSH
        subprocess.run(["bash", "-c", command], env=shell | launcher, check=True)
    lines = (folder / "start.environment").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    return (folder / "start.arguments").read_text().split(), environment


def pins(commands: list[str]) -> dict[str, Requirement]:
    words = [word for command in commands for word in shlex.split(command) if "==" in word]
    return {pin.name: pin for pin in map(Requirement, words)}


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_every_ray_process_wants_the_token_and_runs_at_full_speed(
    config: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    _, environment = ray_start(config[f"{kind}_start_ray_commands"], tmp_path)
    wanted = {
        "RAY_AUTH_MODE": "token",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
    }
    assert {name: environment.get(name) for name in wanted} == wanted
    assert "OMP_NUM_THREADS" not in environment, "Ray would keep every worker at one thread"


def test_the_token_goes_where_ray_looks_for_it(config: dict[str, Any]) -> None:
    ((remote, local),) = config["file_mounts"].items()
    assert Path(remote).expanduser() == Path(local).expanduser() == _get_default_token_path()


def test_no_secret_in_the_file(config: dict[str, Any]) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"RAY_AUTH_TOKEN\b|AKIA|ASIA|aws_(access|secret|session)|\b[0-9a-f]{32,}\b", text)
    assert "aws_credentials" not in config["provider"]
    for name, node in config["available_node_types"].items():
        assert node["node_config"]["IamInstanceProfile"], f"{name} has no role to reach S3 with"


def test_only_the_head_itself_reaches_the_dashboard(config: dict[str, Any], tmp_path: Path) -> None:
    arguments, _ = ray_start(config["head_start_ray_commands"], tmp_path)
    assert "--dashboard-host=127.0.0.1" in arguments
    assert "security_group" not in config["provider"], "the launcher's own group opens SSH and nothing else"


def test_workers_join_the_head(config: dict[str, Any], tmp_path: Path) -> None:
    arguments, _ = ray_start(config["head_start_ray_commands"], tmp_path)
    assert {"--head", "--port=6379"} <= set(arguments)
    assert any(word.startswith("--autoscaling-config=") for word in arguments), "else no worker ever starts"
    arguments, _ = ray_start(config["worker_start_ray_commands"], tmp_path)
    assert "--address=10.0.0.1:6379" in arguments


def test_groups(config: dict[str, Any]) -> None:
    groups = config["available_node_types"]
    head, cpu, gpu = groups[config["head_node_type"]], groups["cpu_worker"], groups["gpu_worker"]
    assert head["resources"]["CPU"] == 0
    assert cpu["min_workers"] == gpu["min_workers"] == 0
    assert gpu["max_workers"] == 0, "GPU nodes are for those who ask"
    assert 0 < cpu["max_workers"] < config["max_workers"], "the total leaves room to enable the GPU group"
    assert config["idle_timeout_minutes"] > 0
    assert config["provider"]["cache_stopped_nodes"] is False, "`ray down` must leave no disk behind"


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_nodes_install_the_project_s_dependencies(config: dict[str, Any], project: dict[str, Any], kind: str) -> None:
    installed = pins(config[f"{kind}_setup_commands"])
    needed = {need.name: need for need in map(Requirement, project["dependencies"])}
    assert installed.keys() == needed.keys()
    for name, need in needed.items():
        version = str(installed[name].specifier).removeprefix("==")
        assert need.specifier.contains(version), f"{name} {version} on the cluster, {need} in pyproject.toml"
        assert installed[name].extras == need.extras
    assert str(installed["ray"].specifier) == f"=={ray.__version__}"


def test_python_of_the_nodes(config: dict[str, Any], project: dict[str, Any]) -> None:
    (version,) = {v for command in config["setup_commands"] for v in re.findall(r"--python (\d\S*)", command)}
    assert version == "3.11"
    assert SpecifierSet(project["requires-python"]).contains(version)
