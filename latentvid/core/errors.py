"""Failures that users meet: one sentence, and the exit code that scripts can act on."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class LatentVidError(Exception):
    """A failure the user can understand and mend. Its text says what, where, and what to do."""

    exit_code = 1


class UsageError(LatentVidError):
    """A command line or a config asks for something that does not exist or cannot be."""

    exit_code = 2


class InputError(LatentVidError):
    """An input is missing, corrupt, or holds no video."""

    exit_code = 3


class CheckpointError(LatentVidError):
    """A checkpoint or latent file is missing, damaged, or made for something else."""

    exit_code = 4


class ResourceError(LatentVidError):
    """Memory, disk or a device does not suffice."""

    exit_code = 5


class PartialFailure(LatentVidError):
    """Some items of a batch failed; the others are done."""

    exit_code = 6


def as_known(error: BaseException) -> LatentVidError | None:
    """Return what a failure of the system or of text is in our terms; None for what may be a fault of ours.

    The last resort, where no sentence of more sense was made closer to the failure.
    """
    if isinstance(error, LatentVidError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(f"out of memory ({error or 'the system refused'}); try --max-memory, or a smaller size.")
    if isinstance(error, RecursionError):
        return InputError("a file is nested too deeply to be read.")
    if isinstance(error, UnicodeError):
        return InputError(
            f"a name or text cannot be read as UTF-8 ({error.reason if hasattr(error, 'reason') else error})."
        )
    if isinstance(error, ValueError) and "null byte" in str(error):
        return UsageError("the name of a file holds a zero byte.")
    return _of_system(error) if isinstance(error, OSError) and error.errno else None


def _of_system(error: OSError) -> LatentVidError:
    place, why = error.filename or "a file", error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"{place}: the disk is full; free space and repeat.")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM):
        return ResourceError(f"{place}: {why}.")
    if error.errno in (errno.ENAMETOOLONG, errno.EROFS, errno.EPERM):
        return UsageError(f"{place}: {why}; name it otherwise.")
    return InputError(f"{place}: {why}.")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `known`, or the whole list where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
