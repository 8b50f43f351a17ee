"""The pipeline: prompts to films of any length, from a diffusers folder, in the terms of diffusers.

It joins a text encoder, a temporal U-Net, a noise prior, a scheduler's config and a (temporal) autoencoder.
Windows stream: each is denoised, decoded and handed over before the next begins, and nothing grows with length.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from latentvid.autoencoders.base import FilmDecoder
from latentvid.autoencoders.budget import working_bytes
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.config import StrictModel, validate
from latentvid.core.errors import ResourceError, UsageError
from latentvid.core.levels import Levels, NoiseSchedule
from latentvid.core.rng import Rng
from latentvid.core.runtime import Runtime, set_attention
from latentvid.core.shapes import LatentShape, VideoShape
from latentvid.denoisers.denoise import unet_denoiser
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.denoisers.text import cross_fade, embed, warn_of_long_prompts
from latentvid.extension.guard import CORRECTED, LatentGuard, guard_limit
from latentvid.extension.plan import FilmPlan, Window
from latentvid.extension.rollout import MadeWindow, roll_out
from latentvid.extension.rules import ContextRule, OverlapRule, RuleConfig, Setting, Tail
from latentvid.noise.prior import NoisePrior
from latentvid.pipeline_call import (
    TENSOR_INPUTS,
    WatchedSolver,
    Wording,
    as_dtype,
    initial_noise,
    not_harmless,
    on_step_end,
    refuse_unknown,
    seeds_of,
    whole,
    wording,
)
from latentvid.sampling import SOLVERS
from latentvid.sampling.schedule import Spacing, schedule_of
from latentvid.sampling.solver import Denoise, Solver

Embedder = Callable[[tuple[str, ...]], Tensor]
"""Prompts -> their embeddings, [b l d]."""
EMBEDDED_PROMPTS = 16
"""Of which embeddings are kept while a film is made."""
OnCall = Callable[[Window, int, int], None]
"""(window, denoiser calls done in it, calls that it takes), for progress bars."""


@dataclass
class LatentVideoOutput(BaseOutput):
    """What `LatentVideoPipeline` returns.

    `frames`: "pt" a float tensor [b t 3 h w] in [0, 1]; "np" the same as an array [b t h w 3]; "pil" a list of
    lists of images; "latent" latents [b c t h w] in model space.
    `seeds`: one for each clip. Given as `generator`, they make the same clips again.
    """

    frames: Any
    seeds: list[int] | None = None

    @property
    def seed(self) -> int | None:
        """The first clip's; given as `generator`, it makes all clips again unless each was given its own."""
        return self.seeds[0] if self.seeds else None


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
        scheduler: a diffusers scheduler, of which only the levels are used.
        noise_prior: the law of the noise that the U-Net was trained with.
        num_frames: frames of one window.
        fps: at which the clips are meant to be seen.
        overlap_rule: how windows follow each other, as a config (see `latentvid.extension.rules`); by default
            VidRD's reuse in chronological order, which every model can do.
        spacing: of sampling steps, "even" or as the scheduler has it, see `latentvid.sampling.schedule.Spacing`.
    """

    vae: Any
    seeds: Sequence[int] = ()
    """Those of the newest call or stream, for repeating one that drew its own."""
    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = TENSOR_INPUTS

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
        spacing: Spacing = "even",
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
        self.register_to_config(num_frames=num_frames, fps=fps, overlap_rule=rule, spacing=spacing)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        runtime: Runtime | None = None,
        max_memory: int | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        **unknown: Any,
    ) -> LatentVideoPipeline:
        """Load a pipeline folder, or a checkpoint by name; nothing is downloaded and no code of the folder runs.

        Folders of image pipelines in the layout of Stable Diffusion load too: their U-Net grows temporal layers at
        zero, their noise is independent, their steps are spaced as their scheduler has it, and the result is a film of
        images until it is trained.

        Args:
            runtime: device, dtype and attention; the CPU in float32 by default.
            max_memory: bytes for decoding's working set.
            torch_dtype, dtype: number format of the networks, under both names that diffusers has for it; without a
                `runtime`, which says it too.
            variant: of the weights ("fp16"), for components that have it; by default the weights without a variant, or
                the only variant that there is.

        Raises:
            CheckpointError: something is missing, damaged, or of a class that is not known.
            UsageError: an argument of diffusers that has no meaning here.
        """
        for name in not_harmless(unknown):
            raise UsageError(
                f"from_pretrained takes no {name!r}; it takes torch_dtype, max_memory and"
                " runtime=resolve_runtime(device, dtype, attention, compile)."
            )
        numbers = as_dtype(dtype if dtype is not None else torch_dtype)
        if numbers is not None and runtime is not None:
            raise UsageError("runtime and torch_dtype both say the number format; give one.")
        from latentvid.pipeline_folder import load_components

        components, settings = load_components(Path(path), runtime=runtime, max_memory=max_memory, variant=variant)
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
        return pipeline if numbers is None else pipeline.to(dtype=numbers)

    def to(self, *args: Any, **kwargs: Any) -> LatentVideoPipeline:
        """Move the networks to a device, a number format, or both, as diffusers does.

        An autoencoder that overflows in fp16 stays in float32, and what its latents are stays known: rounded weights
        would give them another hash.
        """
        numbers = next((each for each in (*args, kwargs.get("dtype")) if isinstance(each, torch.dtype)), None)
        if numbers is None or numbers is self.autoencoder.dtype:
            super().to(*args, **kwargs)
            return self
        if not self.autoencoder.loaded_space:
            self.autoencoder.loaded_space = self.autoencoder.latent_space()
        vae = self.vae
        if numbers is torch.float16 and self.autoencoder.force_upcast:
            self.__dict__["vae"] = None  # so that it is passed over
        try:
            super().to(*args, **kwargs)
        finally:
            self.__dict__["vae"] = vae
        if vae.device != self.unet.device:
            nn.Module.to(vae, self.unet.device)
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep the networks in host memory, and each on the accelerator only while it computes.

        Raises:
            ResourceError: there is no accelerator.
        """
        try:
            super().enable_model_cpu_offload(gpu_id=gpu_id, device=device)
        except RuntimeError as error:
            raise ResourceError(f"enable_model_cpu_offload needs an accelerator such as CUDA ({error}).") from error

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Not offered.

        Raises:
            UsageError: always.
        """
        raise UsageError("layers are not offloaded one by one; call enable_model_cpu_offload() instead.")

    @property
    def compute_device(self) -> torch.device:
        """Where the U-Net computes, also while it waits in host memory."""
        hook = getattr(self.unet, "_hf_hook", None)
        return self.unet.device if hook is None else torch.device(hook.execution_device)

    @property
    def schedule(self) -> NoiseSchedule:
        return schedule_of(self.scheduler, self.config.spacing)

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
        height = default_height if height is None else whole(height, "height")
        width = default_width if width is None else whole(width, "width")
        num_inference_steps = whole(num_inference_steps, "num_inference_steps")
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
        self._levels(num_inference_steps, shape)  # what the scheduler does not have is refused here
        chosen = validate_rule(rule if rule is not None else self.config.overlap_rule)
        return Sampling(
            num_inference_steps, guidance_scale, guidance_rescale, SOLVERS.get(solver)(), chosen, rng, shape
        )

    def _levels(self, num_steps: int, latent: LatentShape) -> Levels:
        return self.schedule.levels(num_steps, seq_len=latent.frames * latent.height * latent.width)

    def plan(self, num_frames: int, sampling: Sampling, *, given: int = 0) -> FilmPlan:
        """Return the windows of a film of `num_frames` frames, after `given` ones that exist."""
        rule, num_frames = sampling.rule, whole(num_frames, "num_frames")
        return FilmPlan(num_frames, sampling.latent.frames, rule.overlap, rule.append_overlap, given)

    def prompt_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Return [b l d]; what is too long is cut off, with a warning."""
        self.warn_of_long([("prompt", prompt) for prompt in prompts])
        return self._embed(prompts)

    def warn_of_long(self, prompts: Sequence[tuple[str, str]]) -> None:
        """Warn of prompts, each with its name, that are longer than the text encoder takes."""
        warn_of_long_prompts(self.tokenizer, self.text_encoder, prompts)

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        return embed(self.tokenizer, self.text_encoder, prompts)

    def embedder(self) -> Embedder:
        """Return what embeds prompts, each new one once: for one film, during which the text encoder stays as it is."""
        return functools.lru_cache(maxsize=EMBEDDED_PROMPTS)(self._embed)

    def setting(
        self,
        sampling: Sampling,
        prompts: Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        embeds: tuple[Tensor | None, Tensor | None] = (None, None),
        embedder: Embedder | None = None,
        before: Sequence[str] | None = None,
        continues: bool = False,
        rng: Rng | None = None,
        on_call: Callable[[], None] | None = None,
    ) -> Setting:
        """Return what a window is sampled with.

        Args:
            prompts: one per seed.
            negative_prompt: one for all, or one per seed.
            embeds: embeddings [b l d] instead of the prompts, and instead of the negative ones.
            embedder: of the film (see `embedder`), so that prompts are not embedded anew for every window.
            before: prompts that the window leads from, by a cross-fade over its frames.
            continues: the window goes on under the prompts of the one before.
            rng: other noise than the film's.
            on_call: called after every denoiser call.
        """
        if len(prompts) != len(sampling.rng):
            raise UsageError(f"{len(prompts)} prompts for {len(sampling.rng)} seeds; give one each.")
        text, null = embeds
        embedder = embedder or self._embed
        text = embedder(tuple(prompts)) if text is None else text
        guidance = sampling.guidance(continues=continues)
        if guidance == 1:
            null = None
        elif null is None:
            several = not isinstance(negative_prompt, str)
            null = embedder(tuple(negative_prompt) if several else (str(negative_prompt),) * len(prompts))
        if null is not None and null.shape != text.shape:
            raise UsageError(
                f"the embeddings of prompts {list(text.shape)} and of negative prompts {list(null.shape)} must have one"
                " shape; give both prompt_embeds and negative_prompt_embeds."
            )
        if before is not None and list(before) != list(prompts):
            frames = sampling.latent.frames
            text = cross_fade(embedder(tuple(before)), text, frames)
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
            self._levels(sampling.num_steps, sampling.latent),
            sampling.rng if rng is None else rng,
            sampling.latent,
            self.compute_device,
        )

    @torch.no_grad()
    def windows(
        self,
        plan: FilmPlan,
        sampling: Sampling,
        prompts: Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        embeds: tuple[Tensor | None, Tensor | None] = (None, None),
        noise: Tensor | None = None,
        tail: Tail | None = None,
        first_window: int = 0,
        drift_limit: float | None = None,
        on_call: OnCall | None = None,
    ) -> Iterator[MadeWindow]:
        """Yield the film's windows of latents, in order.

        Args:
            plan, sampling: from `plan()` and `sampling()`.
            prompts: one per seed.
            negative_prompt, embeds: as for `setting`.
            noise: what the film's first window starts from, [b c t h w]; drawn if None.
            tail: what came before `first_window`.
            drift_limit: bring windows back that lie farther from the first one made here, in spreads; None never does.
            on_call: progress.
        """
        negative = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
        self.warn_of_long([*(("prompt", each) for each in prompts), *(("negative prompt", each) for each in negative)])
        here: list[Any] = [None, 0]

        def count() -> None:
            here[1] += 1
            if on_call:
                on_call(here[0], here[1], sampling.num_calls)

        embedder = self.embedder()
        first, later = (
            self.setting(
                sampling,
                prompts,
                negative_prompt,
                embeds=embeds,
                embedder=embedder,
                continues=continues,
                on_call=count,
            )
            for continues in (False, True)
        )
        first = replace(first, noise=noise)

        def setting_at(window: Window) -> Setting:
            here[:] = [window, 0]
            return first if tail is None and window.index == 0 else later

        guard = None
        if drift_limit is not None:
            guard = LatentGuard(drift_limit, rule=sampling.rule)
        yield from roll_out(
            plan, sampling.rule, sampling.solver, setting_at, tail=tail, first_window=first_window, guard=guard
        )

    @torch.no_grad()
    def stream(
        self,
        prompt: str,
        *,
        num_frames: int | None = None,
        generator: Any = 0,
        negative_prompt: str | None = None,
        drift_guard: Literal["correct", "off"] = "correct",
        drift_limit: float = CORRECTED,
        on_call: OnCall | None = None,
        **sampling: Any,
    ) -> Iterator[Tensor]:
        """Yield a film window by window, float32 [t 3 h w] in [-1, 1], in constant memory.

        Args:
            prompt: what to show.
            num_frames: of the whole film; one window by default. The first n frames do not depend on it.
            generator: as for a call; where None, `seeds` tells the one that was drawn.
            negative_prompt: what to guide away from.
            drift_guard, drift_limit: as for a call.
            on_call: progress.
            sampling: `num_inference_steps`, `guidance_scale`, `solver`, `rule`, `height`, `width`.
        """
        known = inspect.signature(self.sampling).parameters.keys() - {"seeds"}
        refuse_unknown("stream", sampling.keys() - known, known)
        words, self.seeds = wording(prompt, negative_prompt), seeds_of(generator, 1)
        settled = self.sampling(seeds=self.seeds, **sampling)
        plan = self.plan(self.config.num_frames if num_frames is None else num_frames, settled)
        decoder = self.autoencoder.film_decoder()
        limit = guard_limit(drift_guard, drift_limit)
        for made in self.windows(
            plan, settled, words.prompts, negative_prompt=words.negative, drift_limit=limit, on_call=on_call
        ):
            yield self.decode_window(made, 0, decoder)
        self.maybe_free_model_hooks()

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_videos_per_prompt: int = 1,
        generator: Any = 0,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        solver: str = "dpmpp_2m",
        rule: OverlapRule | Mapping[str, Any] | None = None,
        drift_guard: Literal["correct", "off"] = "correct",
        drift_limit: float = CORRECTED,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        on_call: OnCall | None = None,
        **unknown: Any,
    ) -> Any:
        """Make a clip per prompt, whole in memory; `stream` makes films of any length.

        Args:
            prompt: one, or several for a batch.
            num_frames: one window by default.
            height, width: in pixels; what the model was trained at by default.
            num_inference_steps: solver steps per window.
            guidance_scale: classifier-free guidance of all windows; 1 is none. By default 3, and the model's own in
                windows that go on.
            guidance_rescale: how far guidance's gain in contrast is taken back, 0..1.
            negative_prompt: what to guide away from; one for all, or one per prompt.
            num_videos_per_prompt: clips of each prompt, which follow each other.
            generator: a seed (0 by default), one per clip, or a `torch.Generator`, which makes another clip each time
                that it is used; None draws a seed. A clip depends on its own seed only.
            latents: noise that the first window starts from, [b c t h w], instead of the seed's.
            prompt_embeds, negative_prompt_embeds: [b l d], as `prompt_embeddings` makes them, instead of the prompts.
            solver: "euler", "heun", "dpmpp_2m" or "ancestral".
            rule: how windows follow each other; the model's own by default.
            drift_guard: "correct" brings windows back whose colour or contrast moves away from the first one's, as
                `latentvid generate` does; "off" leaves them.
            drift_limit: how far they may lie from it, in spreads of its latents.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: if not, the frames are returned in a tuple.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after every step of every
                window; may return other latents.
            callback_on_step_end_tensor_inputs: what it is shown: "latents" [b c t h w], and the embeddings.
            on_call: progress, instead of diffusers' bar.

        Returns:
            A `LatentVideoOutput`, or a tuple of its frames.

        Raises:
            UsageError: an argument that cannot be, or is not known.
        """
        refuse_unknown("the pipeline", unknown, inspect.signature(type(self).__call__).parameters.keys() - {"self"})
        if output_type not in _OUTPUTS:
            raise UsageError(f"output_type={output_type!r} is not known; known: {', '.join(_OUTPUTS)}.")
        words = wording(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_videos_per_prompt, self._text_width
        )
        self.seeds = seeds_of(generator, len(words.prompts))
        settled = self.sampling(
            seeds=self.seeds, num_inference_steps=num_inference_steps, solver=solver, rule=rule,
            guidance_scale=guidance_scale, guidance_rescale=guidance_rescale, height=height, width=width,
        )  # fmt: skip
        names = callback_on_step_end_tensor_inputs
        after_step = on_step_end(self, callback_on_step_end, names, lambda: self._embeddings(words))
        settled = settled if after_step is None else replace(settled, solver=WatchedSolver(settled.solver, after_step))
        plan = self.plan(self.config.num_frames if num_frames is None else num_frames, settled)
        noise = initial_noise(latents, settled.latent.dims)
        limit = guard_limit(drift_guard, drift_limit)
        frames = self._frames(plan, settled, words, noise, limit, output_type, on_call)
        return LatentVideoOutput(frames=frames, seeds=list(self.seeds)) if return_dict else (frames,)

    @property
    def _text_width(self) -> int | None:
        """Of the embeddings that the U-Net takes; None where its blocks differ in it."""
        width = self.unet.config.cross_attention_dim
        return width if isinstance(width, int) else None

    def _frames(
        self,
        plan: FilmPlan,
        sampling: Sampling,
        words: Wording,
        noise: Tensor | None,
        drift_limit: float | None,
        output_type: str,
        on_call: OnCall | None,
    ) -> Any:
        """Make a batch of films, and return their frames in the form that was asked for."""
        decoders = [self.autoencoder.film_decoder() for _ in words.prompts]
        parts: list[Tensor] = []
        total = plan.num_windows * sampling.num_calls
        progress: AbstractContextManager[Any] = nullcontext() if on_call else self.progress_bar(total=total)
        with progress as bar:
            for made in self.windows(
                plan,
                sampling,
                words.prompts,
                negative_prompt=words.negative,
                embeds=(words.text, words.null),
                noise=noise,
                drift_limit=drift_limit,
                on_call=on_call or (lambda *_: bar.update()),
            ):
                if output_type == "latent":
                    parts.append(made.latents[:, :, : made.window.num_new].cpu())
                    continue
                clips = [self.decode_window(made, k, each).cpu() for k, each in enumerate(decoders)]
                parts.append(torch.stack(clips))
        self.maybe_free_model_hooks()
        if output_type == "latent":
            return torch.cat(parts, dim=2)
        return _OUTPUTS[output_type](torch.cat(parts, dim=1).add(1).div(2).clamp(0, 1))

    def _embeddings(self, words: Wording) -> dict[str, Tensor]:
        """Return what a batch is guided by, under diffusers' names, [b l d]."""
        return {
            "prompt_embeds": self._embed(words.prompts) if words.text is None else words.text,
            "negative_prompt_embeds": self._embed(words.negative) if words.null is None else words.null,
        }

    @torch.no_grad()
    def decode_window(self, made: MadeWindow, film: int, decoder: FilmDecoder) -> Tensor:
        """Decode the frames that a window adds to film number `film`: float32 [t 3 h w] in [-1, 1].

        Args:
            decoder: of the film, where the window before left it.
        """
        hook = getattr(self.vae, "_hf_hook", None)
        if hook is None:
            return decoder.push(made.latents[film])[: made.window.num_new]
        hook.pre_forward(self.vae)  # it waits in host memory, and the U-Net is to make room for it
        try:
            return decoder.push(made.latents[film])[: made.window.num_new]
        finally:
            hook.init_hook(self.vae)


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


def _counted(denoise: Denoise, on_call: Callable[[], None]) -> Denoise:
    def denoise_and_count(x: Tensor, level: Any) -> Tensor:
        clean = denoise(x, level)
        on_call()
        return clean

    return denoise_and_count
