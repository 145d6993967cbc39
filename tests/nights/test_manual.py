"""The manual for whoever is paged, docs/operate.md: its commands, one after the other, in a lab as it has it."""

import re
import shlex
import shutil
from datetime import date
from pathlib import Path

import pytest

from bcd_ray import read
from bcd_ray.errors import EXIT_OK
from bcd_ray.model.bundle import load_bundle, save_bundle
from bcd_ray.nights import doctor
from nights.running import ROOT, Job

PAGE = (ROOT / "docs/operate.md").read_text()


def commands(section: str) -> list[list[str]]:
    """The words of each job that a section tells to run."""
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    lines = [
        line
        for block in re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    return [shlex.split(line)[1:] for line in lines if line.startswith("python jobs/")]


@pytest.fixture
def lab(bundle: Path, synthetic_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: two models, a delivery of today, images that come at any time, and a file of options."""
    shutil.copytree(bundle, tmp_path / "models/first")
    second = load_bundle(str(bundle))
    head = (2 * second.model.tensors["head.weight"], second.model.tensors["head.bias"])
    save_bundle(str(tmp_path / "models/second"), second.model.with_head(*head), second.triage, {}, {})
    smears = sorted(synthetic_archive.glob("*/*.jpg"))
    for folder, few in (
        (f"smears/{date.today()}", smears[:2]),
        ("loose/patient-17", smears[2:4]),
        ("loose", smears[4:5]),
    ):
        (tmp_path / "archive" / folder).mkdir(parents=True, exist_ok=True)
        for smear in few:
            shutil.copy(smear, tmp_path / "archive" / folder)
    (tmp_path / "nightly.toml").write_text(
        "model = 'models/first'\noutput = 'scores'\ninput = ['archive/smears/{date}', 'archive/loose']\n"
        "date = 'today'\nexpect = true\ntable = 'delta'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_PROBE_IMAGES_PER_CLASS", 2)
    monkeypatch.setattr(doctor, "_LEAST_ROOM", 1)
    return tmp_path


def test_every_command_does_what_the_manual_says(lab: Path, nightly: Job, in_process: Job) -> None:
    pytest.importorskip("deltalake")

    def follow(section: str) -> None:
        assert commands(section)
        for job, *options in commands(section):
            ended = in_process(Path(job).stem, *options)
            assert ended.code == EXIT_OK, f"{section}: {job} {options}: {ended.out[-500:]} {ended.err[-500:]}"

    def versions() -> set[str]:
        return set(read.current("scores")["model_version"].to_pylist())

    follow("The first night")
    assert read.current("scores").num_rows == 5
    first = versions()
    follow("Promote a model")
    assert len(versions()) == 1
    assert versions() != first
    (lab / "nightly.toml").write_text((lab / "nightly.toml").read_text().replace("models/first", "models/second"))
    follow("Recover")
    for folder in ("_work", "table"):  # of which no copy is needed
        shutil.rmtree(lab / "scores" / folder)
    follow("Upgrade")
    assert nightly("--config", "nightly.toml").record["reason"] == "nothing new"
    assert in_process("verify", "--output", "scores").code == EXIT_OK
    follow("Delete a patient's rows")
    assert not any("patient-17" in uri for uri in read.current("scores")["image_uri"].to_pylist())
    assert read.current("scores").num_rows == 3
    assert in_process("verify", "--output", "scores").code == EXIT_OK
