"""Pack loose images into shards: `python jobs/pack.py --input URI --output URI --format tar`."""

from bcd_ray.archives.config import PackConfig
from bcd_ray.cli import run
from bcd_ray.errors import EXIT_OK, EXIT_UNSCORED
from bcd_ray.progress import one_line


def main(config: PackConfig) -> int:
    from bcd_ray.archives.packing import pack
    from bcd_ray.archives.suffixes import unexpected

    packed = pack(config)
    print(f"{packed.images:,} images packed into {packed.shards:,} shards in {config.output}")
    for failure in packed.failures:
        print(one_line(f"not packed: {failure}"))
    return EXIT_UNSCORED if packed.failures or unexpected(packed.left_out) > config.max_left_out else EXIT_OK


if __name__ == "__main__":
    run(PackConfig, main)
