"""Before the first night and after every change: is all there that a night needs? A line a check."""

import platform
import resource
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bcd_ray import __version__, own_ray, progress, storage
from bcd_ray.archives.images import Limits
from bcd_ray.archives.listing import list_archive
from bcd_ray.archives.shards import is_loose, read_shard
from bcd_ray.errors import BcdRayError, ConfigError, JobError
from bcd_ray.learning.synthetic import draw_smear, write_synthetic_archive
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.units import Unit
from bcd_ray.model.bundle import Bundle, load_bundle
from bcd_ray.model.choice import Choice, choose_engine, open_engine, precision
from bcd_ray.nights.config import NightlyConfig
from bcd_ray.nights.inputs import as_scored, inputs_of, places
from bcd_ray.runtime import cluster_address, gpu_count, own_cores, ray_session
from bcd_ray.scoring.inputs import list_shards
from bcd_ray.scoring.worker import UnitScorer
from bcd_ray.storage import StoredObject

_LEAST_MEMORY, _LEAST_ROOM, _LEAST_SHM = 3 << 30, 5 << 30, 512 << 20
_LEAST_FILES = 4096  # on whose account Ray and the store's client run out
_MOST_SKEW_S = 30.0  # signatures of S3 hold for minutes, leases for five
_PROBE_IMAGES_PER_CLASS = 64


class Check(NamedTuple):
    """What was looked at, whether it is well, and what was found or is to be done."""

    name: str
    ok: bool
    words: str


@dataclass
class _Found:
    """What earlier checks learnt for later ones."""

    config: NightlyConfig
    shards: Iterable[StoredObject] = ()
    bundle: Bundle | None = None
    choice: Choice | None = None
    gpus: int = 0


def examine(config: NightlyConfig) -> Iterator[Check]:
    """All checks, each whatever became of those before."""
    progress.configure(config.progress, () if config.log_names else places(config))
    found = _Found(config)
    checks: dict[str, Callable[[_Found], str]] = {
        "versions": _versions,
        "machine": _machine,
        "shared memory": _shared_memory,
        "temporary room": _temporary_room,
        "open files": _open_files,
        "input": _input,
        "output": _output,
        "metrics": _metrics,
        "model": _model,
        "ray": _ray,
        "engine": _engine,
        "speed": _speed,
    }
    for name, check in checks.items():
        try:
            yield Check(name, True, progress.shown(check(found)))
        except BcdRayError as error:
            yield Check(name, False, progress.shown(str(error)))
        except Exception as error:  # one that nobody thought of is what a doctor is for
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield Check(name, False, progress.shown(words))


def _versions(found: _Found) -> str:
    from packaging.requirements import Requirement

    for need in map(Requirement, requires("bcd_ray") or ()):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            try:
                installed = version(need.name)
            except PackageNotFoundError as error:
                raise ConfigError(f"{need.name} is not installed: pip install -e .") from error
            if not need.specifier.contains(installed, prereleases=True):
                raise ConfigError(f"{need.name} {installed} is installed, and {need} is needed: pip install -e .")
    return f"bcd_ray {__version__}, Python {sys.version.split()[0]}, Ray {version('ray')}, {platform.platform()}"


def _machine(found: _Found) -> str:
    from ray._common.utils import get_system_memory

    memory = get_system_memory()  # of the control group, if it has a limit
    words = f"{own_cores()} cores, {memory / 1e9:.1f} GB of memory, as the control group has them"
    if memory < max(_LEAST_MEMORY, found.config.actor_memory):
        raise ConfigError(f"{words}: give it {_LEAST_MEMORY >> 30} GiB, or lower --actor-memory")
    return words


def _shared_memory(found: _Found) -> str:
    free = shutil.disk_usage("/dev/shm").free
    if free < _LEAST_SHM:
        raise ConfigError(
            f"/dev/shm has {free / 1e9:.1f} GB free: raise it (--shm-size of a container), or Ray is slow"
        )
    return f"/dev/shm has {free / 1e9:.1f} GB free"


def _temporary_room(found: _Found) -> str:
    folders = dict.fromkeys([tempfile.gettempdir(), own_ray.temporary_folder()])
    free = {folder: shutil.disk_usage(folder).free for folder in folders}
    words = ", ".join(f"{folder} has {size / 1e9:.1f} GB free" for folder, size in free.items())
    if min(free.values()) < _LEAST_ROOM:
        raise ConfigError(f"{words}: make room of {_LEAST_ROOM >> 30} GiB, or set TMPDIR and RAY_TMPDIR")
    return words


