"""What the stages of a finetuning add: chunks with a carried past, a discriminator, checkpointing, the best weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.core.files import read_json
from latentvid.core.rng import Rng
from latentvid.finetuning.config import FinetuneConfig
from latentvid.finetuning.curves import curves, read_log
from latentvid.temporal.context import StreamState
from latentvid.training.adversary import Adversary, DiscriminatorOptions
from latentvid.training.checkpointing import checkpoint_spatial_blocks
from latentvid.training.decoder import DecoderOptions, DecoderTask, last_weight
from latentvid.training.latent_cache import LatentCache, build_cache
from latentvid.training.loop import LoopConfig, saved_states, train
from tests.autoencoders.small_networks import grown, image_network
from tests.training.toys import CONFIG, ToyTask

ROOT = Path(__file__).resolve().parents[2]
LOOP = LoopConfig(steps=4, lr=1e-3, warmup=1, ema_decay=0.5, log_every=1, save_every=2, validate_every=2, keep="best")
JUDGED = {"train_spatial": True, "still_share": 0.3, "discriminator": {"start_step": 1, "width": 4, "num_layers": 2}}


class Clips:
    """Numbered noise."""

    def __len__(self) -> int:
        return 4

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        return Rng(index).integers(0, 256, 6, 3, 16, 16)[0].to(torch.uint8), []


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> LatentCache:
    folder = tmp_path_factory.mktemp("cache")
    return build_cache(Clips(), ImageAutoencoder(image_network("tiny")).encode_clip, folder, keep_pixels=True)


def task(cache: LatentCache, kind: str = "tiny", **options: Any) -> DecoderTask:
    chosen = DecoderOptions.model_validate({"num_frames": 4, "validation_clips": 1, **options})
    return DecoderTask(grown(kind, trained=True), cache, chosen, seed=1)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(saved_states(folder)[-1] / "model.safetensors")


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class Killed(BaseException):
    """Ends a run where no handler waits for it."""


def test_chunks_decode_what_the_whole_does_and_gradients_stop_between_them(cache: LatentCache) -> None:
    whole, chunked = task(cache), task(cache, chunk_frames=2)
    latents = whole.batch(0)["latents"].requires_grad_()
    expected, found = whole._decode(latents), chunked._decode(latents)
    assert torch.equal(found[:, :, :2], whole.autoencoder.decode_chunk(latents[:, :, :2]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    through = torch.autograd.grad(expected[:, :, 2:].sum(), latents)[0]
    assert through[:, :, :2].abs().sum() > 0
    cut = torch.autograd.grad(found[:, :, 2:].sum(), latents)[0]
    assert cut[:, :, :2].abs().sum() == 0
    assert cut[:, :, 2:].abs().sum() > 0


@pytest.mark.parametrize("kind", ["tiny", "kl-plain"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    """Neither whole clips' nor those of chunks, whose pasts a second pass must not move."""
    found: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        network = grown(kind, trained=True).requires_grad_(True)
        if checkpointing:
            checkpoint_spatial_blocks(network.decoder)
        latents = Rng(4).normal(network.latent_channels, 5, 4, 4)
        state = StreamState()
        parts = [network.decode_chunk(part, state) for part in latents.split(2, dim=2)]
        loss = torch.cat(parts, dim=2).square().mean() + network.decode_chunk(latents).mean()
        loss.backward()
        found.append({name: p.grad for name, p in network.decoder.named_parameters() if p.grad is not None})
    assert_equal(*found)
    assert any(".temporal." in name and float(grad.abs().sum()) > 0 for name, grad in found[0].items())


def test_without_a_discriminator_nothing_of_it_is_there(cache: LatentCache, tmp_path: Path) -> None:
    """One that never comes in changes no bit of what is trained, and one that does changes it."""
    ends = {}
    for name, discriminator in (
        ("none", None),
        ("waiting", {"start_step": 100, "width": 4, "num_layers": 2}),
        ("on", {"start_step": 0, "width": 4, "num_layers": 2}),
    ):
        work = task(cache, train_spatial=True, discriminator=discriminator)
        train(work, LOOP.model_copy(update={"keep": "last"}), tmp_path / name, device="cpu")
        ends[name] = weights(tmp_path / name)
        trained = {k: v for k, v in ends[name].items() if not k.startswith("adversary.")}
        assert (len(trained) < len(ends[name])) == (name != "none")
        ends[name] = trained
    assert_equal(ends["none"], ends["waiting"])
    assert any(not torch.equal(value, ends["on"][name]) for name, value in ends["none"].items())


