"""The pipeline: prompts to films of any length, from a diffusers folder, in the terms of diffusers.

It joins a text encoder, a temporal U-Net, a noise prior, a scheduler's config and a (temporal) autoencoder.
Windows stream: each is denoised, decoded and handed over before the next begins, and nothing grows with length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from latentvid.autoencoders.base import FilmDecoder
from latentvid.autoencoders.budget import working_bytes
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.config import StrictModel, validate
from latentvid.core.errors import UsageError
from latentvid.core.levels import NoiseSchedule
from latentvid.core.rng import Rng
from latentvid.core.runtime import Runtime, set_attention
from latentvid.core.shapes import LatentShape, VideoShape
from latentvid.denoisers.denoise import unet_denoiser
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.denoisers.text import cross_fade, embed
from latentvid.extension.plan import FilmPlan, Window
from latentvid.extension.rollout import MadeWindow, roll_out
from latentvid.extension.rules import ContextRule, OverlapRule, RuleConfig, Setting, Tail
from latentvid.noise.prior import NoisePrior
from latentvid.sampling import SOLVERS
from latentvid.sampling.solver import Denoise, Solver

OnCall = Callable[[Window, int, int], None]
"""(window, denoiser calls done in it, calls that it takes), for progress bars."""


@dataclass
class LatentVideoOutput(BaseOutput):
    """What `LatentVideoPipeline` returns.

    `frames`: "pt" a float tensor [b t 3 h w] in [0, 1]; "np" the same as an array [b t h w 3]; "pil" a list of
    lists of images; "latent" latents [b c t h w] in model space.
    """

    frames: Any


GUIDANCE = 3.0
"""Classifier-free guidance, if not told."""


@dataclass(frozen=True)
class Sampling:
    """How to sample, apart from what: the same for every window of a film."""

    num_steps: int
    guidance_scale: float | None
    """Of all windows; null is `GUIDANCE`, and what the rule says of windows that go on."""
    guidance_rescale: float
    solver: Solver
    rule: OverlapRule
    rng: Rng
    latent: LatentShape
    """Of one window."""

    @property
    def num_calls(self) -> int:
        """Denoiser calls that a window takes."""
        return self.solver.calls_per_step * (self.num_steps - 1) + 1

    def guidance(self, *, continues: bool) -> float:
        """Return the guidance of a window; `continues`: it goes on under the prompt of the one before."""
        if self.guidance_scale is not None:
            return self.guidance_scale
        own = self.rule.guidance_scale if continues and isinstance(self.rule, ContextRule) else None
        return GUIDANCE if own is None else own


class LatentVideoPipeline(DiffusionPipeline):
    """Text to video of any length.

    Args:
        vae: a `TemporalAutoencoder`, or a diffusers `AutoencoderKL` or `AutoencoderTiny` (decoded frame by frame).
        unet: the temporal U-Net.
        text_encoder, tokenizer: CLIP's, of any size.
        scheduler: a diffusers scheduler, of which only the config is used.
        noise_prior: the law of the noise that the U-Net was trained with.
        num_frames: frames of one window.
        fps: at which the clips are meant to be seen.
        overlap_rule: how windows follow each other, as a config (see `latentvid.extension.rules`); by default
            VidRD's reuse in chronological order, which every model can do.
    """

    def __init__(
        self,
        vae: Any,
        unet: TemporalUNet,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        noise_prior: NoisePrior,
        num_frames: int = 16,
        fps: float = 8.0,
        overlap_rule: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        wrapper: ImageAutoencoder | None = None
        if isinstance(vae, ImageAutoencoder) and not isinstance(vae, TemporalAutoencoder):
            wrapper, vae = vae, vae.image
        self._autoencoder = wrapper
        self.register_modules(
            vae=vae,
            unet=unet,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            noise_prior=noise_prior,
        )
        rule = dict(overlap_rule or {"kind": "reuse", "overlap": max(1, num_frames // 4)})
        self.register_to_config(num_frames=num_frames, fps=fps, overlap_rule=rule)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, runtime: Runtime | None = None, max_memory: int | None = None, **unknown: Any
    ) -> LatentVideoPipeline:
        """Load a pipeline folder, or a checkpoint by name; nothing is downloaded and no code of the folder runs.

        Folders of image pipelines in the layout of Stable Diffusion load too: their U-Net grows temporal layers at
        zero, their noise is independent, and the result is a film of images until it is trained.

        Args:
            runtime: device, dtype and attention; the CPU in float32 by default.
            max_memory: bytes for decoding's working set.

        Raises:
            CheckpointError: something is missing, damaged, or of a class that is not known.
            UsageError: an argument of diffusers that has no meaning here.
        """
        if unknown:
            names = ", ".join(unknown)
            raise UsageError(f"from_pretrained takes runtime=resolve_runtime(device, dtype) and not {names}.")
        from latentvid.pipeline_folder import load_components

        components, settings = load_components(Path(path), runtime=runtime, max_memory=max_memory)
        pipeline = cls(**components, **settings)
        if runtime is not None:
            pipeline.unet.to(runtime.device, runtime.dtype)
            pipeline.text_encoder.to(runtime.device, runtime.dtype)
            set_attention(pipeline.unet, runtime.attention)
            if runtime.compile:
                pipeline.unet.compile()
        if max_memory is not None:  # again, now that all networks hold their share of it
            pipeline.autoencoder.max_memory = working_bytes(max_memory, pipeline.unet.device)
        pipeline.unet.eval()
        pipeline.text_encoder.eval()
        return pipeline

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_config({**self.scheduler.config, "_class_name": type(self.scheduler).__name__})

    @property
    def autoencoder(self) -> ImageAutoencoder:
        """The vae behind the seam of video autoencoders."""
        if isinstance(self.vae, ImageAutoencoder):
            return self.vae
        if self._autoencoder is None or self._autoencoder.image is not self.vae:
            self._autoencoder = ImageAutoencoder(self.vae)
        return self._autoencoder

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width, in pixels, that the U-Net was trained at."""
        size = self.unet.config.sample_size or 32
        height, width = (size, size) if isinstance(size, int) else size
        factor = self.autoencoder.spatial_factor
        return height * factor, width * factor

    @property
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this, in pixels."""
        return self.autoencoder.spatial_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def sampling(
        self,
        *,
        seeds: int | Sequence[int] = 0,
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        solver: str = "dpmpp_2m",
        rule: OverlapRule | Mapping[str, Any] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Sampling:
        """Settle how to sample; the arguments are those of `__call__`.

        Raises:
            UsageError: an unknown solver or rule, or a size that the networks cannot have.
        """
        default_height, default_width = self.default_size
        height = default_height if height is None else height
        width = default_width if width is None else width
        if min(height, width) < 1 or height % self.size_multiple or width % self.size_multiple:
            raise UsageError(
                f"{width}x{height} will not do: this model makes multiples of {self.size_multiple} pixels."
            )
        if num_inference_steps < 1:
            raise UsageError(f"num_inference_steps={num_inference_steps} must be at least 1.")
        if self.schedule.kind == "vp" and num_inference_steps > self.schedule.num_train_timesteps:
            raise UsageError(
                f"num_inference_steps={num_inference_steps} exceeds the {self.schedule.num_train_timesteps} steps that"
                " this model was trained with."
            )
        rng = Rng(seeds)
        shape = self.autoencoder.latent_shape(VideoShape(len(rng), self.config.num_frames, height, width))
        chosen = validate_rule(rule if rule is not None else self.config.overlap_rule)
        return Sampling(
            num_inference_steps, guidance_scale, guidance_rescale, SOLVERS.get(solver)(), chosen, rng, shape
        )

    def plan(self, num_frames: int, sampling: Sampling, *, given: int = 0) -> FilmPlan:
        """Return the windows of a film of `num_frames` frames, after `given` ones that exist."""
        rule = sampling.rule
        return FilmPlan(num_frames, sampling.latent.frames, rule.overlap, rule.append_overlap, given)

    def prompt_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Return [b l d]."""
        return embed(self.tokenizer, self.text_encoder, prompts)

    def setting(
        self,
        sampling: Sampling,
        prompts: Sequence[str],
        negative_prompt: str = "",
        *,
        before: Sequence[str] | None = None,
        continues: bool = False,
        rng: Rng | None = None,
        on_call: Callable[[], None] | None = None,
    ) -> Setting:
        """Return what a window is sampled with.

        Args:
            prompts: one per seed.
            before: prompts that the window leads from, by a cross-fade over its frames.
            continues: the window goes on under the prompts of the one before.
            rng: other noise than the film's.
            on_call: called after every denoiser call.
        """
        if len(prompts) != len(sampling.rng):
            raise UsageError(f"{len(prompts)} prompts for {len(sampling.rng)} seeds; give one each.")
        text, null, guidance = self.prompt_embeddings(prompts), None, sampling.guidance(continues=continues)
        if guidance != 1:
            null = self.prompt_embeddings([negative_prompt] * len(prompts))
        if before is not None and list(before) != list(prompts):
            frames = sampling.latent.frames
            text = cross_fade(self.prompt_embeddings(before), text, frames)
            null = None if null is None else null[:, None].expand(-1, frames, -1, -1)
        denoise = unet_denoiser(
            self.unet,
            self.schedule,
            text,
            null_text=null,
            guidance_scale=guidance,
            guidance_rescale=sampling.guidance_rescale,
        )
        return Setting(
            _counted(denoise, on_call) if on_call else denoise,
            self.noise_prior,
            self.schedule,
            self.schedule.levels(sampling.num_steps),
            sampling.rng if rng is None else rng,
            sampling.latent,
            self.unet.device,
        )

    @torch.no_grad()
    def windows(
        self,
        plan: FilmPlan,
        sampling: Sampling,
        prompts: Sequence[str],
        *,
        negative_prompt: str = "",
        tail: Tail | None = None,
        first_window: int = 0,
        on_call: OnCall | None = None,
    ) -> Iterator[MadeWindow]:
        """Yield the film's windows of latents, in order.

        Args:
            plan, sampling: from `plan()` and `sampling()`.
            prompts: one per seed.
            tail: what came before `first_window`.
            on_call: progress.
        """
        here: list[Any] = [None, 0]

        def count() -> None:
            here[1] += 1
            if on_call:
                on_call(here[0], here[1], sampling.num_calls)

        first, later = (
            self.setting(sampling, prompts, negative_prompt, continues=continues, on_call=count)
            for continues in (False, True)
        )

        def setting_at(window: Window) -> Setting:
            here[:] = [window, 0]
            return first if tail is None and window.index == 0 else later

        yield from roll_out(plan, sampling.rule, sampling.solver, setting_at, tail=tail, first_window=first_window)

    @torch.no_grad()
    def stream(
        self,
        prompt: str,
        *,
        num_frames: int | None = None,
        generator: Any = 0,
        negative_prompt: str = "",
        on_call: OnCall | None = None,
        **sampling: Any,
    ) -> Iterator[Tensor]:
        """Yield a film window by window, float32 [t 3 h w] in [-1, 1], in constant memory.

        Args:
            prompt: what to show.
            num_frames: of the whole film; one window by default. The first n frames do not depend on it.
            generator: a seed, or a `torch.Generator` whose initial seed is taken.
            negative_prompt: what to guide away from.
            on_call: progress.
            sampling: `num_inference_steps`, `guidance_scale`, `solver`, `rule`, `height`, `width`.
        """
        settled = self.sampling(seeds=_seeds(generator, 1), **sampling)
        plan = self.plan(self.config.num_frames if num_frames is None else num_frames, settled)
        decoder = self.autoencoder.film_decoder()
        for made in self.windows(plan, settled, [prompt], negative_prompt=negative_prompt, on_call=on_call):
            yield self.decode_window(made, 0, decoder)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str = "",
        generator: Any = 0,
        solver: str = "dpmpp_2m",
        rule: OverlapRule | Mapping[str, Any] | None = None,
        output_type: str = "pil",
        on_call: OnCall | None = None,
    ) -> LatentVideoOutput:
        """Make a clip per prompt, whole in memory; `stream` makes films of any length.

        Args:
            prompt: one, or several for a batch.
            num_frames: one window by default.
            height, width: in pixels; what the model was trained at by default.
            num_inference_steps: solver steps per window.
            guidance_scale: classifier-free guidance of all windows; 1 is none. By default 3, and the model's own in
                windows that go on.
            guidance_rescale: how far guidance's gain in contrast is taken back, 0..1.
            negative_prompt: what to guide away from.
            generator: a seed, one per prompt, or a `torch.Generator`. A clip depends on its own seed only.
            solver: "euler", "heun", "dpmpp_2m" or "ancestral".
            rule: how windows follow each other; the model's own by default.
            output_type: "pil", "np", "pt" or "latent".

        Raises:
            UsageError: an argument that cannot be.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if output_type not in _OUTPUTS:
            raise UsageError(f"output_type={output_type!r} is not known; known: {', '.join(_OUTPUTS)}.")
        settled = self.sampling(
            seeds=_seeds(generator, len(prompts)),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            solver=solver,
            rule=rule,
            height=height,
            width=width,
        )
        plan = self.plan(self.config.num_frames if num_frames is None else num_frames, settled)
        decoders = [self.autoencoder.film_decoder() for _ in prompts]
        parts: list[Tensor] = []
        for made in self.windows(plan, settled, prompts, negative_prompt=negative_prompt, on_call=on_call):
            if output_type == "latent":
                parts.append(made.latents[:, :, : made.window.num_new].cpu())
            else:
                parts.append(torch.stack([self.decode_window(made, k, each).cpu() for k, each in enumerate(decoders)]))
        if output_type == "latent":
            return LatentVideoOutput(frames=torch.cat(parts, dim=2))
        return LatentVideoOutput(frames=_OUTPUTS[output_type](torch.cat(parts, dim=1).add(1).div(2).clamp(0, 1)))

    @torch.no_grad()
    def decode_window(self, made: MadeWindow, film: int, decoder: FilmDecoder) -> Tensor:
        """Decode the frames that a window adds to film number `film`: float32 [t 3 h w] in [-1, 1].

        Args:
            decoder: of the film, where the window before left it.
        """
        return decoder.push(made.latents[film])[: made.window.num_new]


class _RuleHolder(StrictModel):
    rule: RuleConfig


def validate_rule(rule: OverlapRule | Mapping[str, Any]) -> OverlapRule:
    """Return a rule from its config.

    Raises:
        UsageError: unknown kind or setting.
    """
    if not isinstance(rule, Mapping):
        return rule
    return validate({"rule": dict(rule)}, _RuleHolder).rule


def _to_pil(clips: Tensor) -> list[list[Any]]:
    from PIL import Image

    arrays = (clips * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    return [[Image.fromarray(frame) for frame in clip] for clip in arrays]


_OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "pil": _to_pil,
    "np": lambda clips: clips.permute(0, 1, 3, 4, 2).numpy(),
    "pt": lambda clips: clips,
    "latent": lambda latents: latents,
}


def _seeds(generator: Any, count: int) -> list[int]:
    given = [generator] if isinstance(generator, int | torch.Generator) else list(generator)
    seeds = [g.initial_seed() if isinstance(g, torch.Generator) else int(g) for g in given]
    if len(seeds) == 1:
        return [seeds[0] + k for k in range(count)]
    if len(seeds) != count:
        raise UsageError(f"{len(seeds)} generators for {count} prompts.")
    return seeds


def _counted(denoise: Denoise, on_call: Callable[[], None]) -> Denoise:
    def denoise_and_count(x: Tensor, level: Any) -> Tensor:
        clean = denoise(x, level)
        on_call()
        return clean

    return denoise_and_count
