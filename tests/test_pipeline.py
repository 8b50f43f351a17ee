"""The pipeline: what it returns, that a film is a function of its seed, and which folders it opens and refuses."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from latentvid import LatentVideoPipeline
from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.errors import CheckpointError, ResourceError, UsageError
from latentvid.core.runtime import resolve_runtime
from latentvid.denoisers.text import embed, warn_of_long_prompts
from latentvid.sampling import SOLVERS
from tests.factories import TEXT_WIDTH, image_unet, pipeline, text_parts, vae_kl, vae_tiny

PROMPT = "clouds over hills"
FEW: dict[str, Any] = {"num_inference_steps": 2}
RULES = [
    {"kind": "context", "overlap": 2},
    {"kind": "context", "overlap": 2, "context_sigma": 0.1},
    {"kind": "reuse", "overlap": 2},
    {"kind": "reuse", "overlap": 2, "order": "mirror"},
]


@pytest.fixture(scope="module")
def pipe() -> LatentVideoPipeline:
    return pipeline()


@pytest.fixture(scope="module")
def folder(pipe: LatentVideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(folder)
    return folder


def frames(pipe: LatentVideoPipeline, prompt: Any = PROMPT, **more: Any) -> Tensor:
    return pipe(prompt, **{**FEW, "output_type": "pt", **more}).frames


def test_saved_and_loaded_it_makes_the_same_film(pipe: LatentVideoPipeline, folder: Path) -> None:
    loaded = LatentVideoPipeline.from_pretrained(folder)
    for name in ("vae", "unet", "text_encoder"):
        saved, found = (getattr(p, name).state_dict() for p in (pipe, loaded))
        assert saved.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in saved.items())
    # Loaded weights lie in another order, in which convolutions round otherwise.
    torch.testing.assert_close(frames(loaded, num_frames=9), frames(pipe, num_frames=9), atol=1e-5, rtol=0)
    assert {k: loaded.config[k] for k in ("num_frames", "fps", "overlap_rule")} == {
        "num_frames": 6,
        "fps": 12.0,
        "overlap_rule": {"kind": "reuse", "overlap": 1},
    }
    assert isinstance(loaded.vae, TemporalAutoencoder)
    assert loaded.noise_prior.kind == "progressive"
    assert not loaded.unet.training


def test_all_outputs_are_one_film(pipe: LatentVideoPipeline) -> None:
    prompts = [PROMPT, "stars"]
    pt = frames(pipe, prompts, num_frames=8)
    assert pt.shape == (2, 8, 3, 8, 8)
    assert pt.dtype == torch.float32
    assert pt.min() >= 0
    assert pt.max() <= 1
    array = frames(pipe, prompts, num_frames=8, output_type="np")
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, pt.permute(0, 1, 3, 4, 2).numpy())
    images = pipe(prompts, num_frames=8, **FEW).frames
    assert [len(clip) for clip in images] == [8, 8]
    assert isinstance(images[0][0], Image.Image)
    np.testing.assert_array_equal(np.asarray(images[1][7]), (array[1, 7] * 255).round().astype(np.uint8))
    latents = frames(pipe, prompts, num_frames=8, output_type="latent")
    assert latents.shape == (2, 3, 8, 4, 4)
    decoded = torch.cat(list(pipe.autoencoder.decode([latents[1]])))
    torch.testing.assert_close(decoded.add(1).div(2), pt[1], atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="output_type='mp4' is not known; known: pil, np, pt, latent"):
        pipe(PROMPT, output_type="mp4")


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_stream_is_the_film_and_a_longer_film_begins_with_it(rule: dict[str, Any], pipe: LatentVideoPipeline) -> None:
    whole = frames(pipe, num_frames=15, rule=rule)
    windows = list(pipe.stream(PROMPT, num_frames=15, rule=rule, **FEW))
    assert len(windows) > 2
    torch.testing.assert_close(torch.cat(windows).add(1).div(2), whole[0], atol=1e-6, rtol=0)
    for num_frames in (1, 6, 7):
        assert torch.equal(frames(pipe, num_frames=num_frames, rule=rule), whole[:, :num_frames])


def test_a_clip_depends_on_its_own_seed_and_prompt_only(pipe: LatentVideoPipeline) -> None:
    options: dict[str, Any] = {"num_frames": 8, "solver": "ancestral"}
    together = frames(pipe, [PROMPT, "stars"], generator=[7, 9], **options)
    for k, (prompt, seed) in enumerate(((PROMPT, 7), ("stars", 9))):
        torch.testing.assert_close(frames(pipe, prompt, generator=seed, **options)[0], together[k], atol=1e-5, rtol=0)
    assert not torch.allclose(frames(pipe, generator=8), frames(pipe, generator=7), atol=1e-2)
    assert not torch.allclose(frames(pipe, "stars", guidance_scale=5.0), frames(pipe, guidance_scale=5.0), atol=1e-3)


def test_generators_are_seeds_and_make_another_clip_when_used_again(pipe: LatentVideoPipeline) -> None:
    expected, both = frames(pipe, [PROMPT, PROMPT], generator=[5, 6]), [PROMPT, PROMPT]
    for seed in (5, np.int64(5), np.uint8(5), np.array(5), torch.tensor(5), np.array([5, 6]), torch.tensor([5, 6])):
        assert torch.equal(frames(pipe, both, generator=seed), expected)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    first, again = ([frames(pipe, both, generator=generator) for _ in range(2)] for generator in generators)
    assert torch.equal(first[0], expected)
    assert not torch.allclose(first[1], first[0], atol=1e-2)
    assert all(map(torch.equal, first, again))
    generator = torch.Generator().manual_seed(5)
    torch.rand(1, generator=generator)
    assert not torch.allclose(frames(pipe, both, generator=generator), expected, atol=1e-2)
    one = torch.Generator().manual_seed(5)
    found = pipe(both, generator=[one, one], output_type="pt", **FEW)
    assert torch.equal(found.frames[0], expected[0])
    assert found.seeds[1] not in (5, 6)
    for given, sentence in (
        ([1, 2, 3], "3 generators for 2 prompts"),
        (7.5, "generator=7.5 is no integer"),
        ("7", "generator='7' is no integer"),
    ):
        with pytest.raises(UsageError, match=sentence):
            pipe(both, generator=given)


def test_a_drawn_seed_is_told_and_repeats_the_clips(pipe: LatentVideoPipeline) -> None:
    first, second = (pipe([PROMPT, "stars"], generator=None, output_type="pt", **FEW) for _ in range(2))
    assert first.seed != second.seed
    assert pipe.seeds == second.seeds
    assert len(set(first.seeds)) == 2
    for generator in (first.seed, first.seeds):
        assert torch.equal(frames(pipe, [PROMPT, "stars"], generator=generator), first.frames)
    torch.manual_seed(3)
    once = frames(pipe, generator=None)
    torch.manual_seed(3)
    assert torch.equal(frames(pipe, generator=None), once)
    streamed = torch.cat(list(pipe.stream(PROMPT, generator=None, negative_prompt=None, **FEW)))
    assert torch.equal(frames(pipe, generator=pipe.seeds)[0], streamed.add(1).div(2).clamp(0, 1))


def test_every_way_to_say_a_call_makes_the_same_frames(pipe: LatentVideoPipeline) -> None:
    """The figures are those from before diffusers' arguments, and the drift guard, were taken."""
    usual: dict[str, Any] = {"num_frames": 8, "generator": 3, "output_type": "latent", "drift_guard": "off"}
    expected = frames(pipe, **usual)
    assert float(expected.double().mean()) == pytest.approx(-0.0589774, abs=1e-4)
    assert float(expected.double().std()) == pytest.approx(1.0459834, abs=1e-4)
    sampling = pipe.sampling(seeds=3, **FEW)
    noise = pipe.noise_prior.sample(sampling.latent, rng=sampling.rng, first_frame=0)
    seen: list[tuple[int, float, list[int]]] = []

    def look(given: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert given is pipe
        seen.append((step, float(timestep), [*tensors["latents"].shape, *tensors["prompt_embeds"].shape]))
        return tensors

    shown = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    for more in (
        {"negative_prompt": None},
        {"negative_prompt": [""]},
        {"num_videos_per_prompt": 1, "generator": torch.Generator().manual_seed(3)},
        {"latents": noise},
        {"latents": noise.double(), "generator": torch.tensor([3])},
        {"prompt": None, "prompt_embeds": pipe.prompt_embeddings([PROMPT])},
        {"negative_prompt_embeds": pipe.prompt_embeddings([""]), "guidance_scale": 3.0},
        {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": shown},
        {"callback_on_step_end": lambda *_: None},
        {"height": np.int64(8), "width": torch.tensor(8), "num_frames": np.int32(8), "on_call": lambda *_: None},
        {"num_inference_steps": np.int64(2)},
    ):
        arguments: dict[str, Any] = {"prompt": PROMPT, **FEW, **usual, **more}
        assert torch.equal(pipe(**arguments).frames, expected), more
    found = pipe(PROMPT, return_dict=False, **FEW, **usual)
    assert isinstance(found, tuple)
    assert len(found) == 1
    assert torch.equal(found[0], expected)
    steps = pipe.schedule.levels(2).timestep.tolist()[:2]
    assert seen == 2 * [(k, steps[k], [1, 3, 6, 4, 4, 1, 12, TEXT_WIDTH]) for k in range(2)]


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "ancestral"])
def test_a_callback_sees_the_clean_end_and_may_replace_it(solver: str, pipe: LatentVideoPipeline) -> None:
    def paint(_: Any, step: int, __: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.full_like(tensors["latents"], step)}

    assert (frames(pipe, solver=solver, callback_on_step_end=paint, output_type="latent") == 1).all()
    changed = lambda *_: {"prompt_embeds": torch.zeros(1)}  # noqa: E731
    for callback, names, sentence in (
        (paint, ["image_embeds"], "'image_embeds' is not known"),
        (changed, ["latents", "prompt_embeds"], "can change the latents only"),
        (lambda *_: {"latents": torch.zeros(2)}, ["latents"], "must return latents of"),
    ):
        with pytest.raises(UsageError, match=sentence):
            frames(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)