def test_a_run_with_a_discriminator_that_dies_and_is_resumed_equals_one_that_does_not(
    cache: LatentCache, tmp_path: Path
) -> None:
    def die(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            raise Killed

    train(task(cache, **JUDGED), LOOP, tmp_path / "whole", device="cpu")
    with pytest.raises(Killed):
        train(task(cache, **JUDGED), LOOP, tmp_path / "parts", device="cpu", on_record=die)
    assert [state.name for state in saved_states(tmp_path / "parts")] == ["step-2"]
    train(task(cache, **JUDGED), LOOP, tmp_path / "parts", device="cpu", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert_equal(whole, parts)
    assert not whole["adversary.averages"].isnan().any()
    for name in ("optimizer_1.bin", "best.pt"):
        one, other = (saved_states(tmp_path / run)[-1] / name for run in ("whole", "parts"))
        assert str(torch.load(one, weights_only=True)) == str(torch.load(other, weights_only=True))
    logs = [[{**r, "step_s": 0} for r in read_log(tmp_path / run / "log.jsonl")] for run in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert any("discriminator" in record for record in logs[0])


def test_each_network_learns_from_its_own_loss_alone(cache: LatentCache) -> None:
    work = task(cache, train_spatial=True, still_share=0.0, discriminator={"start_step": 0, "width": 4})
    work.begin_step(0)
    loss, terms = work(work.batch(0))
    assert terms["adaptive_weight"] > 0
    loss.backward()
    assert work.adversary is not None
    assert all(p.grad is None for p in work.adversary.parameters())
    work.zero_grad()
    (judged,) = work.discriminator_batches()
    work(judged)[0].backward()
    assert all(p.grad is not None for p in work.adversary.parameters())
    assert all(p.grad is None for p in work.autoencoder.parameters())
    assert work.discriminator_batches() == []
    assert last_weight(work.autoencoder.decoder).shape[0] == 3


def test_stills_are_not_judged(cache: LatentCache) -> None:
    work = task(cache, train_spatial=True, discriminator={"start_step": 0, "width": 4})
    work.begin_step(0)
    batch = work.batch(0)
    stills = {"video": batch["video"][:, :1], "latents": batch["latents"][:, :, :1]}
    assert "generator" not in work(stills)[1]
    loss, _ = work(work.discriminator_batches()[0])
    assert float(loss.detach()) == 0
    assert work.adversary is not None
    assert work.adversary.averages.isnan().all()


def test_it_comes_in_where_the_reconstruction_is_flat() -> None:
    adversary = Adversary(DiscriminatorOptions(flat_db=0.1, width=4), seed=0)
    for psnr in (20.0, 21.0, 21.2):
        adversary.validated(psnr)
        adversary.begin_step(1000)
        assert not adversary.is_on
    adversary.validated(21.25)
    assert adversary.is_on
    again = Adversary(DiscriminatorOptions(flat_db=0.1, width=4), seed=0)
    again.load_state_dict(adversary.state_dict())
    assert again.is_on


class Scored(ToyTask):
    """Its validations are as good as a list says; None is what must not be kept."""

    scores: tuple[float | None, ...] = ()

    def validate(self) -> dict[str, float]:
        return {"weight": float(self.layer.weight.sum()), "step": float(self.step)}

    def begin_step(self, step: int) -> None:
        self.step = step + 1

    step = 0

    def score(self, figures: Any) -> float | None:
        return self.scores[int(figures["step"]) // 2]


@pytest.mark.parametrize(
    ("scores", "patience", "kept", "steps"),
    [
        ((1, 2, 3, 4, 5, 6, 7), 2, 12, 12),
        ((1, 3, 2, 2, 9, 9, 9), 2, 2, 6),
        ((1, 3, 2, 2, 9, 8, 7), 0, 8, 12),
        ((5, 4, None, 3, 2, 1, 0), 3, 0, 6),
        ((1, None, None, 2, 1, 1, 1), 5, 6, 12),
    ],
)
def test_the_best_weights_are_kept_and_patience_ends(
    scores: tuple[float | None, ...], patience: int, kept: int, steps: int, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"keep": "best", "patience": patience, "validate_every": 2, "save_every": 3})
    work = Scored()
    work.scores = scores
    train(work, config, tmp_path, device="cpu")
    assert read_json(tmp_path / "result.json") == {"steps": steps, "kept": kept, "stopped": steps < 12}
    records = read_log(tmp_path / "log.jsonl")
    validated = {r["step"]: r["validation"]["weight"] for r in records if "validation" in r}
    exported = load_file(tmp_path / "export" / "toy.safetensors")
    assert float(exported["layer.weight"].sum()) == pytest.approx(validated[kept])
    assert any("stopped" in record for record in records) == (steps < 12)


def test_weights_that_cost_stills_are_not_kept(cache: LatentCache) -> None:
    work = task(cache)
    assert work.score({"loss": 0.3, "psnr": 30.0, "image_guard": 1.0}) == -0.3
    assert work.score({"loss": 0.1, "psnr": 40.0, "image_guard": 0.0}) is None


def test_the_guard_looks_back_to_the_first_image_decoder(cache: LatentCache) -> None:
    """Not to what a stage before has made of it."""
    spoiled = grown("tiny", trained=True)
    last_weight(spoiled.decoder).zero_()
    chosen = DecoderOptions(num_frames=4, validation_clips=1)
    first = ImageAutoencoder(image_network("tiny"))
    assert DecoderTask(spoiled, cache, chosen, seed=1).validate()["image_guard"] == 1
    assert DecoderTask(spoiled, cache, chosen, seed=1, image=first).validate()["image_guard"] == 0


def test_stages_are_settings() -> None:
    config = FinetuneConfig.model_validate({"stages": ["temporal", "long"], "num_clips": 100})
    temporal, long = config.plan()
    assert (temporal.name, long.name) == ("temporal", "long")
    assert long.options.num_frames > temporal.options.num_frames
    assert long.num_clips == round(100 * temporal.options.num_frames / long.options.num_frames)
    assert long.options.chunk_frames
    for wrong in (["long", "temporal"], ["temporal", "temporal"], []):
        with pytest.raises(ValueError, match="stages"):
            FinetuneConfig.model_validate({"stages": wrong})
    with pytest.raises(ValueError, match="train_spatial"):
        DecoderOptions.model_validate({"discriminator": {}})


def test_curves_have_a_column_for_each_stage() -> None:
    figures = {"psnr_frame_by_frame": 1.0, "image_psnr": 1.0, "flicker": 3.0, "flicker_frame_by_frame": 3.0}
    log = [
        {"step": 0, "validation": {"psnr": 1.0, **figures}},
        {"step": 10, "loss": 0.5},
        {"step": 10, "validation": {"psnr": 2.0, **figures}},
    ]
    assert curves({"temporal": log}).width == 960
    three = curves({"temporal": log, "spatial": log, "long": []})
    assert three.width == 3 * 640
    assert three.crop((0, 40, 640, 300)).tobytes() == three.crop((640, 40, 1280, 300)).tobytes()
    assert three.crop((0, 40, 640, 300)).tobytes() != three.crop((1280, 40, 1920, 300)).tobytes()


RANKS = """
import sys
from pathlib import Path
import torch
from latentvid.training.latent_cache import LatentCache
from latentvid.training.loop import train
from tests.training.test_stages import JUDGED, LOOP, task
work = task(LatentCache(Path(sys.argv[2])), **JUDGED)
train(work, LOOP, Path(sys.argv[1]), device="cpu")
rank = torch.distributed.get_rank()
torch.save(work.state_dict(), Path(sys.argv[1]) / f"rank-{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_keep_one_generator_and_one_discriminator(cache: LatentCache, tmp_path: Path) -> None:
    """Also where one of them has stills, which are not judged, and the other has not."""
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py"), str(tmp_path / "run"), str(cache.folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / "run" / f"rank-{k}.pt", weights_only=True) for k in range(2))
    trained = {name for name in one if name != "adversary.averages"}  # each rank's own, rank 0's before the next step
    assert_equal({k: one[k] for k in trained}, {k: other[k] for k in trained})
    begun = task(cache, **JUDGED).state_dict()
    assert any(not torch.equal(one[k], begun[k]) for k in trained if k.startswith("adversary.network"))
