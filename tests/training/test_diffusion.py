"""Diffusion training: batches by number, context that is given and not asked for, oracles that lose nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from latentvid.core.errors import CheckpointError, UsageError
from latentvid.core.rng import Rng
from latentvid.pipeline import LatentVideoPipeline
from latentvid.sampling.prediction import target
from latentvid.temporal.inject import is_temporal
from latentvid.training.diffusion import DiffusionOptions, DiffusionTask
from latentvid.training.latent_cache import LatentCache, build_cache
from latentvid.training.loop import LoopConfig, train
from tests.factories import pipeline

FRAMES, NUM_CLIPS, HELD_OUT = 5, 12, 4
OPTIONS = DiffusionOptions(
    num_frames=FRAMES, video_batch=3, image_batch=4, max_context=3, validation_clips=HELD_OUT, video_share=0.5
)


class Clips:
    def __init__(self, frames: int, captions: tuple[str, ...] = ("clouds", "stars")) -> None:
        self.frames, self.captions = frames, captions

    def __len__(self) -> int:
        return NUM_CLIPS

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        video = Rng(index).integers(0, 256, self.frames, 3, 4, 4)[0].to(torch.uint8)
        return video, [f"{caption} {index}" for caption in self.captions]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LatentCache]:
    folder = tmp_path_factory.mktemp("caches")
    lengths = {"videos": FRAMES + 3, "images": 1}
    return {name: build_cache(Clips(frames), lambda v: v, folder / name) for name, frames in lengths.items()}


def make(
    caches: dict[str, LatentCache], *, prediction_type: str = "flow", prior: str = "progressive", **options: Any
) -> DiffusionTask:
    flow = prediction_type == "flow"
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0) if flow else DDIMScheduler(prediction_type=prediction_type)
    chosen = OPTIONS.model_copy(update=options)
    built = pipeline(scheduler=scheduler, prior=prior, num_frames=FRAMES)
    return DiffusionTask(built, caches.get("videos"), caches.get("images"), chosen, seed=3)


def is_video(batch: dict[str, Tensor]) -> bool:
    return batch["clean"].shape[2] > 1


def test_a_batch_is_a_function_of_its_number(caches: dict[str, LatentCache]) -> None:
    one, other = make(caches), make(caches)
    order = [3, 0, 2, 1]
    found = {k: other.batch(k) for k in order}
    for k in sorted(order):
        batch = one.batch(k)
        assert batch.keys() == found[k].keys()
        assert all(torch.equal(value, found[k][name]) for name, value in batch.items())
    assert not torch.equal(found[0]["eps"].flatten()[:48], found[1]["eps"].flatten()[:48])


def test_continuous_timesteps_are_not_trained() -> None:
    scheduler = EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    built = pipeline(scheduler=scheduler)
    for spacing, refusal in (("scheduler", UsageError), ("even", CheckpointError)):
        built.register_to_config(spacing=spacing)
        with pytest.raises(refusal, match="continuous timesteps"):
            DiffusionTask(built, None, None, OPTIONS, seed=0)


def test_images_and_videos_come_in_their_shares_and_never_from_what_is_held_out(
    caches: dict[str, LatentCache],
) -> None:
    task = make(caches)
    batches = [task.batch(k) for k in range(100)]
    assert 35 <= sum(map(is_video, batches)) <= 65
    shapes = {tuple(batch["clean"].shape) for batch in batches}
    assert shapes == {(3, 3, FRAMES, 4, 4), (4, 3, 1, 4, 4)}
    held_out = torch.stack([caches["images"].latents(k) for k in range(NUM_CLIPS - HELD_OUT, NUM_CLIPS)])
    for batch in batches:
        if not is_video(batch):
            assert not (batch["clean"][:, None] == held_out[None]).flatten(2).all(-1).any()
            assert not batch["is_context"].any()
    assert all(is_video(make({"videos": caches["videos"]}).batch(k)) for k in range(5))
    assert not any(is_video(make({"images": caches["images"]}).batch(k)) for k in range(5))


@pytest.mark.parametrize("prediction_type", ["flow", "v_prediction"])
def test_context_frames_come_first_and_at_lower_levels(prediction_type: str, caches: dict[str, LatentCache]) -> None:
    task = make(caches, prediction_type=prediction_type, video_share=1.0, context_share=0.5, logit_mean=-2.0)
    shown, clean, counts = 0, 0, set()
    for k in range(150):
        batch = task.batch(k)
        for levels, context in zip(batch["timestep"], batch["is_context"], strict=True):
            count = int(context.sum())
            assert context.tolist() == [True] * count + [False] * (FRAMES - count)
            assert len(set(levels[~context].tolist())) == 1
            assert (levels >= 0).all()
            assert (levels < 1000).all()
            if count:
                assert levels[0] <= levels[-1]
                assert task.schedule.level(levels[0]).sigma <= OPTIONS.context_sigma + 0.01
                shown, clean = shown + 1, clean + int(levels[0] == 0)
                counts.add(count)
        if prediction_type != "flow":
            assert torch.equal(batch["timestep"], batch["timestep"].floor())
    assert 0.4 < shown / 450 < 0.6
    assert 0.35 < clean / shown < 0.75
    assert counts == {1, 2, 3}


def test_context_frames_are_not_asked_for(caches: dict[str, LatentCache]) -> None:
    task = make(caches, video_share=1.0, context_share=1.0)
    batch = task.batch(0)
    error = Rng([0, 1, 2]).normal(3, FRAMES, 4, 4)
    task._error = lambda _: error  # type: ignore[method-assign, assignment]
    loss, terms = task(batch)
    assert float(loss) == pytest.approx(float(error.square().mean(dim=(1, 3, 4))[~batch["is_context"]].mean()))
    assert set(terms) == {"loss_video"}


@pytest.mark.parametrize("prior", ["iid", "mixed", "progressive"])
@pytest.mark.parametrize("context_share", [0.0, 1.0])
def test_whitened_errors_are_the_noise_s_likelihood(
    prior: str, context_share: float, caches: dict[str, LatentCache]
) -> None:
    """Against the density of what is asked for given what is shown, from the prior's covariance by conditioning."""
    task = make(caches, prior=prior, video_share=1.0, context_share=context_share, whitening=1.0)
    batch = task.batch(0)
    error = Rng([0, 1, 2]).normal(3, FRAMES, 4, 4)
    task._error = lambda _: error  # type: ignore[method-assign, assignment]
    covariance = task.prior.covariance(FRAMES)
    wanted = torch.tensor(0.0, dtype=torch.float64)
    for own, shown in zip(error.double(), batch["is_context"], strict=True):
        asked = covariance[~shown][:, ~shown]
        given = covariance[~shown][:, shown]
        left = asked - given @ torch.linalg.solve(covariance[shown][:, shown], given.T)
        flat = own.transpose(0, 1)[~shown].flatten(1)
        wanted += (flat * torch.linalg.solve(left, flat)).sum() / own[:, 0].numel()
    scale = float(torch.linalg.inv(covariance).trace()) / FRAMES
    asked_frames = int((~batch["is_context"]).sum())
    assert float(task(batch)[0]) == pytest.approx(float(wanted) / asked_frames / scale, rel=1e-4)
    plain = make(caches, prior=prior, video_share=1.0, context_share=context_share)
    plain._error = task._error  # type: ignore[method-assign]
    same = float(task(batch)[0]) == pytest.approx(float(plain(batch)[0]), rel=1e-6)
    assert same is (prior == "iid")