def test_several_clips_of_each_prompt(pipe: LatentVideoPipeline) -> None:
    four = frames(pipe, [PROMPT, "stars"], num_videos_per_prompt=2, generator=[1, 2, 3, 4], negative_prompt=["a", "b"])
    each = [(PROMPT, 1, "a"), (PROMPT, 2, "a"), ("stars", 3, "b"), ("stars", 4, "b")]
    for found, (prompt, seed, negative) in zip(four, each, strict=True):
        alone = frames(pipe, prompt, generator=seed, negative_prompt=negative)[0]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
    embeds = {
        f"{name}prompt_embeds": pipe.prompt_embeddings([text]) for name, text in (("", PROMPT), ("negative_", "a"))
    }
    by_embeddings = frames(pipe, None, num_videos_per_prompt=2, generator=[1, 2], **embeds)
    torch.testing.assert_close(by_embeddings, four[:2], atol=1e-5, rtol=0)


def test_prompts_that_are_cut_off_are_told(pipe: LatentVideoPipeline) -> None:
    long = "clouds drift left over hills at dusk and then it SNOWS on Jörg"
    for make in (
        lambda: frames(pipe, long, num_frames=9),
        lambda: frames(pipe, ["a", long], num_frames=9),
        lambda: list(pipe.stream(long, num_frames=9, **FEW)),
        lambda: pipe.prompt_embeddings([long, long]),
        lambda: frames(pipe, "a", negative_prompt=long),
    ):
        with pytest.warns(UserWarning, match=r"prompt is longer than the 12 tokens .*SNOWS on Jörg'") as told:
            make()
        assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames(pipe, "a", negative_prompt="sky")
    with pytest.raises(UsageError, match="no text"):
        frames(pipe, "caf\udce9")


