"""Finetuning: which files are trained on, what may change, what is written, and that it can be stopped."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from latentvid.autoencoders.load import load_autoencoder, load_image_autoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.rng import Rng
from latentvid.core.runtime import Runtime, resolve_runtime
from latentvid.finetuning import run as work
from latentvid.finetuning.config import FinetuneConfig
from latentvid.finetuning.estimate import estimate
from latentvid.finetuning.folder import check_folder, is_done
from latentvid.finetuning.footage import Footage, find_footage
from latentvid.finetuning.guard import guard_images, still_psnr
from latentvid.finetuning.result import FILES, Progress, finetune_decoder
from latentvid.temporal.inject import is_temporal
from latentvid.training.crops import NativeCrops, varied
from tests.training.footage_clips import write_base, write_footage

LARGE_ENOUGH = {"min_frames": 3, "min_side": 16}
LOOP = {"steps": 4, "warmup": 1, "lr": 1e-2, "log_every": 1, "validate_every": 4, "save_every": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "little")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_footage(tmp_path_factory.mktemp("footage"), 4)


@pytest.fixture(scope="module")
def cpu() -> Runtime:
    return resolve_runtime("cpu", "fp32")


def small(**loop: object) -> FinetuneConfig:
    return FinetuneConfig.model_validate(
        {
            "crop": 16,
            "num_clips": 6,
            "num_validation_clips": 2,
            "options": {"batch": 2, "num_frames": 3},
            "loop": {**LOOP, **loop},
        }
    )


def test_flags_do_not_undo_the_other_defaults() -> None:
    config = FinetuneConfig.model_validate({"loop": {"steps": 7}, "options": {"loss": {"l1": 2.0}}})
    assert config.loop.lr == FinetuneConfig().loop.lr
    assert config.options.loss.temporal == FinetuneConfig().options.loss.temporal


def test_whole_files_are_held_out(clips: list[Path]) -> None:
    found = find_footage(clips, **LARGE_ENOUGH)
    assert [c.path for c in found.train] == clips[:-1]
    assert [c.path for c in found.held_out] == clips[-1:]
    found = find_footage(clips, **LARGE_ENOUGH, num_held_out=3)
    assert [c.path for c in found.train] == clips[:1]
    found = find_footage(clips[:3], **LARGE_ENOUGH, held_out=clips[3:])
    assert [c.path for c in found.held_out] == clips[3:]
    with pytest.raises(UsageError, match="clip3.mp4 is both to be trained on and held out"):
        find_footage([clips[0].parent], **LARGE_ENOUGH, held_out=clips[3:])


def test_a_copy_of_a_held_out_clip_is_not_trained_on(clips: list[Path], tmp_path: Path) -> None:
    copy = shutil.copy(clips[3], tmp_path / "another_name.mp4")
    found = find_footage([*clips[:3], copy], **LARGE_ENOUGH, held_out=clips[3:])
    assert [c.path for c in found.train] == clips[:3]
    assert "the same file as" in found.skipped[0][1]


def test_every_skipped_file_has_a_reason(clips: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    short = write_footage(tmp_path, 1, frames=2)[0].rename(tmp_path / "short.mp4")
    tiny = write_footage(tmp_path, 1, size=(8, 48))[0].rename(tmp_path / "tiny.mp4")
    found = find_footage([*clips, broken, short, tiny], **LARGE_ENOUGH)
    reasons = {path.name: why for path, why in found.skipped}
    assert reasons.keys() == {"broken.mp4", "short.mp4", "tiny.mp4"}
    assert "2 frames" in reasons["short.mp4"]
    assert "48x8" in reasons["tiny.mp4"]
    with pytest.raises(InputError, match="can be used"):
        find_footage([broken, short], **LARGE_ENOUGH)
    with pytest.raises(UsageError, match="--val"):
        find_footage(clips[:1], **LARGE_ENOUGH)


def test_crops_are_the_footage_itself(clips: list[Path]) -> None:
    from latentvid.data.footage import scan
    from latentvid.video.reader import open_video

    infos, _ = scan(clips)
    options = {"num_clips": 8, "num_frames": 3, "size": 16, "strides": (1, 2), "seed": 5}
    crops = NativeCrops(infos, **options)
    backwards = [NativeCrops(infos, **options).clip(i)[0] for i in reversed(range(8))][::-1]
    for i in range(8):
        crop = crops.clip(i)[0]
        assert crop.shape == (3, 3, 16, 16)
        assert torch.equal(crop, backwards[i])
        whole = torch.stack([f.pixels for f in open_video(infos[i % 4].path).frames()])
        windows = whole.unfold(2, 16, 1).unfold(3, 16, 1)  # [t 3 y x 16 16]
        first = (windows == crop[0, :, None, None]).all(dim=(1, 4, 5))
        assert first.any()  # at its own resolution, somewhere in its own file
    assert not torch.equal(crops.clip(0)[0], NativeCrops(infos, **{**options, "seed": 6}).clip(0)[0])


def test_runs_from_before_a_setting_was_there_go_on(clips: list[Path], tmp_path: Path) -> None:
    footage, settings = find_footage(clips, **LARGE_ENOUGH), tmp_path / "run" / "settings.json"
    check_folder(tmp_path, small(), "vae", footage, resume=False)
    before = json.loads(settings.read_text())
    assert before["config"].pop("vary") is False
    assert before["config"]["options"].pop("gradient_checkpointing") is False
    settings.write_text(json.dumps(before))
    check_folder(tmp_path, small(), "vae", footage, resume=True)
    with pytest.raises(UsageError, match="vary was False and is now True; resume it"):
        check_folder(tmp_path, small().model_copy(update={"vary": True}), "vae", footage, resume=True)


def test_varied_crops_are_the_footage_turned_and_in_another_light(monkeypatch: pytest.MonkeyPatch) -> None:
    crop = Rng(1).integers(0, 256, 4, 3, 8, 8)[0].to(torch.uint8)
    seen = [varied(crop, Rng(seed)) for seed in range(40)]
    assert all(one.dtype == torch.uint8 and one.shape == crop.shape for one in seen)
    assert torch.equal(varied(crop, Rng(3)), seen[3])
    still = varied(crop[:1].expand(4, -1, -1, -1), Rng(3))
    assert torch.equal(still, still[:1].expand_as(still))  # all frames alike
    grey = (32 + 3 * crop.int() // 4).to(torch.uint8)  # neither black nor white until its levels move
    reached = torch.stack([varied(grey, Rng(seed)) for seed in range(40)])
    assert int(reached.min()) == 0
    assert int(reached.max()) == 255
    for name in ("GAMMA", "LEVELS", "SATURATION", "HUE"):
        monkeypatch.setattr(f"latentvid.training.crops.{name}", 0.0)
    places = [
        torch.rot90(x, k, (-2, -1)) for x in (crop, crop.flip(-1), crop.flip(0), crop.flip(0, -1)) for k in range(4)
    ]
    found = set()
    for seed in range(200):
        errors = [(place.int() - varied(crop, Rng(seed)).int()).abs().max() for place in places]
        assert min(errors) <= 1
        found.add(errors.index(min(errors)))
    assert len(found) == 16


def test_held_out_crops_are_never_varied(base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path) -> None:
    footage, tasks = find_footage(clips, **LARGE_ENOUGH), {}
    for vary in (False, True):
        config = small().model_copy(update={"vary": vary})
        network = load_image_autoencoder(base)
        tasks[vary] = work.build_task(config, config.plan()[0], network, footage, tmp_path, runtime=cpu)
    assert torch.equal(tasks[False].held_out.video(0), tasks[True].held_out.video(0))
    assert not torch.equal(tasks[False].clips.video(0), tasks[True].clips.video(0))


def test_encoder_and_image_decoder_are_untouched_and_delta_equals_the_model(
    base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path
) -> None:
    done = work.finetune(small(), base, find_footage(clips, **LARGE_ENOUGH), tmp_path / "out", runtime=cpu)
    image = load_autoencoder(base)
    full = load_autoencoder(tmp_path / "out")
    assert isinstance(full, TemporalAutoencoder)
    before = image.state_dict()
    changed = {k for k, v in full.state_dict().items() if k not in before or not torch.equal(v, before[k])}
    assert changed
    assert all(is_temporal(name) for name in changed)
    assert any(is_temporal(k) and v.abs().sum() for k, v in full.state_dict().items() if k.endswith("convs.1.weight"))
    from_delta = load_autoencoder(tmp_path / "out" / "delta", image_autoencoder=image)
    latents = torch.randn(1, 3, 5, 4, 4)
    assert torch.equal(from_delta.decode_chunk(latents), full.decode_chunk(latents))
    assert torch.equal(
        TemporalAutoencoder.from_pretrained(tmp_path / "out").decode_chunk(latents), full.decode_chunk(latents)
    )
    assert done.guard.psnr_before == pytest.approx(done.guard.psnr_kept, abs=1e-4)
    assert done.guard.holds
    assert done.autoencoder.has_delta


def test_one_call_trains_measures_and_writes(base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path) -> None:
    """And, called again, measures the same decoder and leaves what was edited."""
    told: list[Progress] = []
    out = tmp_path / "out"
    call = partial(
        finetune_decoder, clips[0].parent, out, vae=base, config=small(), runtime=cpu, on_progress=told.append
    )
    done = call(command="how it was called")
    phases = {phase: [at for at in told if at.phase == phase] for phase in ("preparing", "training", "evaluating")}
    assert [at.phase for at in told] == [phase for phase, found in phases.items() for _ in found]
    for phase, stage, total in (("preparing", "", 6), ("training", "temporal", 4), ("evaluating", "", 2)):
        assert {(at.stage, at.total) for at in phases[phase]} == {(stage, total)}
        assert [at.done for at in phases[phase]] == sorted(at.done for at in phases[phase])
        assert phases[phase][-1].done == total
    assert any("loss" in at.record for at in told)
    assert any("validation" in at.record for at in told)

    assert done.files.keys() == FILES.keys()
    assert all(path.exists() and path.parent == out for path in done.files.values())
    metrics = json.loads(done.files["metrics"].read_text())
    assert metrics == json.loads(json.dumps(done.facts))
    held_out = metrics["held_out"]
    assert done.gains["psnr_gain"] == held_out["finetuned"]["psnr"] - held_out["frame by frame"]["psnr"]
    assert [clip["file"] for clip in metrics["data"]["held_out"]] == ["clip3.mp4"]
    assert done.table == done.files["table"].read_text()
    card = done.files["card"].read_text()
    assert done.table.strip() in card
    assert "how it was called" in card
    assert torch.equal(
        *(vae.state_dict()["decoder.conv_out.bias"] for vae in (load_autoencoder(out), done.trained.autoencoder))
    )

    done.files["card"].write_text("mine")
    with pytest.warns(UserWarning, match="README.md was changed since it was written"):
        again = call(resume=True)
    assert done.files["card"].read_text() == "mine"
    assert (again.gains["psnr_gain"], again.trained.stages) == (done.gains["psnr_gain"], done.trained.stages)


def test_stopped_and_resumed_equals_uninterrupted(base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path) -> None:
    config, footage = small(), find_footage(clips, **LARGE_ENOUGH)
    whole = work.finetune(config, base, footage, tmp_path / "whole", runtime=cpu)

    def stop(record: dict[str, object]) -> None:
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.finetune(config, base, footage, tmp_path / "parts", runtime=cpu, on_record=stop)
    with pytest.raises(UsageError, match="--resume"):
        work.finetune(config, base, footage, tmp_path / "parts", runtime=cpu)
    with pytest.raises(UsageError, match=r"loop\.lr was 0\.01 and is now 0\.001"):
        work.finetune(small(lr=1e-3), base, footage, tmp_path / "parts", runtime=cpu, resume=True)
    parts = work.finetune(config, base, footage, tmp_path / "parts", runtime=cpu, resume=True)
    for (name, a), b in zip(
        whole.autoencoder.state_dict().items(), parts.autoencoder.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"options": {"batch": 3, "num_frames": 3}}, "begun with other settings: options.batch was 2 and is now 3;"),
        ({"vae": "other"}, "vae was 'vae' and is now 'other'"),
        ({"loop": {**LOOP, "mixed_precision": "fp16"}}, "loop.mixed_precision was 'no' and is now 'fp16'"),
        ({"stages": ["spatial"]}, "stages.0 was 'temporal' and is now 'spatial'"),
        ({"train": slice(1, 3)}, r"other files to train on: .*0\.mp4 is not among them any more;"),
        ({"train": slice(None, None, -1)}, "to train on: they come in another order"),
        ({"loop": {**LOOP, "steps": 3}}, "has taken 4 steps; loop.steps can be 4 or more, not 3"),
        ({"loop": {**LOOP, "steps": 9}}, "loop.steps was 4 and is now 9; the learning rate falls along a cosine"),
        ({"loop": {**LOOP, "mixed_precision": "bf16"}}, "loop.mixed_precision was 'no' and is 'bf16' from here on"),
        ({"loop": {**LOOP, "log_every": 3, "save_every": 1, "prefetch": 4}, "max_eval_frames": 5}, ""),
        ({"stages": ["temporal", "spatial"], "spatial": {"loop": {"lr": 3}}}, ""),
        ({"long": {"loop": {"steps": 3}}}, ""),
    ],
)
def test_what_may_change_of_a_run_and_what_is_said(
    changes: dict[str, Any], sentence: str, clips: list[Path], tmp_path: Path
) -> None:
    footage = find_footage(clips, **LARGE_ENOUGH)
    check_folder(tmp_path, small(), "vae", footage, resume=False)
    (tmp_path / "run" / "temporal" / "state" / "step-4").mkdir(parents=True)
    files = footage.train[changes.pop("train", slice(None))]
    again = (changes.pop("vae", "vae"), replace(footage, train=files))
    config = FinetuneConfig.model_validate({**small().model_dump(), **changes})
    if "can be" in sentence or (not any(word in sentence for word in ("cosine", "from here on")) and sentence):
        with pytest.raises(UsageError, match=sentence):
            check_folder(tmp_path, config, *again, resume=True)
        check_folder(tmp_path, small(), "vae", footage, resume=True)
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_folder(tmp_path, config, *again, resume=True)
        check_folder(tmp_path, config, *again, resume=True)  # is what it goes on with from now on
    assert [sentence in str(each.message) for each in told] == [True] * bool(sentence)


def test_more_steps_go_on_from_the_last(base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path) -> None:
    footage, out, run = find_footage(clips, **LARGE_ENOUGH), tmp_path / "out", tmp_path / "out" / "run"

    def finetune(folder: Path, **loop: object) -> tuple[work.Finetuned, list[int]]:
        steps: list[int] = []
        done = work.finetune(
            small(**loop),
            base,
            footage,
            folder,
            runtime=cpu,
            resume=folder.exists(),
            on_record=lambda record: steps.append(record["step"]),
        )
        return done, steps

    finetune(out, schedule="constant", keep="last")
    with pytest.warns(UserWarning, match="loop.steps was 4 and is now 6; the run goes on from step 4"):
        done, steps = finetune(out, schedule="constant", keep="last", steps=6)
    assert (min(steps), max(steps), done.stages[0].steps) == (5, 6, 6)
    assert json.loads((run / "temporal" / "result.json").read_text())["steps"] == 6
    whole, _ = finetune(tmp_path / "whole", schedule="constant", keep="last", steps=6)
    for (name, a), b in zip(
        whole.autoencoder.state_dict().items(), done.autoencoder.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    # A stage that another one was grown from stays.
    (run / "long" / "state" / "step-1").mkdir(parents=True)
    config = FinetuneConfig.model_validate(
        {**small(steps=8, schedule="constant", keep="last").model_dump(), "stages": ["temporal", "long"]}
    )
    assert is_done(config, config.plan()[0], run)
    with pytest.warns(UserWarning, match="stage temporal stays as it is, since the next stage was grown from it"):
        check_folder(out, config, str(base), footage, resume=True)


def test_a_folder_with_something_else_is_left_alone(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    footage = find_footage(clips, **LARGE_ENOUGH)
    with pytest.raises(UsageError, match="something else"):
        check_folder(tmp_path, small(), "base", footage, resume=True)
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / "thesis.txt", small(), "base", footage, resume=False)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_does_not_fit_stops_before_anything_is_written(
    base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path
) -> None:
    footage, out = find_footage(clips, **LARGE_ENOUGH), tmp_path / "out"
    with pytest.raises(CheckpointError):
        work.finetune(small(), tmp_path / "no_vae", footage, out, runtime=cpu)
    with pytest.raises(UsageError, match="multiple of 2"):
        work.finetune(small().model_copy(update={"crop": 17}), base, footage, out, runtime=cpu)
    assert not out.exists()


def test_guard_moves_spatial_weights_back_only_where_stills_suffer(base: Path, clips: list[Path]) -> None:
    image = load_autoencoder(base)
    finetuned = TemporalAutoencoder.from_image(image).requires_grad_(False).eval()
    untouched = guard_images(finetuned, image, clips[:2])
    assert untouched.share == 1
    assert untouched.psnr_trained == pytest.approx(untouched.psnr_before, abs=1e-4)

    finetuned.decoder.conv_out.bias.add_(0.3)  # a grey cast
    hurt = still_psnr(finetuned, clips[:2])
    guarded = guard_images(finetuned, image, clips[:2])
    assert hurt < guarded.psnr_before - 0.1
    assert guarded.psnr_trained == pytest.approx(hurt)
    assert guarded.share < 1
    assert guarded.holds
    assert still_psnr(finetuned, clips[:2]) == pytest.approx(guarded.psnr_kept)
    assert "had fallen" in guarded.sentence()
    weights = finetuned.without_time().state_dict()["decoder.conv_out.bias"]
    start = image.state_dict()["decoder.conv_out.bias"]
    assert torch.allclose(weights, start + guarded.share * 0.3, atol=1e-6)


def test_spatial_training_keeps_the_encoder(base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path) -> None:
    config = FinetuneConfig.model_validate(
        {**small().model_dump(), "options": {"batch": 2, "num_frames": 3, "train_spatial": True, "still_share": 0.5}}
    )
    done = work.finetune(config, base, find_footage(clips, **LARGE_ENOUGH), tmp_path / "out", runtime=cpu)
    assert done.autoencoder.latent_space() == load_autoencoder(base).latent_space()
    assert done.guard.holds
    assert (tmp_path / "out" / "delta").exists() == done.autoencoder.has_delta


def staged() -> FinetuneConfig:
    loop = {**LOOP, "lr": 1e-3}
    judged = {"start_step": 1, "width": 4, "num_layers": 2}
    return FinetuneConfig.model_validate(
        {
            **small().model_dump(),
            "stages": ["temporal", "spatial", "long"],
            "spatial": {"options": {"batch": 2, "num_frames": 3, "discriminator": judged}, "loop": loop},
            "long": {"options": {"num_frames": 6, "chunk_frames": 2, "gradient_checkpointing": True}, "loop": loop},
        }
    )


def test_stages_start_from_what_the_one_before_has_made_and_resume(
    base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path
) -> None:
    """Stopped in each of them; a stage that is done is not run again."""
    footage = find_footage(clips, **LARGE_ENOUGH)
    whole = work.finetune(staged(), base, footage, tmp_path / "whole", runtime=cpu)
    assert [stage.name for stage in whole.stages] == ["temporal", "spatial", "long"]
    runs = tmp_path / "whole" / "run"
    first, second = (load_autoencoder(runs / name / "export").state_dict() for name in ("temporal", "spatial"))
    if whole.stages[1].kept:
        assert any(not torch.equal(value, second[name]) for name, value in first.items() if not is_temporal(name))
    for name, stage in zip(("spatial", "long"), whole.stages, strict=False):
        records = (runs / name / "log.jsonl").read_text().splitlines()
        begun = json.loads(records[0])
        assert begun["step"] == 0
        if name == "spatial":  # equally long crops of the same files: the very same figures
            assert begun["validation"]["psnr"] == pytest.approx(stage.validation["psnr"], abs=1e-4)

    told: list[tuple[str, int]] = []

    def stop(record: dict[str, object]) -> None:
        told.append((str(record["stage"]), int(str(record["step"]))))
        if "loss" in record and told[-1][1] == 3 and told.count(told[-1]) == 1:
            raise KeyboardInterrupt

    for again in range(3):
        with pytest.raises(KeyboardInterrupt):
            work.finetune(staged(), base, footage, tmp_path / "parts", runtime=cpu, resume=again > 0, on_record=stop)
    parts = work.finetune(staged(), base, footage, tmp_path / "parts", runtime=cpu, resume=True, on_record=stop)
    assert {stage for stage, step in told if step == 3} == {"temporal", "spatial", "long"}
    assert parts.stages == whole.stages
    for name, value in whole.autoencoder.state_dict().items():
        assert torch.equal(value, parts.autoencoder.state_dict()[name]), name


def test_footage_that_is_too_short_for_a_stage_is_told_before_it_starts(
    base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path
) -> None:
    config = small().model_copy(update={"stages": ["temporal", "long"]})
    with pytest.raises(UsageError, match="long.options.num_frames"):
        work.finetune(config, base, find_footage(clips, **LARGE_ENOUGH), tmp_path / "out", runtime=cpu)
    assert not (tmp_path / "out").exists()


def test_estimate_takes_one_step_and_leaves_nothing(
    base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    footage = find_footage(clips, **LARGE_ENOUGH)
    needs = estimate(small(), base, footage, runtime=cpu)
    assert needs.steps == 4
    assert 0 < needs.step_s < 60
    assert needs.total_s >= 4 * needs.step_s
    assert needs.memory_bytes > needs.disk_bytes > 0
    staged_needs = estimate(staged(), base, footage, runtime=cpu)
    assert staged_needs.steps == 12
    assert staged_needs.disk_bytes > needs.disk_bytes
    assert list(tmp_path.iterdir()) == []


def test_held_out_files_are_never_read_while_training_batches_are_made(
    base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path
) -> None:
    footage = find_footage(clips, **LARGE_ENOUGH)
    stage = small().plan()[0]
    task = work.build_task(small(), stage, load_autoencoder(base), footage, tmp_path, runtime=cpu)
    train = {bytes(task.clips.video(i).numpy().tobytes()) for i in range(len(task.clips))}
    swapped = Footage(footage.held_out, footage.train)
    other = work.build_task(small(), stage, load_autoencoder(base), swapped, tmp_path, runtime=cpu)
    held = {bytes(other.clips.video(i).numpy().tobytes()) for i in range(len(other.clips))}
    assert train.isdisjoint(held)
    for index in range(6):
        video = task.batch(index)["video"]
        assert {bytes(clip.numpy().tobytes()) for clip in video} <= train
    settings = json.loads(json.dumps(footage.describe()))
    assert [c["file"] for c in settings["held_out"]] == ["clip3.mp4"]


@pytest.mark.parametrize("train_spatial", [False, True])
def test_what_was_finetuned_is_finetuned_again(
    base: Path, clips: list[Path], cpu: Runtime, tmp_path: Path, train_spatial: bool
) -> None:
    """A delta goes on the autoencoder that all began with, so there is one only while that one's weights are in use."""
    footage = find_footage(clips, **LARGE_ENOUGH)
    options = {"batch": 2, "num_frames": 3, "train_spatial": train_spatial}
    first = FinetuneConfig.model_validate({**small(lr=1e-3, keep="last").model_dump(), "options": options})
    once = work.finetune(first, base, footage, tmp_path / "once", runtime=cpu)
    assert once.autoencoder.has_delta == (not train_spatial)
    again = work.finetune(small(), tmp_path / "once", footage, tmp_path / "again", runtime=cpu)
    assert again.autoencoder.has_delta == once.autoencoder.has_delta == (tmp_path / "again" / "delta").exists()
    assert again.autoencoder.image_weights() == once.autoencoder.image_weights()
    full = load_autoencoder(tmp_path / "again")
    latents = torch.randn(1, 3, 5, 4, 4)
    assert not torch.equal(full.decode_chunk(latents), once.autoencoder.decode_chunk(latents))
    if again.autoencoder.has_delta:
        for image in (base, tmp_path / "once"):
            from_delta = load_autoencoder(tmp_path / "again" / "delta", image_autoencoder=image)
            assert torch.equal(from_delta.decode_chunk(latents), full.decode_chunk(latents))
