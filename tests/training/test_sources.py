"""Data as configs describe it: footage, stills, shards and mixtures trained on end to end, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from latentvid.cli.main import main
from latentvid.core.config import load_config, validate
from latentvid.core.errors import CheckpointError, LatentVidError, UsageError
from latentvid.core.rng import Rng
from latentvid.finetuning.config import FinetuneConfig
from latentvid.pipeline import LatentVideoPipeline
from latentvid.training.recipes import RECIPES, DecoderRecipe, DiffusionRecipe, load_recipe, run
from latentvid.training.sources import FootageConfig, WorldConfig
from latentvid.training.summary import summarize
from tests.factories import vae_kl
from tests.training.footage_clips import write_footage

ROOT = Path(__file__).resolve().parents[2]
FRAMES, SIZE = 3, 16


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Footage of two classes with a table, pictures, an autoencoder, and shards of the footage encoded with it."""
    home = tmp_path_factory.mktemp("home")
    for name in ("DriftLeft", "DriftRight"):
        (home / "footage" / name).mkdir(parents=True)
        write_footage(home / "footage" / name, 2, frames=7, size=(SIZE, SIZE))
    (home / "footage" / "DriftLeft" / "clip0.txt").write_text("waves\nwaves that drift\n", encoding="utf-8")
    (home / "table.csv").write_text("file_name,colour\nfootage/DriftRight/clip1.mp4,red\n", encoding="utf-8")
    (home / "pictures").mkdir()
    for k in range(2):
        picture = Rng(k).integers(0, 256, 20, 24, 3)[0].to(torch.uint8)
        Image.fromarray(picture.numpy()).save(home / "pictures" / f"{k}.png")
    vae_kl().save_pretrained(home / "vae")
    vae_kl(seed=1).save_pretrained(home / "other")
    words = ["--vae", str(home / "vae"), "--pack", str(home / "shards"), "--pack-frames", str(FRAMES), "--quiet"]
    assert main(["encode", str(home / "footage"), "-o", str(home / "latents"), "--device", "cpu", *words]) == 0
    return home


def sources(home: Path) -> dict[str, dict[str, Any]]:
    drawn = {"num_clips": 4, "num_frames": FRAMES, "size": SIZE}
    named = {"table": str(home / "table.csv"), "templates": ["{colour} waves that {folder}", "they {folder}"]}
    found: dict[str, dict[str, Any]] = {
        "captioned_footage": {"paths": [str(home / "footage")], "strides": [1, 2], "captions": named, **drawn},
        "stills": {"paths": [str(home / "pictures")], **drawn},
        "latent_shards": {"paths": [str(home / "shards")]},
    }
    found = {kind: {"kind": kind, **fields} for kind, fields in found.items()}
    parts = [{"weight": weight, "source": found[kind]} for weight, kind in enumerate(found, start=1)]
    return {**found, "mixture": {"kind": "mixture", "parts": parts}}


def recipe(home: Path, videos: dict[str, Any], **fields: Any) -> DiffusionRecipe:
    tree = {
        "vae": str(home / "vae"),
        "videos": videos,
        "unet": {"block_out_channels": [8, 16], "attention": [False, True], "num_heads": 2, "norm_num_groups": 4},
        "text": {"width": 16, "num_layers": 1, "num_heads": 2},
        "options": {"num_frames": FRAMES, "video_batch": 2, "max_context": 2, "validation_clips": 3},
        "loop": {"steps": 2, "lr": 1e-3, "warmup": 0, "validate_every": 2},
    }
    return validate({**tree, **fields}, DiffusionRecipe)