@pytest.mark.parametrize(("tokens", "positions"), [(10**30, 12), (12, 9), (9, 12)])
def test_the_shorter_of_tokenizer_and_text_encoder_counts(tokens: int, positions: int) -> None:
    tokenizer, _ = text_parts()
    tokenizer.model_max_length = tokens
    encoder = CLIPTextModel(
        CLIPTextConfig(**{**text_parts()[1].config.to_dict(), "max_position_embeddings": positions})
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_long_prompts(tokenizer, encoder, [("prompt", "a b c d e f g"[: 2 * min(tokens, positions) - 5])])
    with pytest.warns(UserWarning, match=f"{min(tokens, positions)} tokens .*'k l'"):
        warn_of_long_prompts(tokenizer, encoder, [("prompt", f"{'a ' * (min(tokens, positions) - 2)} k l")])
    assert embed(tokenizer, encoder, ["a b c"]).shape == (1, min(tokens, positions), TEXT_WIDTH)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "ancestral"])
def test_every_solver_makes_frames_and_tells_its_calls(solver: str, pipe: LatentVideoPipeline) -> None:
    told: list[tuple[int, int, int]] = []
    film = frames(
        pipe, num_frames=8, solver=solver, on_call=lambda window, done, of: told.append((window.index, done, of))
    )
    assert film.isfinite().all()
    num_calls = told[0][2]
    assert told == [(window, k + 1, num_calls) for window in range(2) for k in range(num_calls)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"height": 10}, "8x10 will not do: this model makes multiples of 4 pixels"),
        ({"height": -8}, "8x-8 will not do"),
        ({"width": 0}, "0x8 will not do"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"solver": "eulr"}, "did you mean 'euler'"),
        ({"rule": {"kind": "reuse", "overlap": 6}}, "overlap=6 must be smaller than the window of 6"),
        ({"rule": {"kind": "refuse"}}, "did you mean 'reuse'"),
        ({"guidance_scal": 3}, "takes no 'guidance_scal'; did you mean 'guidance_scale'"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"negative_prompt": 3}, "negative_prompt must be a text"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5 is no integer"),
        ({"num_frames": 2.5}, "num_frames=2.5 is no integer"),
        ({"height": "8"}, "height='8' is no integer"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    arguments: dict[str, Any], sentence: str, pipe: LatentVideoPipeline
) -> None:
    with pytest.raises(UsageError, match=sentence):
        pipe(PROMPT, **arguments)
    with pytest.raises(UsageError, match=sentence):
        next(pipe.stream(PROMPT, **arguments))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt_embeds": torch.zeros(1, 12, TEXT_WIDTH)}, "one of the two"),
        ({"prompt": None}, "one of the two"),
        ({"prompt": []}, "prompt must be a text"),
        ({"prompt": 3}, "prompt must be a text"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 12, 3)}, rf"tensor \[b l {TEXT_WIDTH}\]"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 7, TEXT_WIDTH)}, "must have one shape"),
        ({"negative_prompt_embeds": torch.zeros(2, 12, TEXT_WIDTH)}, "are of 2 prompts"),
        ({"negative_prompt_embeds": torch.zeros(1, 12, TEXT_WIDTH), "negative_prompt": "a"}, "give one"),
        ({"num_videos_per_prompt": 0}, "at least 1"),
        ({"num_videos_per_prompt": 1.5}, "no integer"),
        ({"latents": torch.zeros(1, 3, 6, 4, 5)}, r"tensor \[b c t h w\] of \[1, 3, 6, 4, 4\]"),
        ({"latents": torch.full((1, 3, 6, 4, 4), torch.nan)}, "not finite"),
    ],
)
def test_arguments_of_diffusers_that_cannot_be_are_refused(
    arguments: dict[str, Any], sentence: str, pipe: LatentVideoPipeline
) -> None:
    with pytest.raises(UsageError, match=sentence):
        pipe(**{"prompt": PROMPT, **FEW, **arguments})