def _open_files(found: _Found) -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FILES:
        raise ConfigError(f"{soft:,} open files are allowed: `ulimit -n 65536`, or LimitNOFILE=65536 for systemd")
    return f"{soft:,} open files are allowed"


def _input(found: _Found) -> str:
    inputs = inputs_of(found.config)
    if inputs.uris or found.config.input_list:
        found.shards, _ = list_shards(as_scored(found.config, inputs))
    count = size = 0
    for shard in found.shards:
        if not count:
            with storage.open_stream(shard, 1 << 10) as stream:
                stream.read(1)
        count, size = count + 1, size + shard.size
    lacking = f"; nothing yet at {', '.join(inputs.without_tonight)}" if inputs.without_tonight else ""
    return f"{count:,} shards and loose images of {size / 1e6:,.1f} MB, listed and read{lacking}"


def _output(found: _Found) -> str:
    work = storage.join(found.config.output, "_work")
    storage.check_creates(work)
    storage.list_names(storage.join(found.config.output, "manifests"))
    probe = storage.join(work, f"doctor-{uuid.uuid4().hex}")
    began = time.time()
    storage.write_bytes(probe, b"probe")
    try:
        if storage.read_bytes(probe) != b"probe":
            raise JobError(f"{probe}: what was written is not what is read: ask whoever runs the store")
        written = storage.modified_at(probe)
    finally:
        storage.delete(probe)
    skew = 0.0 if began - 1 <= written <= time.time() else written - began
    words = f"{found.config.output}: listed, written once and not twice, read, deleted; its clock is {skew:+.0f} s off"
    if abs(skew) > _MOST_SKEW_S:
        raise ConfigError(f"{words}: set the clocks (NTP)")
    return words


def _metrics(found: _Found) -> str:
    if not (path := found.config.metrics):
        return "none are written: see --metrics"
    try:
        with tempfile.NamedTemporaryFile(dir=Path(path).parent):
            return f"{path} can be written"
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: make its folder, which this user may write to") from error


def _model(found: _Found) -> str:
    found.bundle = load_bundle(found.config.model)
    return f"{found.config.model}: whole, version {found.bundle.version}"


def _ray(found: _Found) -> str:
    address = cluster_address()
    with ray_session():  # which wants the token and the same version of Ray and Python
        import ray

        found.gpus, resources = gpu_count(), ray.cluster_resources()
    where = f"the cluster at {address}" if address else "a Ray of its own starts here"
    return f"{where}, with {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _engine(found: _Found) -> str:
    if found.bundle is None:
        raise JobError("not tried: there is no model")
    precision(found.config.engine, found.bundle)
    found.choice = choose_engine(found.config.engine, found.gpus)
    if found.choice.on_gpu and cluster_address():
        return f"{found.choice}; not tried, for its GPUs may be elsewhere"
    outputs = open_engine(found.choice.name, found.bundle, own_cores()).infer([draw_smear(2, 0)])
    if not np.isfinite(outputs[1]).all():
        raise JobError(
            f"{found.choice}: it gives no finite numbers for a drawn image: look at the model and the machine"
        )
    return f"{found.choice}; compiled, and tried on a drawn image"


def _speed(found: _Found) -> str:
    if found.bundle is None or found.choice is None:
        raise JobError("not measured: there is no engine")
    name = "openvino" if found.choice.on_gpu else found.choice.name
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_archive(Path(folder, "smears"), _PROBE_IMAGES_PER_CLASS)
        shards = list_archive(f"{folder}/smears").shards
        limits = Limits()
        scorer = UnitScorer(found.bundle, name, Ledger(f"{folder}/scores"), limits, own_cores(), None)
        scorer.score(Unit("warm", tuple(shards[:8])))
        began = time.monotonic()
        scorer.score(Unit("measured", tuple(shards)))
        rate = len(shards) / (time.monotonic() - began)
    words = f"{rate:.0f} images a second by {name} on this machine, 224x224 JPEGs"
    if not (images := _images(found.shards, limits)):
        return words
    return f"{words}; some {images:,} images of the input take {timedelta(seconds=round(images / rate))} at that rate"


def _images(shards: Iterable[StoredObject], limits: Limits) -> int:
    """How many images there are; of packed shards by the first of them."""
    loose, packed, size = 0, list[StoredObject](), 0
    for shard in shards:
        if is_loose(shard.uri):
            loose += 1
        else:
            packed, size = packed or [shard], size + shard.size
    if not packed:
        return loose
    members: Any = read_shard(packed[0], limits)
    return loose + round(size / max(1, packed[0].size) * sum(1 for _ in members))
