"""The drift guard of a film: every window against the first of its scene, and what is done where it moved too far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import PartialFailure
from latentvid.core.levels import Levels
from latentvid.extension.guard import Statistics, bring_back
from latentvid.extension.plan import FilmPlan
from latentvid.extension.rollout import MadeWindow
from latentvid.extension.rules import OverlapRule
from latentvid.film.folder import RunFolder
from latentvid.film.settings import FilmSettings
from latentvid.metrics.shift import beyond, in_words, shifts


class Guard:
    """Watches the windows of one run. All that it knows comes from the run folder, so a resumed film is the same."""

    def __init__(self, run: RunFolder, plan: FilmPlan) -> None:
        self.run, self.plan = run, plan
        self.shifts: Mapping[str, float] = {}
        """Of the newest window."""
        self._warning = ""

    def correct(self, made: MadeWindow, *, rule: OverlapRule, levels: Levels) -> MadeWindow:
        """Return the window as the guard lets it pass."""
        settings, index = self.run.settings, made.window.index
        first = scene_start(settings, self.plan, index)
        follows_clip = first == 0 and settings.clip is not None  # whose end is what the film should stay like
        if settings.drift_guard != "correct" or first is None or (first == index and not follows_clip):
            return made
        path = self.run.latents(first)
        if follows_clip:
            path = self.run.reference if self.run.reference.is_file() else self.run.given
        reference = LatentFile(path).read()[None].to(made.latents)
        return bring_back(made, Statistics.of(reference), settings.drift_limit, rule=rule, levels=levels)

    def judge(self, index: int, curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Return what `measure` finds, and act where it is too far.

        Raises:
            PartialFailure: it is, and the guard is to stop then.
        """
        settings = self.run.settings
        self.shifts = found = self.measure(index, curves)
        too_far = beyond(found, settings.drift_limit)
        if too_far and settings.drift_guard in ("warn", "stop"):
            self._warning = f"window {index} lies beyond the limit of {settings.drift_limit:.0%}: {in_words(too_far)}."
        if too_far and settings.drift_guard == "stop":
            raise PartialFailure(
                f"{self._warning} It was not kept; the {index} before it are. `latentvid resume {self.run.path} "
                "--drift-guard correct` (or warn) goes on."
            )
        return found

    def measure(self, index: int, curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Return how far a window lies from its scene's first, by its drift curves; nothing for that one itself."""
        first = scene_start(self.run.settings, self.plan, index)
        return {} if first is None or first == index else shifts(curves, self.run.window(first).curves)

    def take_warning(self) -> str:
        """Return what is to be said of the newest window, once."""
        warning, self._warning = self._warning, ""
        return warning


def scene_start(settings: FilmSettings, plan: FilmPlan, index: int) -> int | None:
    """Return the first window that shows wholly what window `index` shows; None where this one leads over to it."""
    if settings.prompts is None:
        return 0
    start, prompt = index, settings.prompts_of(plan, index)[1]
    while start and settings.prompts_of(plan, start - 1)[1] == prompt:
        start -= 1
    if settings.prompts_of(plan, start)[0] != prompt:
        start += 1
    return start if start <= index else None


def guard_notes(run: RunFolder) -> list[str]:
    """Return what the guard of a finished run saw and did, a sentence each."""
    settings = run.settings
    if settings.drift_guard == "off":
        return []
    windows = [run.window(index) for index in range(run.record.num_windows)]
    corrected = [str(window.index) for window in windows if window.is_corrected]
    moved = [str(window.index) for window in windows if beyond(window.shifts, settings.drift_limit)]
    limit = f"{settings.drift_limit:.0%}"
    notes = []
    if corrected:
        notes.append(f"the drift guard brought {_windows(corrected)} back towards the first.")
    if moved and settings.drift_guard != "correct":
        notes.append(f"{_windows(moved)} lie more than {limit} from their scene's first.")
    return notes or [f"the drift guard found every window within {limit} of its scene's first."]


def _windows(numbers: Sequence[str]) -> str:
    """Name a few windows, and count many."""
    if len(numbers) > 6:
        return f"{len(numbers)} windows"
    return f"window{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