def test_more_steps_than_were_trained_are_refused() -> None:
    with pytest.raises(UsageError, match="exceeds the 1000 steps"):
        pipeline(scheduler=DDIMScheduler(prediction_type="v_prediction"))(PROMPT, num_inference_steps=1001)


def test_other_sizes_and_rectangles(pipe: LatentVideoPipeline) -> None:
    assert pipe.default_size == (8, 8)
    assert frames(pipe, height=16, width=8).shape == (1, 6, 3, 16, 8)


@pytest.mark.parametrize("make", [vae_kl, vae_tiny])
@pytest.mark.parametrize("wrapped", [False, True])
def test_image_autoencoders_serve_too(make: Callable[[], nn.Module], wrapped: bool, tmp_path: Path) -> None:
    vae = ImageAutoencoder(make()) if wrapped else make()
    pipe = pipeline(vae=vae)
    if wrapped:
        assert pipe.autoencoder is vae  # with its settings
    pipe.save_pretrained(tmp_path)
    loaded = LatentVideoPipeline.from_pretrained(tmp_path, max_memory=64 << 30)
    assert type(loaded.vae) is type(make())
    torch.testing.assert_close(frames(loaded), frames(pipe), atol=1e-5, rtol=0)


def stable_diffusion(folder: Path, scheduler: Any) -> Path:
    """Write a tiny image pipeline's folder as diffusers lays it out."""
    tokenizer, text_encoder = text_parts()
    parts = {"vae": vae_kl(), "unet": image_unet(), "text_encoder": text_encoder, "tokenizer": tokenizer}
    for name, part in {**parts, "scheduler": scheduler}.items():
        part.save_pretrained(folder / name)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


