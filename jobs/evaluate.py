"""Measure a trained model on labelled images: `python jobs/evaluate.py --model DIR --data URI --output DIR`.

Or measure the settings: `python jobs/evaluate.py --cross-validate --data URI --output DIR`.
"""

from bcd_ray.cli import run
from bcd_ray.errors import EXIT_OK, EXIT_UNSCORED
from bcd_ray.evaluation.config import EvaluateConfig


def main(config: EvaluateConfig) -> int:
    from bcd_ray.learning.assessment import count_left_out

    if config.cross_validate:
        from bcd_ray.evaluation.cross_validation import validate
        from bcd_ray.evaluation.outputs import format_validation

        metrics = validate(config)
        print(format_validation(metrics))
    else:
        from bcd_ray.evaluation.job import evaluate
        from bcd_ray.metrics.classification import format_metrics

        metrics = evaluate(config)
        print(format_metrics(metrics))
    if metrics["unreadable"]:
        print(f"{len(metrics['unreadable'])} images could not be used: see metrics.json")
    print(f"metrics and figures written to {config.output}")
    return EXIT_UNSCORED if count_left_out(metrics) > config.max_left_out else EXIT_OK


if __name__ == "__main__":
    run(EvaluateConfig, main)
