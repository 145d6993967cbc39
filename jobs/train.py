"""Train the classifier on a folder per class: `python jobs/train.py --data URI --output DIR`."""

from bcd_ray.cli import run
from bcd_ray.errors import EXIT_OK, EXIT_UNSCORED
from bcd_ray.learning.config import TrainConfig


def main(config: TrainConfig) -> int:
    from bcd_ray.learning.assessment import count_left_out
    from bcd_ray.learning.job import train
    from bcd_ray.metrics.classification import format_metrics
    from bcd_ray.reports.report import audit_words

    metrics = train(config)
    print(format_metrics(metrics))
    print(f"shortcuts: {audit_words(metrics)}")
    if metrics["unreadable"]:
        print(f"{len(metrics['unreadable'])} images could not be used: see metrics.json")
    print(f"model bundle written to {config.output}")
    return EXIT_UNSCORED if count_left_out(metrics) > config.max_left_out else EXIT_OK


if __name__ == "__main__":
    run(TrainConfig, main)
