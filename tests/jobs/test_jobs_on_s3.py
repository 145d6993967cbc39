"""Every job reads from and writes to an S3 store; scoring does so in test_scoring.py too, at length."""

from pathlib import Path
from uuid import uuid4

from bcd_ray import storage
from bcd_ray.archives.config import PackConfig
from bcd_ray.archives.packing import pack
from bcd_ray.evaluation.config import EvaluateConfig
from bcd_ray.evaluation.job import evaluate
from bcd_ray.learning.config import TrainConfig
from bcd_ray.learning.job import train
from bcd_ray.ledger.verification import clear_leftovers, verify
from bcd_ray.scoring.config import ScoreConfig
from bcd_ray.scoring.job import score


def test_train_evaluate_pack_score_and_verify_on_s3(ray_cluster: None, s3: str, synthetic_archive: Path) -> None:
    folder = storage.join(s3, uuid4().hex)
    data, model, shards, scores = (storage.join(folder, name) for name in ("data", "model", "shards", "scores"))
    files = [path for path in synthetic_archive.rglob("*") if path.is_file()]
    for path in files:
        storage.write_bytes(storage.join(data, str(path.relative_to(synthetic_archive))), path.read_bytes())
    images = sum(path.suffix == ".jpg" for path in files)

    trained = train(TrainConfig(data=data, output=model, augmented_views=1, epochs=2, representation="field"))
    assert trained["synthetic"]
    assert {"model.safetensors", "model.json", "model.sha256", "MODEL_CARD.md"} <= set(storage.list_names(model))
    assert (
        evaluate(EvaluateConfig(model=model, data=data, output=storage.join(folder, "evaluation")))["images"] == images
    )
    assert pack(PackConfig(input=data, output=shards, format="parquet", images_per_shard=30)).images == images
    manifest = score(ScoreConfig(model=model, input=(shards,), output=scores)).manifest
    assert manifest is not None
    assert manifest["statuses"] == {"scored": images}
    assert verify(scores) == []
    assert clear_leftovers(scores) > 0
    assert verify(scores) == []
