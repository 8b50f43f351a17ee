"""What may change when a training run is resumed, and how to say what must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from latentvid.core.errors import UsageError

OnNote = Callable[[str], object]
"""Hears what the user should know."""
HARMLESS = ("loop.log_every", "loop.save_every", "loop.prefetch", "max_eval_frames")
"""Ends of the names of settings that change nothing about what is trained."""
_STEPS, _PRECISION, _SCHEDULE = "loop.steps", "loop.mixed_precision", "loop.schedule"
_TOLD = 4
_UNSET = object()


def check_settings(
    where: object,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    taken: Mapping[str, int],
    *,
    free: tuple[str, ...] = (),
) -> list[str]:
    """Compare the settings of a run with those that it is to go on with; return what the user should know of changes.

    Args:
        where: the run, for the sentence.
        before, now: nested settings.
        taken: steps that were taken, by the names of the settings that bound them ("loop.steps").
        free: names of settings, with all below them, that nothing was done with yet.

    Raises:
        UsageError: a setting changed that what was trained depends on, or fewer steps are asked for than were taken.
    """
    notes, refused = [], []
    for name, old, new in differences(before, now):
        if any(name == each or name.startswith(f"{each}.") for each in free) or _ends(name, *HARMLESS):
            continue
        if _ends(name, _STEPS):
            notes += _steps_note(where, name, old, new, taken.get(name, 0), _at(now, name.replace(_STEPS, _SCHEDULE)))
        elif _ends(name, _PRECISION) and "fp16" not in (old, new):
            notes.append(f"{name} was {old!r} and is {new!r} from here on; the run is not what either alone would give")
        else:
            refused.append(f"{name} was {_shown(old)} and is now {_shown(new)}")
    if refused:
        more = f" and {len(refused) - _TOLD} more" if len(refused) > _TOLD else ""
        raise UsageError(
            f"{where} was begun with other settings: {', '.join(refused[:_TOLD])}{more}; resume it with those that it"
            " was begun with, or start in another folder."
        )
    return notes


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each setting that differs between two nested ones: its name with dots, and both values.

    >>> list(differences({"loop": {"lr": 1, "steps": 2}}, {"loop": {"lr": 1, "steps": 3}}))
    [('loop.steps', 2, 3)]
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(before.get(key, _UNSET), now.get(key, _UNSET), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{name}.{number}")
    elif before != now:
        yield name, before, now


def compare_files(where: object, what: str, before: list[str], now: list[str]) -> None:
    """Refuse to go on with other files.

    Args:
        what: is done with them, for the sentence.

    Raises:
        UsageError: naming the first that is missing, and the first that is new.
    """
    gone, new = [[path for path in a if path not in b] for a, b in ((before, now), (now, before))]
    told = [f"{path} is not among them any more" for path in gone[:1]] + [f"{path} is new" for path in new[:1]]
    if before != now:
        raise UsageError(
            f"{where} was begun with other files {what}: {' and '.join(told) or 'they come in another order'};"
            " resume it with the same ones, or start in another folder."
        )


def _steps_note(where: object, name: str, old: Any, new: int, taken: int, schedule: Any) -> list[str]:
    if new < taken:
        raise UsageError(f"{where} has taken {taken} steps; {name} can be {taken} or more, not {new}.")
    if not taken:
        return []
    if schedule != "cosine":
        return [f"{name} was {old} and is now {new}; the run goes on from step {taken}"]
    return [
        f"{name} was {old} and is now {new}; the learning rate falls along a cosine to the last step, so from step"
        f" {taken} on it is that of a run of {new} steps, which it was not before"
    ]


def _at(settings: Mapping[str, Any], name: str) -> Any:
    value: Any = settings
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _ends(name: str, *ends: str) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _shown(value: Any) -> str:
    if value is _UNSET:
        return "not set"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
