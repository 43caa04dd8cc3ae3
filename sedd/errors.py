"""Errors a user can meet, each with the exit status the verbs end with.

A message says what came, what was wanted and how to fix it. Everything else that is raised is a
bug of ours and keeps its traceback.
"""

from typing import ClassVar


class SeddError(Exception):
    """Base of every error that a user can mend."""

    exit_code: ClassVar[int] = 1


class UsageError(SeddError, ValueError):
    """A flag, label or path that cannot be used as it was given."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration with unknown keys, wrong types or values that contradict each other."""


class DataError(SeddError, ValueError):
    """Cells, labels or embeddings that the model cannot learn from as they are."""

    exit_code = 65


class OutputExistsError(SeddError):
    """A result stands where this one would be written, or another process is writing it."""

    exit_code = 73


class StorageError(SeddError, OSError):
    """A disk, folder or checkpoint that cannot be read or written."""

    exit_code = 74


class Preempted(SeddError):  # noqa: N818  (the scheduler's word; not a failure)
    """The run stopped early on purpose; the same command goes on from its last checkpoint."""

    exit_code = 75