@pytest.mark.parametrize("scheduler", [PNDMScheduler, DDIMScheduler])
def test_a_folder_of_an_image_pipeline_makes_films_of_images(scheduler: Any, tmp_path: Path) -> None:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}
    loaded = LatentVideoPipeline.from_pretrained(stable_diffusion(tmp_path, scheduler(**betas)))
    assert isinstance(loaded.vae, AutoencoderKL)
    assert loaded.noise_prior.kind == "iid"
    film = frames(loaded, num_frames=20, solver="euler")
    assert film.shape == (1, 20, 3, 8, 8)
    assert film.isfinite().all()
    # Frames of an image model are images: frame 3 alone, from its own noise, is frame 3 of the film.
    latents = frames(loaded, num_frames=4, output_type="latent", solver="euler")
    setting = loaded.setting(loaded.sampling(num_inference_steps=2), [PROMPT])
    x = setting.prior.sample(setting.shape, rng=setting.rng)[:, :, 3:4]
    with torch.no_grad():
        alone = SOLVERS.get("euler")()(setting.denoise, x, setting.levels)
    torch.testing.assert_close(latents[:, :, 3:], alone, atol=1e-4, rtol=1e-4)


def test_steps_are_spaced_as_the_model_was_made_for(folder: Path, tmp_path: Path) -> None:
    """Foreign folders as diffusers spaces them, folders of this package evenly, and both so after they are saved."""
    scheduler = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    foreign = LatentVideoPipeline.from_pretrained(stable_diffusion(tmp_path / "foreign", scheduler))
    scheduler.set_timesteps(4)
    levels = foreign.setting(foreign.sampling(num_inference_steps=4), [PROMPT]).levels
    assert levels.timestep.tolist() == [*scheduler.timesteps.unique().flip(0).tolist(), 0]
    foreign.save_pretrained(tmp_path / "saved")
    again = LatentVideoPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.schedule.levels(4).sigma, levels.sigma)

    old = Path(shutil.copytree(folder, tmp_path / "old"))
    edit_index(old, spacing=...)  # as folders were before the index said it
    even = [1, 0.75, 0.5, 0.25, 0]
    for place, shift in ((folder, 2.0), (old, 2.0)):
        own = LatentVideoPipeline.from_pretrained(place)
        assert own.schedule.levels(4).sigma.tolist() == [shift * s / (1 + (shift - 1) * s) for s in even]
    edit_index(old, spacing="odd")
    with pytest.raises(CheckpointError, match="spacing"):
        LatentVideoPipeline.from_pretrained(old)
    edit_index(old, spacing="scheduler", scheduler=["diffusers", "LCMScheduler"])
    with pytest.raises(CheckpointError, match="LCMScheduler cannot be used"):
        LatentVideoPipeline.from_pretrained(old)


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def edit_index(folder: Path, **entries: Any) -> None:
    path = folder / "model_index.json"
    index = {**json.loads(path.read_text(encoding="utf-8")), **entries}
    path.write_text(json.dumps({k: v for k, v in index.items() if v is not ...}), encoding="utf-8")