def test_twins_are_drawn_together_under_equal_noise(caches: dict[str, LatentCache]) -> None:
    task = make(caches, video_share=1.0, twins=True, video_batch=4, context_share=0.5)
    held = [caches["videos"].latents(k) for k in range(NUM_CLIPS)]
    for k in range(10):
        batch = task.batch(k)
        for one, other in ((0, 1), (2, 3)):
            for name in ("eps", "timestep", "is_context"):
                assert torch.equal(batch[name][one], batch[name][other])
            assert not torch.equal(batch["clean"][one], batch["clean"][other])
        numbers = []
        for clean in batch["clean"]:
            starts = [(n, s) for n, x in enumerate(held) for s in range(4) if torch.equal(x[:, s : s + FRAMES], clean)]
            assert len(starts) == 1
            numbers.append(starts[0])
        for (n, s), (m, r) in (numbers[:2], numbers[2:]):
            assert (n % 2, m, r) == (0, n + 1, s)


def test_twins_that_would_be_parted_are_refused(caches: dict[str, LatentCache]) -> None:
    with pytest.raises(UsageError, match="part twins"):
        make(caches, twins=True, validation_clips=3)


def test_the_image_network_may_be_left_alone(caches: dict[str, LatentCache]) -> None:
    task = make(caches, train="temporal")
    for name, parameter in task.unet.named_parameters():
        assert parameter.requires_grad is is_temporal(name)


class Oracle(nn.Module):
    """Stands for a U-Net that knows the batch."""

    def __init__(self, task: DiffusionTask, batch: dict[str, Tensor]) -> None:
        super().__init__()
        self.predict: Callable[[Tensor], Tensor] = lambda timestep: target(
            batch["clean"], batch["eps"], task.schedule.level(timestep), task.schedule.prediction_type
        )

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.predict(timestep)


