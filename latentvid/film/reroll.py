"""One window of a finished film made again, held to both its neighbours; all other segments keep every byte.

Networks trained with a noise level per frame are shown the neighbouring frames clean ("Diffusion Forcing", arXiv
2407.01392); others are brought back to them at every step, noised to its level, as in RePaint (arXiv 2201.09865).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from latentvid.autoencoders.base import FilmDecoder
from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.rng import Rng
from latentvid.extension.plan import Window
from latentvid.extension.rollout import MadeWindow
from latentvid.extension.rules import ContextRule, Setting, Tail
from latentvid.film.complete import finish_run, report_of, shots_of
from latentvid.film.extend import check_clip
from latentvid.film.finish import check_film
from latentvid.film.folder import NUM_IN_FRONT, RunFolder
from latentvid.film.latents import FilmLatents
from latentvid.film.make import FilmReport, Maker, OnProgress, last_of, measure, resumable
from latentvid.film.runs import check_model, consistent, load_pipeline
from latentvid.film.settings import Reroll, WindowRecord
from latentvid.pipeline import LatentVideoPipeline, Sampling
from latentvid.sampling.context import keep_given, with_clean_context
from latentvid.sampling.solver import OnStep
from latentvid.temporal.convolution import KERNEL, TemporalConvolution

PRIMING_CHUNK = 16


def reroll_window(
    run: str | Path,
    index: int,
    *,
    seed: int | None = None,
    prompt: str | None = None,
    pipeline: LatentVideoPipeline | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> FilmReport:
    """Make window `index` of a finished film again, and the film of all.

    The frames that the next window went on from stay, so the window's other frames are made between two anchors.

    Args:
        run: the run folder, or its film.
        index: the window, from 0.
        seed: of its noise; by default another one each time.
        prompt: by default the window's own.
        pipeline: the model, if it was not loaded from a folder.
        overwrite: replace whatever lies where the film is; without it, only the film that this run made.

    Raises:
        UsageError: no such window, or none of its frames is free, or another file lies where the film was.
        CheckpointError: the run is unfinished or damaged, or the model was changed.
    """
    start = time.perf_counter()
    folder = RunFolder.open(run)
    folder.overwrite = overwrite
    with folder.held(), consistent(folder):
        if folder.record.film is None:
            raise CheckpointError(f"{folder.path}: unfinished; first `latentvid resume {folder.path}`.")
        if not 0 <= index < folder.record.num_windows:
            raise UsageError(f"window {index} does not exist; the film has 0 to {folder.record.num_windows - 1}.")
        pipeline = pipeline or load_pipeline(folder.settings)
        check_model(folder, pipeline)
        folder.verify(folder.record.num_windows)
        check_film(folder)
        if folder.settings.clip is not None:
            check_clip(folder)
        shots = shots_of(folder)
        maker = Maker(pipeline, folder, shots, on_progress)
        remade = _RemadeWindow(maker, index, seed, prompt)
        pipeline.warn_of_long([("prompt", remade.prompt), ("negative prompt", folder.settings.negative_prompt)])
        with torch.no_grad(), resumable(folder.path):
            remade.make()
        drift, notes = finish_run(folder)
        notes = [f"window {index} was made with the seed {remade.seed}", *notes]
        return report_of(folder, shots, start=start, first=index, drift=drift, notes=notes)


class _RemadeWindow:
    """One window of a film, sampled anew between its neighbours."""

    def __init__(self, maker: Maker, index: int, seed: int | None, prompt: str | None) -> None:
        self.maker, self.run, self.pipeline = maker, maker.run, maker.pipeline
        self.window = maker.plan[index]
        self.latents = FilmLatents(self.run)
        self.old = self.run.window(index)
        count = sum(reroll.window == index for reroll in self.run.record.rerolls)
        own_seed = Rng(self.run.settings.seed).seed_of(f"reroll/{index}/{count}") % 2**31
        self.seed = own_seed if seed is None else seed
        self.prompt = self.old.prompt if prompt is None else prompt

    def make(self) -> None:
        started = time.perf_counter()
        window = self.window
        sampling = replace(self.maker.sampling, rule=self.maker.rule_of(window))
        around, places = self.between(sampling)
        anchors = self.anchors(around, places)
        before = self.run.settings.prompts_of(self.maker.plan, window.index)[0]
        if self.prompt != self.old.prompt or before == self.old.prompt:
            before = self.prompt
        self.maker.begin(window)
        setting = self.maker.setting(around, before, self.prompt, rng=Rng(self.seed))
        clean = sample_between(setting, sampling, around, anchors, places)
        new = clean[:, :, window.new_from - around.start :]
        decoder, in_front = self.prime()
        made = MadeWindow(window, new, Tail(new))
        frames = self.pipeline.decode_window(made, 0, decoder).cpu()
        curves = self._curves(frames)
        done = Reroll(window=window.index, seed=self.seed, prompt=self.prompt)
        with self.run.staging([*self.run.record.rerolls, done]) as staged:
            num_shown = self.maker.write(window, made, frames, in_front, into=staged)
            files = [staged.latents(window.index), *([staged.segment(window.index)] if num_shown else [])]
            carried = {name: digest for name, digest in self.old.sha256.items() if name.startswith("carry/")}
            staged.put(
                WindowRecord(
                    index=window.index,
                    first_frame=self.old.first_frame,
                    num_new=self.old.num_new,
                    num_shown=num_shown,
                    prompt=self.prompt,
                    seed=self.seed,
                    sha256={**staged.hashes(*files), **carried},
                    curves=curves,
                    shifts=self.maker.guard.measure(window.index, curves),
                    seconds=round(time.perf_counter() - started, 3),
                )
            )

    def _curves(self, frames: Tensor) -> dict[str, list[float]]:
        """Measure the new frames; what lies in front of them is as it was."""
        new, old = measure(frames, None), self.old.curves
        follows_clip = self.window.index == 0 and self.run.settings.clip is not None
        kept = old if follows_clip else ["motion"] if self.window.index else []
        return {name: [*(old[name][:1] if name in kept else []), *values] for name, values in new.items()}

    def between(self, sampling: Sampling) -> tuple[Window, list[int]]:
        """Return the window to sample, and the places in it of frames that stay.

        Those are the frames shared with the neighbours. Where windows share all that they have, all new frames are made
        again, in a window that is moved to hold as many frames behind them as in front.
        """
        window, overlap, length = self.window, sampling.rule.overlap, self.window.stop - self.window.start
        stay = range(window.new_from - window.start)
        if sampling.rule.append_overlap and window.index:
            stay = range(overlap)  # a mirrored join shows them twice
        places = list(stay)
        if window.index + 1 < len(self.maker.plan):
            places += range(length - overlap, length)
        num_free = window.keep_until - window.start - len(places)
        if num_free >= 1 and len(set(places)) == len(places):
            return window, places
        spare = length - window.num_new
        behind = min(spare // 2, self.latents.stop - window.keep_until)
        front = min(spare - behind, window.new_from - self.latents.first)
        if not front or not behind:
            raise UsageError(
                f"window {window.index} shares all its frames with its neighbours; windows of more than "
                f"{2 * overlap} frames can be made again."
            )
        start = window.new_from - front
        moved = replace(window, start=start, stop=start + length)
        return moved, [*range(front), *range(front + window.num_new, front + window.num_new + behind)]

    def anchors(self, window: Window, places: list[int]) -> Tensor:
        """Return the frames of the window that stay, [1 c p h w]."""
        device = self.pipeline.compute_device
        if not places:
            return torch.zeros(self.maker.sampling.latent.with_frames(0).dims, device=device)
        numbers = [window.start + place for place in places]
        return torch.cat([self.latents.read(n, n + 1) for n in numbers], dim=1)[None].to(device)

    def prime(self) -> tuple[FilmDecoder, Tensor | None]:
        """Return a decoder that stands in front of the window's first new frame, and the frames there."""
        decoder, in_front = self.pipeline.autoencoder.film_decoder(), None
        reach = sum(
            (KERNEL - 1) * len(module.convs)
            for module in self.pipeline.autoencoder.modules()
            if isinstance(module, TemporalConvolution)
        )
        first = max(self.latents.first, self.window.new_from - reach - NUM_IN_FRONT)
        for chunk in self._chunks(first, self.window.new_from):
            for frames in decoder.passes(chunk):
                in_front = last_of(frames.cpu(), in_front)
        return decoder, in_front

    def _chunks(self, start: int, stop: int) -> Iterator[Tensor]:
        for at in range(start, stop, PRIMING_CHUNK):
            yield self.latents.read(at, min(stop, at + PRIMING_CHUNK)).to(self.pipeline.compute_device)


