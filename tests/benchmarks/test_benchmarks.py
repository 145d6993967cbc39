"""What the benchmark measures: rates, processes with all that they start, and the same images for every program."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from bcd_ray.archives.images import Decoded, Limits, decode
from bcd_ray.benchmarks import against, rescore, speed
from bcd_ray.benchmarks.config import BenchmarkConfig
from bcd_ray.benchmarks.growth import cost_of_a_million, growth
from bcd_ray.benchmarks.history import history
from bcd_ray.benchmarks.measure import run_program, steady_rate
from bcd_ray.benchmarks.speed import bench, stages
from bcd_ray.benchmarks.training import training_cost
from bcd_ray.benchmarks.turns import Program, compare_in_turns, ratios, take_turns
from bcd_ray.errors import ConfigError, JobError
from bcd_ray.learning.synthetic import write_synthetic_archive


def test_the_steady_rate_leaves_start_and_end_out() -> None:
    """10 images a second in the middle, whatever the first and the last fifth do."""
    slow_start = [(5.0 * number, 10 * number) for number in range(1, 11)]
    middle = [(50.0 + number, 100 + 10 * number) for number in range(1, 31)]
    slow_end = [(80.0 + 9 * number, 400 + 10 * number) for number in range(1, 11)]
    assert steady_rate(slow_start + middle + slow_end) == pytest.approx(10)


def test_too_few_results_give_no_rate() -> None:
    with pytest.raises(JobError, match="measure with more images"):
        steady_rate([(0.0, 1), (1.0, 2)])


def test_a_program_is_measured_with_what_it_starts() -> None:
    work = "x = bytearray(200_000_000)\nimport time\nwhile time.process_time() < 1: pass"
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {work!r}])\nprint('done')"
    output, usage = run_program([sys.executable, "-c", program], {})
    assert output == "done\n"
    assert usage.wall_s > 1
    assert 0.2 < usage.peak_gb < 0.4  # of the child
    assert usage.cpu_s > 0.3
    with pytest.raises(JobError, match=r"ended with 3: .*"):
        run_program([sys.executable, "-c", "raise SystemExit(3)"], {})


def stamping(stamps: int) -> list[str]:
    """The command of a program whose child works, and prints the clock again and again."""
    work = f"import time\nfor _ in range({stamps}):\n    sum(range(100_000))\n    print(time.time(), flush=True)"
    return [
        sys.executable,
        "-c",
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {work!r}], check=True)",
    ]


def test_programs_work_in_their_turns_alone(tmp_path: Path) -> None:
    programs = {
        "short": Program(stamping(300), tmp_path / "short"),
        "long": Program(stamping(600), tmp_path / "long", to_its_end=True),
        "endless": Program(stamping(10**9), tmp_path / "endless"),
    }
    turns = take_turns(programs, 0.1, {})
    assert len({len(of_program) for of_program in turns.values()}) == 1
    assert len(turns["short"]) > 1
    first, last = turns["short"][0][0], max(end for of_program in turns.values() for _, end in of_program)
    for name, program in programs.items():
        stamps = [float(line) for line in program.stdout.read_text().splitlines()[:-1]]
        within = [stamp for stamp in stamps if first < stamp < last]
        assert within
        assert all(any(start < stamp < end for start, end in turns[name]) for stamp in within)
        assert program.ended
    counts = {name: len(program.stdout.read_text().splitlines()) for name, program in programs.items()}
    assert counts["short"] == 300
    assert counts["long"] == 600


def test_a_program_that_fails_in_its_turns_is_told(tmp_path: Path) -> None:
    fails = [sys.executable, "-c", "raise SystemExit('no such model')"]
    programs = {"works": Program(stamping(10**9), tmp_path / "works"), "fails": Program(fails, tmp_path / "fails")}
    with pytest.raises(JobError, match=r"ended with 1: no such model"):
        take_turns(programs, 0.1, {})
    assert programs["works"].ended


def test_what_share_of_the_ceiling_the_job_reaches_is_counted_in_their_own_turns() -> None:
    """The machine is twice as fast in every second round; the job, at 0.8 of the ceiling, goes on when that ended."""
    turns: dict[str, list[tuple[float, float]]] = {"ceiling": [], "job": []}
    marks: dict[str, list[tuple[float, int]]] = {"ceiling": [], "job": []}
    done = {"ceiling": 0, "job": 0}
    for number in range(12):
        for name, images in (("ceiling", 10), ("job", 8)):
            start = 10.0 * number + (5.0 if name == "job" else 0.0)
            turns[name].append((start, start + 5))
            for step in range(1, 5):
                done[name] += images * (1 + number % 2)
                marks[name].append((start + step, done[name]))
    marks["job"].append((200.0, 10_000))
    found = ratios(turns, marks)
    assert found["rounds"] == 11  # the last, in which one may have ended, is left out
    assert found["programs"]["job"]["of_ceiling"] == pytest.approx([0.8, 0.8, 0.8])
    with pytest.raises(JobError, match="measure with more images"):
        ratios({name: of_program[:3] for name, of_program in turns.items()}, marks)


def test_the_job_and_its_ceiling_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_synthetic_archive(tmp_path / "images", 3)
    monkeypatch.chdir(tmp_path)
    config = BenchmarkConfig("turns", data="images", images=800, images_per_shard=16)
    found = compare_in_turns(config, turn_s=0.4)
    assert found["rounds"] >= 3
    job, ceiling = found["programs"]["job"], found["programs"]["ceiling"]
    assert ceiling["of_ceiling"] == [1, 1, 1]
    share, low, high = job["of_ceiling"]
    assert 0 < low <= share <= high
    assert share == pytest.approx(job["images_per_s"] / ceiling["images_per_s"])


def test_turns_on_a_gpu_are_refused() -> None:
    with pytest.raises(ConfigError, match="--what turns is for CPUs"):
        BenchmarkConfig("turns", engine="torch-cuda")
    with pytest.raises(ConfigError, match="--representation goes with --what turns"):
        BenchmarkConfig("speed", representation="cells")


def test_peers_and_ceiling_score_the_same_images(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_synthetic_archive(tmp_path / "images", 3)
    monkeypatch.chdir(tmp_path)
    config = BenchmarkConfig("speed", data="images", images=40, images_per_shard=4)
    with bench(config) as made:
        assert len(list(Path(made.loose).rglob("*.jpg"))) == 40
        for name, of in (
            ("pytorch", made.loose),
            ("ceiling", made.shards),
            ("decoding", made.shards),
            ("forward", "40"),
        ):
            # In processes of their own, as the benchmark runs them: a DataLoader leaves its SIGCHLD handler behind.
            command = [sys.executable, "-m", "bcd_ray.benchmarks.peers", name, made.model, of, "openvino"]
            output, _ = run_program(command, {})
            when, done = np.array([line.split() for line in output.splitlines()], float).T
            assert done[-1] == 40
            assert (np.diff(when) >= 0).all()
        costs = stages(made)
    assert costs.keys() >= {"read", "decode", "network"}
    assert costs["network"] > 0


def test_growth_measures_the_job_on_simulated_nodes(ray_cluster: None, tmp_path: Path) -> None:
    config = BenchmarkConfig(
        "growth", str(tmp_path), images=60, images_per_shard=6, archive_sizes=(), shard_sizes=(), nodes=(2,)
    )
    found = growth(config)
    (measured,) = found["nodes"]
    assert (measured["images"], measured["nodes"]) == (60, 2)
    assert measured["steady"] > 0
    assert json.loads((tmp_path / "growth.json").read_text()) == found
    assert (tmp_path / "growth.png").stat().st_size > 0


def test_training_is_measured_beside_its_forward_passes(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # sooner than a Ray of its own
    found = training_cost(BenchmarkConfig("training", images=40, images_per_shard=4, rounds=1))
    assert found["passes"] > 40 * 2  # each image, and the views of those trained on
    assert 0 < found["forward_s"] < found["training_s"]
    assert found["again_s"] > 0
    assert found["ratio"] == [pytest.approx(found["training_s"] / found["forward_s"])] * 3
    parts = [found[f"{part}_s"] for part in ("identifying", "embedding", "fitting")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(found["training_s"])
    assert found["embedding_ratio"] == [pytest.approx(found["embedding_s"] / found["forward_s"])] * 3


def test_images_that_come_again_are_other_contents_of_the_same_pixels(tmp_path: Path) -> None:
    write_synthetic_archive(tmp_path / "data", 1)
    speed._link(str(tmp_path / "data"), tmp_path / "linked", most=10)
    contents = [path.read_bytes() for path in (tmp_path / "linked").rglob("*.jpg")]
    assert len(set(contents)) == 10
    pixels = [decode(content, Limits()) for content in contents]
    assert all(isinstance(each, Decoded) and each.damage is None for each in pixels)
    assert len({each.pixels.tobytes() for each in pixels if isinstance(each, Decoded)}) == 4


def test_a_million_images_cost_what_their_hours_do() -> None:
    assert cost_of_a_million(price=0.36, images_a_second=100) == pytest.approx(1.0)


def test_too_few_images_for_a_rate_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least ten times --images-per-shard"):
        BenchmarkConfig("speed", images=100, images_per_shard=64)
    with pytest.raises(ConfigError, match="at least ten times --images-per-shard"):
        BenchmarkConfig("growth", images=3000, images_per_shard=256)
    BenchmarkConfig("speed", images=3000, images_per_shard=256)


def test_no_nodes_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="--nodes must be at least 1"):
        BenchmarkConfig("growth", nodes=(0, 2))


def test_s3_is_named_as_such() -> None:
    with pytest.raises(ConfigError, match="it starts with s3://"):
        BenchmarkConfig("speed", s3="bucket/folder")


def test_another_revision_lies_in_a_folder_while_it_is_measured() -> None:
    if not (against.ROOT / ".git").exists():
        pytest.skip("this copy of the project is no git repository")
    with against.checkout("HEAD") as folder:
        assert (folder / "jobs" / "score.py").is_file()
    assert not folder.exists()
    with pytest.raises(ConfigError, match="name a git revision"), against.checkout("no-such-revision"):
        pass


def test_a_night_names_what_it_is_measured_against() -> None:
    with pytest.raises(ConfigError, match="which --against names"):
        BenchmarkConfig("night")
    with pytest.raises(ConfigError, match="which --against names"):
        BenchmarkConfig("speed", against="main")
    for what in ("night", "memory", "shard"):
        assert BenchmarkConfig(what, against="main").what == what


def test_rescoring_is_compared_with_scoring_and_with_another_revision_if_one_is_named() -> None:
    assert BenchmarkConfig("rescore").against == ""
    assert BenchmarkConfig("rescore", against="main").against == "main"
    speeds = {"rescoring": (100, 90), "scoring": (2, 3), "main": (2, 2)}
    found = rescore.compared({name: [{"steady": each} for each in of] for name, of in speeds.items()}, "steady")
    assert found["images_per_s"] == {"rescoring": 95, "scoring": 2.5, "main": 2}
    assert found["rescoring_is_times"] == {"scoring": [40, 30, 50], "main": [47.5, 45, 50]}


def test_figures_of_two_revisions_are_compared_round_by_round() -> None:
    runs = {"this": [{"wall_s": 2.0}, {"wall_s": 3.0}], "main": [{"wall_s": 4.0}, {"wall_s": 4.0}]}
    found = against.compared(runs, "main")
    assert found["medians"]["this"]["wall_s"] == 2.5
    assert found["this_over_other"]["wall_s"] == [0.625, 0.5, 0.75]


def test_a_night_on_a_long_history_is_planned_first_without_and_then_with_what_stands() -> None:
    found = history(BenchmarkConfig(what="history", images=1000, rounds=1))
    assert (found["images"], found["new"], found["runs"]) == (1000, 200, 365)
    for night in ("all_new", "first", "this"):
        assert found[night].keys() == {"listing_s", "plan_s", "peak_gb"}
