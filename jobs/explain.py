"""Show where the evidence lies: `python jobs/explain.py --model DIR --scores OUTPUT --output DIR`, or `--input URI`."""

from bcd_ray.cli import run
from bcd_ray.errors import EXIT_OK, EXIT_UNSCORED
from bcd_ray.evaluation.config import ExplainConfig


def main(config: ExplainConfig) -> int:
    from bcd_ray.archives.suffixes import left_out_words, unexpected
    from bcd_ray.evaluation.explaining import explain

    result = explain(config)
    print(f"{len(result['images'])} heat maps written to {config.output}, {len(result['left_out'])} images left out")
    for part, value in result["similarity_to_randomised"].items():
        print(f"  similarity to the maps of a model with random {part.replace('_', ' ')}: {value:.2f}")
    if files := result["files_left_out"]:
        print(f"{sum(files.values()):,} files and members left out, which are no images: {left_out_words(files)}")
    return EXIT_UNSCORED if len(result["left_out"]) + unexpected(files) > config.max_left_out else EXIT_OK


if __name__ == "__main__":
    run(ExplainConfig, main)
