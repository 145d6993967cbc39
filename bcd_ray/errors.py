"""What can go wrong, each with the exit code it ends a job with.

BcdRayError
├── ConfigError      2: wrong usage or configuration; raised before any cluster work
└── JobError         1: the job failed
    └── StorageError 1: an object could not be read or written
        ├── NotFoundError  there is no such object
        ├── ChangedError   the object is no longer the one that was listed
        └── UnsafeError    it is no regular file, or a link that leads elsewhere
"""

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_UNSCORED = 3  # published, but some images could not be scored
EXIT_INTERRUPTED = 130  # by Ctrl-C; the same command goes on
EXIT_TERMINATED = 143  # by SIGTERM; the same command goes on


class BcdRayError(Exception):
    """Base of all errors of this package; the message is one line that names the remedy."""

    exit_code = EXIT_FAILED


class ConfigError(BcdRayError):
    """Wrong usage or configuration, found before any cluster work."""

    exit_code = EXIT_CONFIG


class JobError(BcdRayError):
    """The job failed."""


class StorageError(JobError):
    """An object could not be read or written."""


class NotFoundError(StorageError):
    """There is no such object."""


class ChangedError(StorageError):
    """The object is no longer the one that was listed."""


class UnsafeError(StorageError):
    """It is no regular file, or a link that leads out of its folder: it is not read."""
