"""The whole path on drawn, synthetic smears, in some two minutes: `python jobs/quickstart.py`."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from bcd_ray.archives.config import PackConfig
from bcd_ray.cli import run
from bcd_ray.config import at_least, normalize
from bcd_ray.errors import EXIT_OK, ConfigError
from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.learning.config import TrainConfig
from bcd_ray.scoring.config import ScoreConfig

MARK = ".bcd_ray_quickstart"


@dataclass(frozen=True)
class QuickstartConfig:
    """Draw a synthetic archive, train, evaluate, pack, score: the whole path in some two minutes."""

    output: str = "quickstart"
    """Folder for everything the quickstart writes; emptied at each run."""
    images_per_class: int = 60
    """Synthetic smears to draw for each of the four classes."""

    def __post_init__(self) -> None:
        normalize(self, "output")
        at_least(self, 10, "images_per_class")


def main(config: QuickstartConfig) -> int:
    folder = fresh_folder(Path(config.output))
    labelled, rest, shards = folder / "synthetic" / "labelled", folder / "synthetic" / "rest", folder / "shards"
    model, evaluation, scores = folder / "model", folder / "evaluation", folder / "scores"

    from bcd_ray.archives.packing import pack
    from bcd_ray.evaluation.job import evaluate
    from bcd_ray.learning.job import train
    from bcd_ray.learning.synthetic import write_synthetic_archive
    from bcd_ray.metrics.classification import format_metrics
    from bcd_ray.progress import say
    from bcd_ray.runtime import ray_session
    from bcd_ray.scoring.job import score

    say("1/5  drawing synthetic smears")
    write_synthetic_archive(labelled, config.images_per_class, seed=0)
    write_synthetic_archive(rest, config.images_per_class // 2, seed=1)
    say("     starting Ray on this machine")
    with ray_session():
        say("2/5  training")
        tested = train(TrainConfig(data=str(labelled), output=str(model)))
        say("3/5  evaluating on smears not seen in training")
        evaluated = evaluate(EvaluateConfig(model=str(model), data=str(rest), output=str(evaluation)))
        say("4/5  packing them into shards")
        packed = pack(PackConfig(input=str(rest), output=str(shards), images_per_shard=64))
        say("5/5  scoring the shards")
        outcome = score(ScoreConfig(model=str(model), input=(str(shards),), output=str(scores)))
    assert outcome.manifest is not None  # the folder is fresh, so nothing was published before

    print(f"""
Done, on SYNTHETIC smears: drawn by this program, so the figures say that the path works, not how well the model does.

test part of the training run
{format_metrics(tested)}

evaluation on further smears
{format_metrics(evaluated)}

written
  {model}/  model bundle, with metrics.json, MODEL_CARD.md and figures/
  {evaluation}/  metrics.json and figures/
  {shards}/  {packed.shards} tar shards of {packed.images} images
  {outcome.manifest["outputs"][0]["uri"]}  {outcome.manifest["outputs"][0]["rows"]} rows

read the predictions
  python -c "import pandas; print(pandas.read_parquet('{scores}/predictions').head())"
""")
    return EXIT_OK


def fresh_folder(folder: Path) -> Path:
    """The folder, empty; only what an earlier quickstart wrote is deleted."""
    if (folder / MARK).exists():
        shutil.rmtree(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output {folder} holds something else: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    return folder


if __name__ == "__main__":
    run(QuickstartConfig, main)
