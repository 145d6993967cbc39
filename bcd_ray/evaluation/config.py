"""What evaluation, cross-validation and explaining can be told."""

from dataclasses import dataclass, fields

from bcd_ray import uris
from bcd_ray.config import at_least, normalize, outside
from bcd_ray.errors import ConfigError
from bcd_ray.learning.config import FitOptions, Protocol


@dataclass(frozen=True)
class EvaluateConfig(FitOptions):
    """Measure a trained model on a folder of labelled images, or, with --cross-validate, the settings themselves."""

    data: str
    """Folder of labelled images, one folder per class: a path or s3://."""
    output: str
    """Where metrics and figures go: an empty or new folder, a path or s3://."""
    model: str = ""
    """Model bundle, written by jobs/train.py: a path or s3://. Not with --cross-validate."""
    cross_validate: bool = False
    """Fit heads over folds and seeds instead of measuring a model."""
    spoil: bool = False
    """Also spoil the images (blur, light, JPEG compression, noise, grey), and say how many of them are sent to review,
    and how many of the others are wrong."""
    split: tuple[Protocol, ...] = ("random", "blocked", "forward")
    """Protocols to cross-validate (see jobs/train.py)."""
    folds: int = 5
    """Folds of each protocol; `forward` always has two, the first share of the file numbers and the last. 0 leaves out
    each group of `grouped` in turn, the figure to go by, and gives the other protocols 5."""
    few_shot: tuple[int, ...] = ()
    """With `--split grouped --folds 0`: also train on so many images of the group that is left out, drawn anew for each
    of --seeds, and test on the rest. What labelling a few images of a new day brings."""
    seeds: int = 3
    """Repetitions, each with a split and a fit of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        normalize(self, "data", "output", *(["model"] if self.model else []))
        if self.cross_validate == bool(self.model):
            raise ConfigError("give either --model, to measure a model, or --cross-validate, to measure the settings")
        if self.cross_validate and self.spoil:
            raise ConfigError("--spoil goes with --model")
        if not self.cross_validate:
            kept = {
                "data",
                "output",
                "model",
                "cross_validate",
                "cache",
                "max_cache_bytes",
                "block",
                "group_pattern",
                "group_table",
                "allow_missing_classes",
                "max_left_out",
                "group_column",
                "spoil",
            }
            for each in fields(self):
                if each.name not in kept and getattr(self, each.name) != each.default:
                    raise ConfigError(f"--{each.name.replace('_', '-')} goes with --cross-validate")
        if self.folds < 0 or self.folds == 1:
            raise ConfigError("--folds must be at least 2, or 0 to leave out each group in turn")
        if self.few_shot and (self.folds or "grouped" not in self.split):
            raise ConfigError("--few-shot goes with --split grouped --folds 0, which leaves out each group in turn")
        if any(count < 1 for count in self.few_shot):
            raise ConfigError("--few-shot must be at least 1")
        at_least(self, 1, "seeds")
        if not self.split:
            raise ConfigError("--split names no protocol")
        self._check_groups(self.split)


@dataclass(frozen=True)
class ExplainConfig:
    """Draw heat maps: of rows that were sent to review, or of any images."""

    model: str
    """Model bundle, written by jobs/train.py: a path or s3://."""
    output: str
    """Where the maps and explanations.json go: an empty or new folder, a path or s3://."""
    scores: str = ""
    """Output of jobs/score.py: its scored rows that this model sent to review are explained."""
    input: tuple[str, ...] = ()
    """Archives of images to explain, in place of --scores."""
    limit: int = 100
    """Most images to explain."""
    max_left_out: int = 0
    """Images that cannot be explained, and files that are no images, before the exit code says so (3). Hidden ones, and
    what usually lies beside images (.json, .cls, .txt, .csv, .md ...), are counted apart."""

    def __post_init__(self) -> None:
        if bool(self.scores) == bool(self.input):
            raise ConfigError("give either --scores, for rows sent to review, or --input, for images")
        object.__setattr__(self, "input", tuple(uris.normalize(uri) for uri in self.input))
        normalize(self, "model", "output", *(["scores"] if self.scores else []))
        outside(self, "input")
        at_least(self, 1, "limit")
        at_least(self, 0, "max_left_out")