def sample_between(setting: Setting, sampling: Sampling, window: Window, anchors: Tensor, places: list[int]) -> Tensor:
    """Sample a window some of whose frames are given; return its clean latents [1 c t h w].

    Args:
        anchors: the given frames, [1 c p h w].
        places: where in the window they stand, in order.
    """
    noise = setting.prior.sample(setting.shape, rng=setting.rng, first_frame=window.start).to(setting.device)
    denoise, on_step = setting.denoise, None
    if places and isinstance(sampling.rule, ContextRule):
        shown = sampling.rule.shown(places, setting.shape.frames)
        denoise = with_clean_context(denoise, anchors[:, :, [places.index(place) for place in shown]], places=shown)
    elif places:
        on_step = _held(setting, noise, anchors, places)

    def renoise(step: int) -> Tensor:
        rng = setting.rng.child(f"step/{step}")
        return setting.prior.sample(setting.shape, rng=rng, first_frame=window.start).to(setting.device)

    clean = sampling.solver(denoise, noise, setting.levels, renoise=renoise, on_step=on_step)
    return keep_given(clean, anchors, places) if places else clean


def _held(setting: Setting, noise: Tensor, anchors: Tensor, places: list[int]) -> OnStep:
    """Return a hook that puts the given frames, noised to the step's level, back into the state."""
    at = torch.tensor(places, device=noise.device)
    eps = noise.index_select(2, at)

    def hold(step: int, x: Tensor) -> Tensor:
        level = setting.levels[step]
        alpha, sigma = level.like(x)
        return x.index_copy(2, at, (alpha * anchors + sigma * eps).to(x))

    return hold
