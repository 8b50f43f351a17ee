"""The latents of a film, by frame number, as its run folder keeps them; what a later film of ours goes on from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from latentvid.autoencoders.latent_file import LatentFile
from latentvid.core.errors import LatentVidError, UsageError
from latentvid.extension.plan import FilmPlan, Window
from latentvid.film.folder import Carry, RunFolder, load_carry, run_path
from latentvid.film.settings import FilmSettings
from latentvid.pipeline import LatentVideoPipeline
from latentvid.video.rate import as_rate


class FilmLatents:
    """Frames `first` .. `stop` - 1, as the plan counts them: the last of the clip that is continued, then its own."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.plan = FilmPlan(**run.record.plan)  # type: ignore[arg-type]
        self._given = LatentFile(run.given) if self.plan.given else None
        self.first = self.plan.given - (self._given.num_frames if self._given else 0)
        self.stop = self.plan.given + self.plan.num_frames

    def read(self, start: int, stop: int) -> Tensor:
        """Return frames start .. stop - 1, [c t h w].

        Raises:
            UsageError: some are not there.
            CheckpointError: a file is missing or damaged.
        """
        if not self.first <= start < stop <= self.stop:
            raise UsageError(f"frames {start} to {stop - 1} are not among those of {self.run.path}.")
        parts = []
        while start < stop:
            file, offset, end = self._piece(start)
            end = min(end, stop)
            parts.append(file.read(start - offset, end - offset))
            start = end
        return torch.cat(parts, dim=1)

    def tail(self, count: int) -> Tensor:
        """Return the last `count` frames, [c t h w]; a film that is shorter stands still before it begins."""
        found = self.read(max(self.first, self.stop - count), self.stop)
        missing = count - found.shape[1]
        return torch.cat([found[:, :1].expand(-1, missing, -1, -1), found], dim=1) if missing else found

    def _piece(self, number: int) -> tuple[LatentFile, int, int]:
        """Return the file that holds a frame, the number of its first frame, and that behind its last."""
        if self._given is not None and number < self.plan.given:
            return self._given, self.first, self.plan.given
        window = self._window_of(number)
        return LatentFile(self.run.latents(window.index)), window.new_from, window.keep_until

    def _window_of(self, number: int) -> Window:
        index = max(0, (number - self.plan.given) // self.plan.window)
        while number >= self.plan[index].keep_until:
            index += 1
        return self.plan[index]


def run_of_film(clip: Path, sha256: str, pipeline: LatentVideoPipeline) -> RunFolder | None:
    """Return the run folder that made a file, if it lies beside it and holds latents that the model understands.

    Args:
        sha256: of the file as it is now; a file that was edited since is no film of ours.
    """
    try:
        run = RunFolder.open(run_path(clip))
        is_whole = run.record.film is not None and run.record.film.sha256 == sha256
        if not is_whole or run.settings.model_fps != str(as_rate(pipeline.config.fps)):
            return None
        FilmLatents(run).tail(1)
        LatentFile(run.latents(run.record.num_windows - 1)).check_fits(pipeline.autoencoder)
        return run
    except (LatentVidError, OSError, RuntimeError, LookupError):  # whatever lies there is no run of ours
        return None


def end_of_film(run: RunFolder, settings: FilmSettings, weights: dict[str, str], device: torch.device) -> Carry | None:
    """Return what the film's next window would have started from; None where another film is to go on from it.

    Args:
        settings, weights: of the film that goes on.
    """
    plan, own = FilmLatents(run).plan, run.settings
    last = plan[len(plan) - 1]
    path = run.carry(len(plan))
    is_same = (
        run.record.weights == weights
        and own.rule == settings.rule
        and own.num_inference_steps == settings.num_inference_steps
        and last.keep_until == last.stop  # else the last frames were dropped
        and all(reroll.window != last.index for reroll in run.record.rerolls)
        and path.is_file()
    )
    return load_carry(path, device) if is_same else None