@pytest.mark.parametrize("name", ["vae", "unet", "text_encoder", "tokenizer", "scheduler", "noise_prior"])
@pytest.mark.parametrize("kind", ["Trojan", "trojan.Trojan", "../trojan"])
def test_unknown_classes_are_refused_and_nothing_is_imported(
    name: str, kind: str, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (broken / "trojan.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    (broken / name / "trojan.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(broken))
    edit_index(broken, **{name: ["trojan", kind]})
    with pytest.raises(CheckpointError, match=f"the class '{kind}' of its {name} is not known"):
        LatentVideoPipeline.from_pretrained(broken)
    assert "trojan" not in sys.modules


def test_a_module_that_is_named_is_not_imported(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class decides; where it is said to live is not asked."""
    (broken / "trojan.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(broken))
    edit_index(broken, unet=["trojan", "TemporalUNet"])
    assert frames(LatentVideoPipeline.from_pretrained(broken)).isfinite().all()
    assert "trojan" not in sys.modules


def test_a_prior_other_than_the_index_names_is_told_apart(broken: Path) -> None:
    edit_index(broken, noise_prior=...)
    assert LatentVideoPipeline.from_pretrained(broken).noise_prior.kind == "iid"


@pytest.mark.parametrize("name", ["vae", "unet", "text_encoder", "tokenizer", "scheduler", "noise_prior"])
def test_missing_components_are_told(name: str, broken: Path) -> None:
    shutil.rmtree(broken / name)
    with pytest.raises(CheckpointError, match=name):
        LatentVideoPipeline.from_pretrained(broken)
    if name != "noise_prior":
        edit_index(broken, **{name: ...})
        with pytest.raises(CheckpointError, match=f"names no {name}"):
            LatentVideoPipeline.from_pretrained(broken)


WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("how", ["cut", "lacking", "other shape", "pickled"])
def test_damaged_weights_are_told(name: str, how: str, broken: Path) -> None:
    file = broken / name / WEIGHTS[name]
    weights = load_file(file)
    first = sorted(weights)[0]
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "lacking":
        save_file({k: v for k, v in weights.items() if k != first}, file, {"format": "pt"})
    elif how == "other shape":
        save_file({**weights, first: torch.zeros(7)}, file, {"format": "pt"})
    else:
        file.unlink()
        torch.save(weights, file.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=name):
        LatentVideoPipeline.from_pretrained(broken)


@pytest.mark.parametrize(
    "entries",
    [
        {"num_frames": 10**9},
        {"num_frames": "many"},
        {"num_frames": 0},
        {"fps": -1},
        {"fps": "fast"},
        {"overlap_rule": {"kind": "refuse"}},
        {"overlap_rule": 3},
        {"unet": "TemporalUNet"},
        {"unet": [1, 2]},
    ],
    ids=str,
)
def test_an_index_that_says_nonsense_is_told(entries: dict[str, Any], broken: Path) -> None:
    edit_index(broken, **entries)
    with pytest.raises(CheckpointError, match="model_index.json"):
        LatentVideoPipeline.from_pretrained(broken)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_an_index_that_is_none_is_told(text: str, broken: Path) -> None:
    (broken / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError):
        LatentVideoPipeline.from_pretrained(broken)


def test_what_is_no_pipeline_is_told(tmp_path: Path, folder: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", folder / "unet"):
        with pytest.raises(CheckpointError):
            LatentVideoPipeline.from_pretrained(path)
    for arguments, sentence in (
        ({"torch_dtype": torch.int8}, "is not computed in"),
        ({"torch_dtype": torch.float16, "runtime": resolve_runtime("cpu")}, "give one"),
        ({"use_safetensors": False}, "takes no 'use_safetensors'"),
        ({"safety_checker": None}, "takes no 'safety_checker'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            LatentVideoPipeline.from_pretrained(folder, **arguments)


def test_half_precision_makes_nearly_the_same_film(folder: Path, pipe: LatentVideoPipeline) -> None:
    half = LatentVideoPipeline.from_pretrained(folder, runtime=resolve_runtime("cpu", "bf16"))
    assert half.unet.dtype == half.text_encoder.dtype == torch.bfloat16
    found = frames(half, num_frames=9)
    assert found.dtype == torch.float32
    assert (found - frames(pipe, num_frames=9)).abs().mean() < 0.05


def test_number_formats_and_places_as_diffusers_names_them(folder: Path, pipe: LatentVideoPipeline) -> None:
    space = pipe.autoencoder.latent_space()
    expected = frames(LatentVideoPipeline.from_pretrained(folder, runtime=resolve_runtime("cpu", "bf16")))
    whole = {"use_safetensors": True, "local_files_only": True}
    for half in (
        LatentVideoPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, **whole),
        LatentVideoPipeline.from_pretrained(folder, dtype="bfloat16"),
        LatentVideoPipeline.from_pretrained(folder).to("cpu", torch.bfloat16),
        LatentVideoPipeline.from_pretrained(folder, torch_dtype="auto").to(dtype=torch.bfloat16),
    ):
        assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.bfloat16}
        assert half.autoencoder.latent_space() == space
        torch.testing.assert_close(frames(half), expected, atol=1e-6, rtol=0)
    half = LatentVideoPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    assert half.unet.dtype is torch.float16
    assert half.vae.dtype is torch.float32  # its config says that it overflows
    assert half.config.vae == pipe.config.vae
    before = pipe.vae.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in half.vae.state_dict().items())


def test_networks_that_wait_elsewhere_make_the_same_frames(pipe: LatentVideoPipeline, folder: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="needs an accelerator"):
            LatentVideoPipeline.from_pretrained(folder).enable_model_cpu_offload()
    for make in (lambda: LatentVideoPipeline.from_pretrained(folder), lambda: pipeline(vae=vae_kl())):
        loaded = make()
        expected = frames(loaded, num_frames=9)
        loaded.enable_model_cpu_offload(device="cpu")
        for _ in range(2):  # the hooks come back after a call
            assert torch.equal(frames(loaded, num_frames=9), expected)
            assert torch.equal(torch.cat(list(loaded.stream(PROMPT, num_frames=9, **FEW))).add(1).div(2), expected[0])
        assert str(loaded.compute_device) == "cpu:0"
    with pytest.raises(UsageError, match="enable_model_cpu_offload"):
        pipe.enable_sequential_cpu_offload()


def test_the_bar_counts_denoiser_calls(pipe: LatentVideoPipeline, capfd: pytest.CaptureFixture[str]) -> None:
    frames(pipe, num_frames=8)
    assert "4/4" in capfd.readouterr().err  # two steps of two windows
    pipe.set_progress_bar_config(disable=True)
    try:
        frames(pipe)
        assert not capfd.readouterr().err
        pipe.set_progress_bar_config()
        frames(pipe, "a", on_call=lambda *_: None)
        assert not capfd.readouterr().err
    finally:
        pipe.set_progress_bar_config()


def test_neither_batch_nor_threads_change_a_film(pipe: LatentVideoPipeline) -> None:
    alone = frames(pipe, generator=3, num_frames=14)
    together = frames(pipe, ["stars", PROMPT], generator=[4, 3], num_frames=14)[1:]
    assert (together - alone).abs().max() < 1e-4
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        assert (frames(pipe, generator=3, num_frames=14) - alone).abs().max() < 1e-4
    finally:
        torch.set_num_threads(before)


def test_windows_that_go_on_have_guidance_of_their_own(pipe: LatentVideoPipeline) -> None:
    rule = {"kind": "context", "overlap": 2, "guidance_scale": 1.0}
    sampling = pipe.sampling(rule=rule)
    assert [sampling.guidance(continues=c) for c in (False, True)] == [3.0, 1.0]
    told = pipe.sampling(rule=rule, guidance_scale=5.0)
    assert [told.guidance(continues=c) for c in (False, True)] == [5.0, 5.0]
    window = pipe.config.num_frames
    found = frames(pipe, num_frames=window + 3, rule=rule)
    everywhere = frames(pipe, num_frames=window + 3, rule=rule, guidance_scale=3.0)
    assert torch.equal(found[:, :window], everywhere[:, :window])
    assert not torch.allclose(found[:, window:], everywhere[:, window:], atol=1e-3)


def test_the_text_matters_where_it_should(pipe: LatentVideoPipeline) -> None:
    assert pipe.prompt_embeddings(["a", "b"]).shape == (2, 12, TEXT_WIDTH)
    guided = frames(pipe, guidance_scale=4.0)
    assert not torch.allclose(frames(pipe, guidance_scale=4.0, negative_prompt="stars"), guided, atol=1e-3)
    plain = frames(pipe, guidance_scale=1.0)
    assert torch.equal(frames(pipe, guidance_scale=1.0, negative_prompt="stars"), plain)