@pytest.mark.parametrize("kind", ["captioned_footage", "stills", "latent_shards", "mixture"])
def test_a_diffusion_model_learns_from_each_kind(kind: str, home: Path, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    run(recipe(home, sources(home)[kind]), tmp_path / "run", device="cpu", on_record=records.append)
    validation = next(record["validation"] for record in records if "validation" in record)
    assert 0 < validation["video_mean"] < float("inf")
    exported = LatentVideoPipeline.from_pretrained(tmp_path / "run" / "export")
    assert exported.unet.config.sample_size == SIZE // 2
    caches = sorted(path.name.split("-")[0] for path in (tmp_path / "run" / "cache").glob("*-*"))
    assert caches == {"latent_shards": [], "mixture": ["videos", "videos"]}.get(kind, ["videos"])


def test_captions_of_all_parts_reach_the_tokenizer_and_the_batches(home: Path, tmp_path: Path) -> None:
    task = recipe(home, sources(home)["mixture"]).task(tmp_path, None)
    texts = {text for texts in task.videos.captions for text in texts}  # type: ignore[attr-defined]
    # Shards have the first caption beside a clip, and no other.
    assert {"waves", "they drift left", "they drift right"} <= texts <= {
        "waves", "waves that drift", "they drift left", "they drift right", "red waves that drift right",
    }  # fmt: skip
    assert task.batch(0)["clean"].shape == (2, 3, FRAMES, SIZE // 2, SIZE // 2)


def test_shards_hold_what_the_recipe_would_encode(home: Path, tmp_path: Path) -> None:
    """Footage as large as its crops, without strides, is encoded to latents that the shards have too."""
    own = {"kind": "captioned_footage", "paths": [str(home / "footage" / "DriftLeft")], "size": SIZE}
    encoded = recipe(home, {**own, "num_frames": 7, "num_clips": 4}).task(tmp_path, None).videos  # type: ignore[attr-defined]
    shards = recipe(home, sources(home)["latent_shards"]).task(tmp_path, None).videos  # type: ignore[attr-defined]
    for k in range(4):
        starts = encoded.latents(k)[:, :FRAMES]
        nearest = min(float((starts - shards.latents(n)).abs().max()) for n in range(len(shards)))
        assert nearest < 0.01 * float(starts.std())


def test_a_decoder_learns_from_pixels_of_stills(home: Path, tmp_path: Path) -> None:
    tree = {
        "vae": str(home / "vae"),
        "source": sources(home)["stills"],
        "held_out": {**sources(home)["captioned_footage"], "num_clips": 2},
        "options": {"batch": 2, "num_frames": FRAMES, "validation_clips": 2},
        "loop": {"steps": 2, "warmup": 0},
    }
    run(validate(tree, DecoderRecipe), tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "export" / "config.json").exists()


def test_a_mixture_of_images_trains_too(home: Path, tmp_path: Path) -> None:
    still = {**sources(home)["stills"], "num_frames": 1}
    parts = [{"source": still}, {"source": sources(home)["latent_shards"]}]
    images = {"kind": "mixture", "parts": parts}
    chosen = recipe(home, None, images=images)  # type: ignore[arg-type]
    assert chosen.task(tmp_path, None).batch(0)["clean"].shape[2] == 1


def test_what_a_dry_run_counts_needs_no_data(home: Path) -> None:
    counts = [summarize(recipe(home, {"kind": "latent_shards", "paths": ["nowhere"]}))["parameters"]]
    counts.append(summarize(recipe(home, {"kind": "world", "size": 64}))["parameters"])
    assert counts[0] == counts[1]
    assert counts[0]["unet"] > 0


def refused(home: Path, folder: Path, videos: dict[str, Any], **fields: Any) -> LatentVidError:
    with pytest.raises(LatentVidError) as caught:
        recipe(home, videos, **fields).task(folder, None)
    assert str(caught.value).count("\n") == 0
    return caught.value


def test_data_that_does_not_fit_is_refused(home: Path, tmp_path: Path) -> None:
    shards, mixture = sources(home)["latent_shards"], sources(home)["mixture"]
    error = refused(home, tmp_path, shards, vae=str(home / "other"))
    assert isinstance(error, CheckpointError)
    assert "whose latent space is not that of the recipe's vae" in str(error)
    longer = {"num_frames": FRAMES + 1, "validation_clips": 1}
    assert f"pack with --pack-frames {FRAMES + 1} or more" in str(refused(home, tmp_path, shards, options=longer))
    assert isinstance(refused(home, tmp_path, {"kind": "latent_shards", "paths": ["nowhere"]}), CheckpointError)
    larger = {**sources(home)["stills"], "size": 2 * SIZE}
    parts = [{"source": shards}, {"source": larger}]
    assert "prepare them in one size" in str(refused(home, tmp_path, {**mixture, "parts": parts}))
    wordless = {"kind": "captioned_footage", "paths": [str(home / "footage" / "DriftRight")], "num_frames": FRAMES}
    assert "none of 2 clips has a caption" in str(refused(home, tmp_path, wordless))
    few = {"num_frames": FRAMES, "validation_clips": 24}
    assert "4 clips with 4 held out leave none" in str(refused(home, tmp_path, mixture, options=few))


@pytest.mark.parametrize(
    ("videos", "sentence"),
    [
        ({"kind": "still"}, "config.videos.kind 'still' is not known; did you mean 'stills'"),
        ({"kind": "stills", "paths": [], "sise": 8}, "config.videos.sise is not known; did you mean 'size'"),
        (
            {"kind": "captioned_footage", "paths": [], "captions": {"tabel": "x"}},
            "config.videos.captions.tabel is not known; did you mean 'table'",
        ),
        (
            {"kind": "mixture", "parts": [{"wieght": 1, "source": {"kind": "world"}}]},
            "config.videos.parts[0].wieght is not known; did you mean 'weight'",
        ),
        (
            {"kind": "mixture", "parts": [{"source": {"kind": "footage", "paths": [], "stride": [1]}}]},
            "config.videos.parts[0].source.stride is not known; did you mean 'strides'",
        ),
        (
            {"kind": "mixture", "parts": [{"source": {"kind": "latents"}}]},
            "config.videos.parts[0].source.kind 'latents'",
        ),
        ({"kind": "mixture", "parts": []}, "config.videos.parts: list should have at least 1 item"),
        ({"kind": "footage", "paths": [], "strides": [0]}, "config.videos.strides[0]"),
    ],
)
def test_settings_that_are_not_known_are_named(videos: dict[str, Any], sentence: str, home: Path) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(home, videos)
    assert sentence in str(caught.value)


def test_what_needs_pixels_takes_no_latents() -> None:
    with pytest.raises(UsageError, match="'latent_shards' is not known"):
        validate({"vae": "x", "source": {"kind": "latent_shards", "paths": ["x"]}}, DecoderRecipe)


def test_twins_share_a_first_frame_and_their_captions_tell_them_apart() -> None:
    source = WorldConfig(num_clips=8, num_frames=6, size=32, twins=True).open()
    told_apart = 0
    for k in range(0, 8, 2):
        (one, said), (other, answered) = source.clip(k), source.clip(k + 1)
        assert torch.equal(one[0], other[0])
        assert not torch.equal(one[-1], other[-1])
        turn = {"left": "right", "right": "left"}
        assert [" ".join(turn.get(word, word) for word in text.split()) for text in said] == answered
        told_apart += said != answered
    assert told_apart > 2
    assert WorldConfig.model_validate_json(WorldConfig(twins=True).model_dump_json()).twins


def test_caches_keep_their_names() -> None:
    """Folders of encoded clips are named by these texts; another field, or another order, would encode anew."""
    assert WorldConfig().model_dump_json() == (
        '{"kind":"world","name":"sky","num_clips":1000,"num_frames":16,"size":128,"captions_per_clip":4,"seed":0}'
    )
    assert FootageConfig(paths=["a"]).model_dump_json() == (
        '{"kind":"footage","paths":["a"],"num_clips":1000,"num_frames":16,"size":128,"strides":[1],'
        '"still_share":0.0,"mirror":false,"seed":0}'
    )


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_finetunings_are_valid(path: Path) -> None:
    assert load_config(path, FinetuneConfig).plan()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "train").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert isinstance(load_recipe(path), tuple(RECIPES.values()))
