"""What can go wrong, each with the exit code it ends a job with.

BcdRayError
├── ConfigError      2: wrong usage or configuration; raised before any cluster work
│   └── NoInputError 2: an input is not there, or holds nothing; 5 where a night was told to expect it
└── JobError         1: the job failed
    ├── DeadlineError      4: stopped at its deadline, with what is done kept
    ├── MissedError        5: what was expected tonight is not there
    ├── HeldError          6: another run holds the output
    └── StorageError       1: an object could not be read or written
        ├── NotFoundError  there is no such object
        ├── ChangedError   the object is no longer the one that was listed
        └── UnsafeError    it is no regular file, or a link that leads elsewhere
"""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_UNSCORED = 3  # published, but some images could not be scored
EXIT_DEADLINE = 4  # nothing is published; the next run goes on
EXIT_MISSED = 5
EXIT_HELD = 6
EXIT_ALARM = 7  # published, but a limit on what was found is passed
EXIT_HUNG_UP = 129  # by a terminal that closed; the same command goes on
EXIT_INTERRUPTED = 130  # by Ctrl-C; the same command goes on
EXIT_TERMINATED = 143  # by SIGTERM; the same command goes on


class BcdRayError(Exception):
    """Base of all errors of this package; the message is one line that names the remedy."""

    exit_code = EXIT_FAILED


class ConfigError(BcdRayError):
    """Wrong usage or configuration, found before any cluster work."""

    exit_code = EXIT_CONFIG


class NoInputError(ConfigError):
    """An input is not there, or holds no image and no shard."""


class JobError(BcdRayError):
    """The job failed."""


class DeadlineError(JobError):
    """The run was stopped at its deadline; what is done is kept, and nothing is published."""

    exit_code = EXIT_DEADLINE


class MissedError(JobError):
    """What was expected tonight is not there."""

    exit_code = EXIT_MISSED


class HeldError(JobError):
    """Another run holds the output."""

    exit_code = EXIT_HELD


class StorageError(JobError):
    """An object could not be read or written."""


class NotFoundError(StorageError):
    """There is no such object."""


class ChangedError(StorageError):
    """The object is no longer the one that was listed."""


class UnsafeError(StorageError):
    """It is no regular file, or a link that leads out of its folder: it is not read."""
