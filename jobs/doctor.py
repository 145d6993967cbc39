"""Is all there that a night needs? `python jobs/doctor.py --config FILE`, with the options of jobs/nightly.py."""

import json

from bcd_ray.cli import run
from bcd_ray.errors import EXIT_FAILED, EXIT_OK
from bcd_ray.nights.config import DoctorConfig, with_file


def main(config: DoctorConfig) -> int:
    from bcd_ray.nights.doctor import examine

    checks = []
    for check in examine(config):
        checks.append(check)
        if not config.json:
            print(f"{'ok' if check.ok else 'FAIL':4}  {check.name:14}  {check.words}", flush=True)
    if config.json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    return EXIT_OK if all(check.ok for check in checks) else EXIT_FAILED


if __name__ == "__main__":
    run(DoctorConfig, main, arguments=with_file)
