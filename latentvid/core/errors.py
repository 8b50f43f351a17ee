"""Failures that users meet: one sentence, and the exit code that scripts can act on."""

from __future__ import annotations

import difflib
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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `known`, or the whole list where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
