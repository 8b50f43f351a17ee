"""Train the sky model at 128x128 on one GPU in minutes: scenes are rendered on the device while it trains.

    python scripts/train_sky_gpu.py --out runs/sky_gpu --seconds 360
    python scripts/train_sky_gpu.py --out runs/try --seconds 60 --tiny --device cpu     # rehearsal

Stages: autoencoder (f8, 8 channels), words (the text encoder learns to tell its words apart), videos (images and
videos together), motion (errors weighed by the prior's inverse covariance), decoder (the temporal one). Each stage's
number of steps follows from its share of the time and from a measured step; a batch that does not fit is halved. After
every stage of the video model all that exists is packed into `OUT/sky.tar.NN`, pieces of at most 15 MiB, so that a run
that is cut off loses one stage at most; stages that are exported already are skipped when the script is run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.load import load_autoencoder, load_image_autoencoder
from latentvid.autoencoders.losses import ReconstructionWeights
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.files import write_json
from latentvid.core.rng import Rng
from latentvid.core.runtime import resolve_runtime
from latentvid.data.worlds import sky_captions
from latentvid.data.worlds.sky import SkyWorld, sample_scene
from latentvid.data.worlds.sky_device import render_on_device
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.denoisers.text import tokenize
from latentvid.evaluation.samples import evaluate_samples
from latentvid.noise.gaussian import cholesky
from latentvid.noise.mixed import MixedNoise
from latentvid.pipeline import LatentVideoPipeline
from latentvid.training.autoencoder import AutoencoderOptions, AutoencoderTask
from latentvid.training.decoder import DecoderOptions, DecoderTask
from latentvid.training.diffusion import VALIDATED_LEVELS, DiffusionOptions, DiffusionTask
from latentvid.training.loop import LoopConfig, train
from latentvid.training.recipes import AutoencoderNetwork, TextSizes, UNetSizes
from latentvid.training.task import Task
from latentvid.training.words import WordsOptions, WordsTask
from latentvid.video.sheet import save_contact_sheet

PIECE = 15 << 20
CAPTIONS = 4
WINDOW = 16
LATENT_NOISE = 0.15
"""Spread of the noise that the temporal decoder learns to decode through, latents having 1: what is sampled is never
as consistent from frame to frame as what was encoded."""
SHARES = {"autoencoder": 0.29, "words": 0.05, "videos": 0.31, "motion": 0.27, "decoder": 0.08}
"""Of the time that is left after rendering and before measuring."""
MEASURING = 0.12
"""Share of all time kept for rendering, measuring and packing."""


class Sizes:
    """What differs between a real run and a rehearsal."""

    def __init__(self, tiny: bool) -> None:
        self.pixels = 32 if tiny else 128
        self.frames = WINDOW if tiny else 20
        self.clips = 16 if tiny else 6144
        self.held_out = 4 if tiny else 64
        self.refreshed = 2 if tiny else 32
        self.refresh_every = 4 if tiny else 8
        self.vae = AutoencoderNetwork(
            block_out_channels=(8, 8, 16, 16) if tiny else (32, 64, 112, 144), latent_channels=8, norm_num_groups=8
        )
        self.unet = UNetSizes(block_out_channels=(16, 16, 32) if tiny else (80, 128, 176), attention=(True, True, True))
        self.text = TextSizes(width=32 if tiny else 128)
        self.images = 4 if tiny else 96
        self.decoded_clips = 2 if tiny else 16
        self.video_batch = 4 if tiny else 96
        self.image_batch = 8 if tiny else 768
        self.words = 3 if tiny else 1200
        self.samples = 2 if tiny else 40

    def halve(self) -> None:
        """Take half of every batch."""
        self.images, self.decoded_clips = max(1, self.images // 2), max(1, self.decoded_clips // 2)
        self.video_batch, self.image_batch = max(2, self.video_batch // 4 * 2), max(1, self.image_batch // 2)


class ScenePool:
    """Clips of the sky world on the device, in twos that differ in their wind's direction, replaced bit by bit.

    The clips in slot j are a function of the seed and of how many scenes have been drawn. `video` is uint8
    [n t 3 h w], `latents` [n t c h w] once there is an encoder, `ids` the tokens of their captions [n k l].
    """

    def __init__(self, sizes: Sizes, device: torch.device, tokenizer: Any, *, seed: int = 0) -> None:
        self.sizes, self.device, self.tokenizer = sizes, device, tokenizer
        self.rng = Rng(seed)
        shape = (sizes.clips, sizes.frames, 3, sizes.pixels, sizes.pixels)
        self.video = torch.empty(shape, dtype=torch.uint8, device=device)
        length = tokenizer.model_max_length
        self.ids = torch.empty(sizes.clips, CAPTIONS + 1, length, dtype=torch.int64, device=device)
        self.empty = tokenize(tokenizer, [""])[0].to(device)
        self.vae: ImageAutoencoder | None = None
        self.latents: Tensor | None = None
        self.drawn = 0
        self.held_video, self.held_ids = self._render([self.rng.child(f"held out/{k}") for k in range(sizes.held_out)])
        self.held_latents: Tensor | None = None

    def fill(self) -> None:
        """Draw a scene into every slot."""
        for _ in range(0, self.sizes.clips // 2, self.sizes.refreshed):
            self.refresh()

    def refresh(self) -> None:
        """Replace the oldest clips by new ones."""
        slots = self.sizes.clips // 2
        count = min(self.sizes.refreshed, slots - self.drawn % slots)
        rngs = [self.rng.child(f"scene/{self.drawn + k}") for k in range(count)]
        video, ids = self._render(rngs)
        start = 2 * (self.drawn % slots)
        self.video[start : start + 2 * count], self.ids[start : start + 2 * count] = video, ids
        if self.latents is not None:
            self.latents[start : start + 2 * count] = self.encoded(video)
        self.drawn += count

    def use(self, vae: ImageAutoencoder) -> None:
        """Encode all clips, and those to come, with this autoencoder."""
        self.vae = vae
        self.latents = torch.cat([self.encoded(part) for part in self.video.split(64)])
        self.held_latents = self.encoded(self.held_video)

    @torch.no_grad()
    def encoded(self, video: Tensor) -> Tensor:
        """Return the latents [n t c h w] of clips [n t 3 h w] in half precision (in float32 on the CPU)."""
        assert self.vae is not None
        found = []
        for part in video.split(16):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                mean, _ = self.vae.posterior(as_input(part).transpose(1, 2))
            found.append(mean.float().transpose(1, 2))
        latents = torch.cat(found)
        return latents.half() if self.device.type == "cuda" else latents

    def _render(self, rngs: list[Rng]) -> tuple[Tensor, Tensor]:
        world, scenes, texts = SkyWorld(), [], []
        for rng in rngs:
            scene = sample_scene(rng.child("scene"))
            for twin in (scene, world.turned_round(scene)):
                scenes.append(twin)
                texts.append([sky_captions.caption(twin, rng.child(f"caption/{k}")) for k in range(CAPTIONS)])
                texts[-1].append(sky_captions.canonical_caption(twin))
        video = render_on_device(scenes, self.sizes.frames, self.sizes.pixels, self.sizes.pixels, device=self.device)
        ids = tokenize(self.tokenizer, [text for several in texts for text in several])
        return video, ids.unflatten(0, (len(scenes), CAPTIONS + 1)).to(self.device)

    # What tasks of footage ask of their clips, answered for the held-out ones.
    folder = "the held-out scenes"

    def __len__(self) -> int:
        return 2 * self.sizes.held_out

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        """Return a held-out clip, uint8 [t 3 h w]."""
        return self.held_video[index].cpu(), []


class NoisyHeldOut:
    """Held-out clips whose latents have the noise that the temporal decoder is to decode through."""

    folder = "the held-out scenes"

    def __init__(self, pool: ScenePool, clips: int, sigma: float) -> None:
        self.pool, self.clips, self.sigma = pool, clips, sigma

    def __len__(self) -> int:
        return self.clips

    def video(self, index: int) -> Tensor:
        return self.pool.held_video[index, :8].cpu()

    def latents(self, index: int) -> Tensor:
        """Return float32 [c t h w]."""
        assert self.pool.held_latents is not None
        clean = self.pool.held_latents[index, :8].float().cpu().transpose(0, 1)
        return clean + self.sigma * Rng(index).normal(*clean.shape)[0]


def as_input(video: Tensor) -> Tensor:
    """Turn uint8 pixels into floats in [-1, 1]."""
    return video.float().div(127.5).sub(1)


def generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


class DeviceAutoencoderTask(AutoencoderTask):
    """The image autoencoder on random frames of the pool, whole pictures."""

    def __init__(self, vae: Any, pool: ScenePool, options: AutoencoderOptions, *, seed: int) -> None:
        super().__init__(vae, _HeldOutLast(pool), options, seed=seed)
        object.__setattr__(self, "pool", pool)

    def begin_step(self, step: int) -> None:
        if step % self.pool.sizes.refresh_every == 0:
            self.pool.refresh()

    def batch(self, index: int) -> int:
        return self.rng.child(f"batch/{index}").seed_of("device")

    def forward(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        pool, draws = self.pool, generator(self.pool.device, batch)
        count = self.options.batch
        clips = torch.randint(len(pool.video), (count,), generator=draws, device=pool.device)
        frames = torch.randint(pool.video.shape[1], (count,), generator=draws, device=pool.device)
        images = as_input(pool.video[clips, frames])
        if int(batch) % 2:
            images = images.flip(-1)
        return super().forward(images.contiguous(memory_format=torch.channels_last))


class _HeldOutLast:
    """The pool as a source whose last clips are the held-out ones, of which alone it hands out pixels."""

    def __init__(self, pool: ScenePool) -> None:
        self.pool = pool

    def __len__(self) -> int:
        return len(self.pool.video) + len(self.pool)

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        return self.pool.clip(index - len(self.pool.video))


class DeviceDecoderTask(DecoderTask):
    """The temporal decoder on clips of the pool, through noise on their latents."""

    def __init__(self, autoencoder: Any, pool: ScenePool, held_out: Any, options: DecoderOptions, *, seed: int) -> None:
        super().__init__(autoencoder, held_out, options, seed=seed, held_out=held_out)
        object.__setattr__(self, "pool", pool)

    def batch(self, index: int) -> int:
        return self.rng.child(f"batch/{index}").seed_of("device")

    def forward(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        pool, draws = self.pool, generator(self.pool.device, batch)
        assert pool.latents is not None
        count, frames = self.options.batch, self.options.num_frames
        clips = torch.randint(len(pool.video), (count,), generator=draws, device=pool.device)
        first = torch.randint(pool.video.shape[1] - frames + 1, (count,), generator=draws, device=pool.device)
        at = first[:, None] + torch.arange(frames, device=pool.device)
        latents = pool.latents[clips[:, None], at].float().transpose(1, 2)  # [b c t h w]
        sigma = LATENT_NOISE * torch.rand(count, 1, 1, 1, 1, generator=draws, device=pool.device)
        noise = torch.randn(latents.shape, generator=draws, device=pool.device)
        return super().forward({"video": pool.video[clips[:, None], at], "latents": latents + sigma * noise})


class DeviceDiffusionTask(DiffusionTask):
    """The video model on latents of the pool; clips, noise and captions are drawn on the device."""

    def __init__(self, pipeline: LatentVideoPipeline, pool: ScenePool, options: DiffusionOptions, *, seed: int) -> None:
        super().__init__(pipeline, None, None, options, seed=seed)
        object.__setattr__(self, "pool", pool)
        self.factor = cholesky(self.prior.covariance(options.num_frames)).float().to(pool.device)

    def _check_data(self) -> None:
        """There is always enough of a world."""

    def begin_step(self, step: int) -> None:
        if step % self.pool.sizes.refresh_every == 0:
            self.pool.refresh()

    def batch(self, index: int) -> dict[str, Any]:
        rng, options = self.rng.child(f"batch/{index}"), self.options
        is_video = float(rng.child("kind").uniform(1)) < options.video_share
        size, frames = (options.video_batch, options.num_frames) if is_video else (options.image_batch, 1)
        each = 2 if is_video else 1
        share = options.context_share if is_video else 0.0
        timestep, is_context = (
            drawn.repeat_interleave(each, dim=0) for drawn in self._timesteps(rng, size // each, frames, share)
        )
        return {"seed": rng.seed_of("device"), "timestep": timestep, "is_context": is_context}

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        pool, draws = self.pool, generator(self.pool.device, batch["seed"])
        assert pool.latents is not None
        size, frames = batch["timestep"].shape
        each = 2 if frames > 1 else 1
        options = {"generator": draws, "device": pool.device}

        def drawn(below: int) -> Tensor:
            return torch.randint(below, (size // each,), **options).repeat_interleave(each)

        clips = drawn(len(pool.video) // each)
        if each == 2:  # two neighbours: one scene, opposite winds
            clips = 2 * clips + torch.arange(size, device=pool.device) % 2
        at = drawn(pool.latents.shape[1] - frames + 1)[:, None] + torch.arange(frames, device=pool.device)
        clean = pool.latents[clips[:, None], at].float().transpose(1, 2)  # [b c t h w]
        dropped = torch.rand(size // each, **options).repeat_interleave(each) < self.options.caption_dropout
        ids = torch.where(dropped[:, None], pool.empty, pool.ids[clips, drawn(pool.ids.shape[1])])
        eps = self._noise(clean, draws, each)
        return super().forward({**batch, "clean": clean, "eps": eps, "ids": ids})

    def _noise(self, clean: Tensor, draws: torch.Generator, each: int) -> Tensor:
        """Draw the prior's noise, equal for neighbours of one scene, [b c t h w]."""
        shape = (len(clean) // each, *clean.shape[1:])
        white = torch.randn(shape, generator=draws, device=clean.device)
        frames = clean.shape[2]
        colored = torch.einsum("ts,bcshw->bcthw", self.factor[:frames, :frames], white)
        return colored.repeat_interleave(each, dim=0)

    def validate(self) -> dict[str, float]:
        """Return the error on held-out clips at fixed levels, and where eight frames are given."""
        pool = self.pool
        assert pool.held_latents is not None
        frames = self.options.num_frames
        clean = pool.held_latents[:, :frames].float().transpose(1, 2)
        eps = self._noise(clean, generator(pool.device, 0), 2)
        ids = pool.held_ids[:, -1]
        figures: dict[str, float] = {}
        for share in VALIDATED_LEVELS:
            steps = torch.full((len(clean), frames), share * self.schedule.num_train_timesteps)
            batch = {"clean": clean, "eps": eps, "ids": ids, "timestep": steps.floor().to(pool.device)}
            figures[f"video_{share}"] = float(self._in_parts(batch).square().mean())
            given = {**batch, "timestep": batch["timestep"].clone()}
            given["timestep"][:, : frames // 2] = 0
            figures[f"given_{share}"] = float(self._in_parts(given)[:, :, frames // 2 :].square().mean())
        return figures

    def _in_parts(self, batch: dict[str, Tensor]) -> Tensor:
        parts = [{name: tensor[k : k + 16] for name, tensor in batch.items()} for k in range(0, len(batch["ids"]), 16)]
        with torch.autocast(self.pool.device.type, torch.bfloat16, enabled=self.pool.device.type == "cuda"):
            return torch.cat([self._error(part) for part in parts])


class Trainer:
    """Runs the stages within a time, and keeps what is needed to go on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.sizes, self.out = Sizes(arguments.tiny), arguments.out
        self.runs = arguments.runs or arguments.out / "runs"
        self.checkpoint = self.runs / "sky"
        self.device = resolve_runtime(arguments.device).device
        self.seconds, self.began = arguments.seconds, time.monotonic()
        self.precision = "bf16" if self.device.type == "cuda" else "no"
        self.report: dict[str, Any] = {"device": str(self.device), "stages": {}}
        if self.device.type == "cuda":
            self.report["card"] = torch.cuda.get_device_name()
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.corpus = list(SkyWorld().caption_corpus(4000))
        self.tokenizer, self.text_encoder = self.sizes.text.build(self.corpus)
        self.pool = ScenePool(self.sizes, self.device, self.tokenizer)

    def note(self, **found: Any) -> None:
        self.report.update(found)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / "train.json", self.report)

    def left(self) -> float:
        """Seconds of training that are left."""
        return self.seconds * (1 - MEASURING) - (time.monotonic() - self.began)

    def stage(self, name: str, build: Callable[[], Task], **loop: Any) -> Path:
        """Train one stage for its share of what is left, and return its export."""
        folder = self.runs / name
        if (folder / "result.json").exists():
            return folder / "export"
        names = list(SHARES)
        rest = sum(SHARES[n] for n in names[names.index(name) :])
        budget = max(0.0, self.left()) * SHARES[name] / rest
        started = time.monotonic()
        steps = loop.pop("steps", None)
        step_s = 0.0
        if steps is None:
            step_s = self._measured_step(build, loop)
            steps = max(10, int((budget - (time.monotonic() - started)) * 0.94 / step_s))
        print(f"{name}: {steps} steps in {budget:.0f} s ({step_s:.3f} s a step)", flush=True)
        config = LoopConfig(
            steps=steps,
            mixed_precision=self.precision,
            save_every=max(1, steps // 2),
            validate_every=max(1, steps // 3),
            log_every=max(1, steps // 12),
            **loop,
        )

        def show(record: dict[str, Any]) -> None:
            print(f"{name} {time.monotonic() - started:5.0f} s", json.dumps(record), flush=True)

        last = train(build(), config, folder, resume=True, device=self.device.type, on_record=show)
        seconds = time.monotonic() - started
        self.report["stages"][name] = {"steps": steps, "seconds": seconds, "step_s": step_s, "last": last}
        self.note()
        return folder / "export"

    def _measured_step(self, build: Callable[[], Task], loop: dict[str, Any]) -> float:
        """Return the seconds of a step, from a few that are thrown away; halve the batches until they fit."""
        for _ in range(4):
            try:
                return self._few_steps(build(), loop)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                self.sizes.halve()
                print(f"out of memory; batches are halved (videos: {self.sizes.video_batch})", flush=True)
        return self._few_steps(build(), loop)

    def _few_steps(self, task: Task, loop: dict[str, Any]) -> float:
        folder = self.runs / ".measured"
        shutil.rmtree(folder, ignore_errors=True)
        few = 3 if self.sizes.pixels < 64 else 12
        times: list[float] = []
        options = {**loop, "keep": "last"}
        config = LoopConfig(
            steps=2 * few, mixed_precision=self.precision, log_every=few, validate_every=10**9, save_every=10**9,
            **options,
        )  # fmt: skip
        task.validate, task.export = dict, lambda _: None  # type: ignore[method-assign,assignment]
        train(task, config, folder, device=self.device.type, on_record=lambda found: times.append(found["step_s"]))
        shutil.rmtree(folder, ignore_errors=True)
        return times[-1]

    def run(self) -> None:
        self.pool.fill()
        self.note(rendering_s=time.monotonic() - self.began, clips=self.sizes.clips)
        print(f"rendered {self.sizes.clips} clips in {self.report['rendering_s']:.1f} s", flush=True)
        image = self.autoencoder()
        self.pool.use(load_image_autoencoder(image).to(self.device).eval())
        self.words(image)
        self.diffusion("videos", video_share=0.7, whitening=0.0, context_share=0.4, lr=6e-4, schedule="constant")
        self.assemble(image, self.runs / "videos" / "export")
        self.diffusion("motion", video_share=0.92, whitening=1.0, context_share=0.45, lr=5e-4, schedule="cosine")
        self.assemble(image, self.runs / "motion" / "export")
        self.assemble(self.decoder(image), self.runs / "motion" / "export")
        self.measure()

    def autoencoder(self) -> Path:
        def build() -> Task:
            torch.manual_seed(0)
            vae = self.sizes.vae.build(self.sizes.pixels).to(memory_format=torch.channels_last)
            options = AutoencoderOptions(
                batch=self.sizes.images,
                crop=self.sizes.pixels if self.sizes.pixels >= 16 else 16,
                loss=ReconstructionWeights(l1=1.0, mse=0.5, laplacian=1.0, temporal=0.0),
                validation_clips=len(self.pool),
            )
            return DeviceAutoencoderTask(vae, self.pool, options, seed=0)

        return self.stage("autoencoder", build, lr=1.2e-3, warmup=40, ema_decay=0.997)

    def decoder(self, image: Path) -> Path:
        def build() -> Task:
            torch.manual_seed(1)
            temporal = TemporalAutoencoder.from_image(load_image_autoencoder(image), temporal_num_convs=2)
            temporal.to(memory_format=torch.channels_last)
            held_out = NoisyHeldOut(self.pool, min(24, len(self.pool)), LATENT_NOISE / 2)
            options = DecoderOptions(
                batch=self.sizes.decoded_clips,
                num_frames=8,
                loss=ReconstructionWeights(l1=1.0, mse=4.0, temporal=2.0),
            )
            return DeviceDecoderTask(temporal, self.pool, held_out, options, seed=0)

        export = self.stage("decoder", build, lr=1e-3, warmup=20, ema_decay=0.99, keep="best")
        self.note(decoder=json.loads((export / "metrics.json").read_text(encoding="utf-8")))
        return export

    def words(self, image: Path) -> Path:
        def build() -> Task:
            torch.manual_seed(2)
            sizes = self.sizes
            unet = sizes.unet.build(sizes.vae.latent_channels, sizes.pixels // 8, sizes.text.width)
            unet = TemporalUNet.from_image(unet, temporal_advection=True, temporal_given_frames=True)
            pipeline = LatentVideoPipeline(
                vae=load_image_autoencoder(image),
                unet=unet,
                text_encoder=self.text_encoder,
                tokenizer=self.tokenizer,
                scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
                noise_prior=MixedNoise(1.0),
                num_frames=WINDOW,
                fps=12.0,
                overlap_rule={"kind": "context", "overlap": 8, "guidance_scale": 1.0},
            )
            captions = list(SkyWorld().caption_corpus(8000))
            return WordsTask(pipeline, captions, WordsOptions(keep=0.0, text_lr=0.5), seed=0)

        return self.stage("words", build, steps=self.sizes.words, lr=2e-3, warmup=50, ema_decay=0.98)

    def diffusion(self, name: str, *, video_share: float, whitening: float, context_share: float, **loop: Any) -> Path:
        def build() -> Task:
            before = {"videos": "words", "motion": "videos"}[name]
            pipeline = LatentVideoPipeline.from_pretrained(self.runs / before / "export")
            pipeline.unet.float().to(memory_format=torch.channels_last)
            options = DiffusionOptions(
                video_share=video_share,
                num_frames=WINDOW,
                video_batch=self.sizes.video_batch,
                image_batch=self.sizes.image_batch,
                context_share=context_share,
                behind_share=0.2,
                logit_mean=0.2,
                whitening=whitening,
                twins=True,
                train_text=False,
            )
            return DeviceDiffusionTask(pipeline, self.pool, options, seed=0)

        return self.stage(name, build, warmup=60, ema_decay=0.998, **loop)

    def assemble(self, vae: Path, model: Path) -> None:
        """Join the video model with an autoencoder, half precision on disk, and pack it."""
        pipeline = LatentVideoPipeline.from_pretrained(model)
        pipeline.register_modules(vae=load_autoencoder(vae))
        pipeline.unet.half()
        pipeline.text_encoder.half()
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        pipeline.save_pretrained(self.checkpoint, max_shard_size="12MB")
        write_json(self.checkpoint / "metrics.json", {"training": self.collected()})
        pack(self.checkpoint, self.out / "sky.tar")

    def collected(self) -> dict[str, Any]:
        """Return every stage's steps and its last validation, from the runs' logs."""
        found: dict[str, Any] = {}
        for name in SHARES:
            log = self.runs / name / "log.jsonl"
            if log.exists():
                records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
                last = [record["validation"] for record in records if "validation" in record]
                loop = json.loads((self.runs / name / "loop.json").read_text(encoding="utf-8"))
                found[name] = {"steps": loop["steps"], "seed": loop["seed"], "validation": last[-1] if last else None}
        return found

    def measure(self) -> None:
        """Read the prompts' attributes back from samples, and save contact sheets."""
        self.note(trained_s=time.monotonic() - self.began)
        pipeline = LatentVideoPipeline.from_pretrained(self.checkpoint, runtime=resolve_runtime(self.device.type))
        shown: list[Tensor] = []
        found = evaluate_samples(
            pipeline,
            num_clips=self.sizes.samples,
            batch=8,
            num_inference_steps=2 if self.sizes.pixels < 64 else 14,
            guidance_scale=3.0,
            on_video=lambda _, video: shown.append(video[::5].cpu()),
        )
        save_contact_sheet(self.out / "samples.png", torch.cat(shown[:24]), columns=8, overwrite=True)
        frames = self.pool.held_video[:6, 0]
        assert self.pool.vae is not None
        with torch.no_grad():
            mean, _ = self.pool.vae.posterior(as_input(frames)[:, :, None])
            again = self.pool.vae.decode_chunk(mean)[:, :, 0]
        both = torch.cat([frames.cpu(), again.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()])
        save_contact_sheet(self.out / "autoencoder.png", both, columns=6, overwrite=True)
        self.note(samples=found, seconds=time.monotonic() - self.began)
        print(json.dumps(found["attributes"], indent=1), flush=True)


def pack(folder: Path, target: Path) -> None:
    """Write a folder as `target`.00, .01, ...: pieces of a tar of at most PIECE bytes, each replaced whole."""
    whole = target.with_name(f".{target.name}")
    with tarfile.open(whole, "w") as archive:
        archive.add(folder, arcname=folder.name)
    with whole.open("rb") as stream:
        for number, piece in enumerate(iter(lambda: stream.read(PIECE), b"")):
            beside = target.with_name(f".{target.name}.{number:02d}")
            beside.write_bytes(piece)
            beside.replace(target.with_name(f"{target.name}.{number:02d}"))
    whole.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the pieces, pictures and train.json go")
    parser.add_argument("--runs", type=Path, help="where states and exports go; by default OUT/runs")
    parser.add_argument("--seconds", type=float, default=360, help="for everything, rendering and measuring included")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: small networks, few clips")
    Trainer(parser.parse_args()).run()


if __name__ == "__main__":
    main()