@pytest.mark.parametrize("prediction_type", ["flow", "epsilon", "v_prediction", "sample"])
def test_an_oracle_loses_nothing(prediction_type: str, caches: dict[str, LatentCache]) -> None:
    task = make(caches, prediction_type=prediction_type)
    for k in range(3):
        batch = task.batch(k)
        before = float(task(batch)[0].detach())
        unet, task.unet = task.unet, Oracle(task, batch)
        assert float(task(batch)[0]) == 0
        task.unet = unet
        assert before > 0.1


def test_images_pass_no_temporal_layer_and_videos_do(caches: dict[str, LatentCache]) -> None:
    for name, wanted in (("images", False), ("videos", True)):
        task = make({name: caches[name]})
        task(task.batch(0))[0].backward()
        for parameter_name, parameter in task.unet.named_parameters():
            if is_temporal(parameter_name):
                assert (parameter.grad is not None) is wanted
        assert any(p.grad is not None for p in task.text_encoder.parameters())


def test_a_text_encoder_may_be_left_alone(caches: dict[str, LatentCache]) -> None:
    task = make(caches, train_text=False)
    assert len(task.parameter_groups(1e-3)) == 1
    assert not any(p.requires_grad for p in task.text_encoder.parameters())
    assert len(make(caches).parameter_groups(1e-3)) == 2


@pytest.mark.parametrize("prior", ["iid", "mixed", "progressive"])
def test_noise_follows_the_prior_over_a_batch(prior: str, caches: dict[str, LatentCache]) -> None:
    task = make(caches, prior=prior, video_share=1.0)
    eps = torch.cat([task.batch(k)["eps"] for k in range(60)]).double()
    found = torch.einsum("bcthw,bcshw->ts", eps, eps) / eps[:, :, 0].numel()
    # 8,640 draws: a standard error of at most sqrt(2 / 8640) = 0.015.
    torch.testing.assert_close(found, task.prior.covariance(FRAMES), atol=0.08, rtol=0)
    across = torch.einsum("cthw,cthw->", eps[0], eps[1]) / eps[0].numel()
    assert abs(float(across)) < 0.4


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_captions_are_dropped_at_their_rate(rate: float, caches: dict[str, LatentCache]) -> None:
    task = make(caches, caption_dropout=rate)
    empty = task._tokens("")[0]
    ids = torch.cat([task.batch(k)["ids"] for k in range(80)])
    found = float((ids == empty).all(dim=1).float().mean())
    assert abs(found - rate) < 0.1
    if rate < 1:
        assert len(ids.unique(dim=0)) > 10


def test_validation_is_repeatable_and_of_held_out_clips(
    caches: dict[str, LatentCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(caches).eval()
    asked: list[int] = []
    latents = LatentCache.latents
    monkeypatch.setattr(LatentCache, "latents", lambda self, k: asked.append(k) or latents(self, k))
    with torch.no_grad():
        first, second = task.validate(), task.validate()
    assert first == second
    assert set(asked) == set(range(NUM_CLIPS - HELD_OUT, NUM_CLIPS))
    assert first["video_mean"] == pytest.approx(sum(first[f"video_{k}"] for k in (0.25, 0.5, 0.75, 0.95)) / 4)
    assert "image_mean" in first


def test_a_pipeline_is_trained_and_exported(caches: dict[str, LatentCache], tmp_path: Path) -> None:
    task = make(caches)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    config = LoopConfig(steps=3, lr=1e-3, warmup=0, ema_decay=0.0, validate_every=100)
    train(task, config, tmp_path, device="cpu")
    exported = LatentVideoPipeline.from_pretrained(tmp_path / "export")
    assert all(torch.equal(value, exported.unet.state_dict()[k]) for k, value in task.unet.state_dict().items())
    assert any(not torch.equal(value, before[k]) for k, value in task.state_dict().items())
    assert not any(name.startswith("vae") for name in task.state_dict())
    assert exported("clouds", num_inference_steps=2, output_type="pt").frames.isfinite().all()


def test_data_that_cannot_be_trained_on_is_refused(caches: dict[str, LatentCache]) -> None:
    for options, sentence in (
        ({"validation_clips": NUM_CLIPS}, "leave none to train on"),
        ({"num_frames": 20}, "clips of 8 frames hold no window of 20"),
    ):
        with pytest.raises(UsageError, match=sentence):
            make(caches, **options)
    with pytest.raises(UsageError, match="nothing to train on"):
        make({})


def test_captions_that_are_cut_off_are_counted_and_said_once(tmp_path: Path) -> None:
    long = "clouds drift left over hills at dusk and then it snows on number"
    cache = build_cache(Clips(FRAMES, ("sky", long)), lambda v: v, tmp_path)
    with pytest.warns(
        UserWarning, match=rf"{NUM_CLIPS} of {2 * NUM_CLIPS} captions are longer than the 12 .*snows"
    ) as told:
        task = make({"videos": cache, "images": cache})
    assert task.batch(0)["ids"].shape[1] == 12
    assert len(told) == 1
