"""Loading: only our classes, only weights that fit, only deltas on their own base, and a sentence for all else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.load import WEIGHTS, load_autoencoder
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.errors import CheckpointError, ResourceError, UsageError
from latentvid.core.rng import Rng
from latentvid.core.runtime import Runtime
from latentvid.temporal.inject import temporal_parameters
from tests.autoencoders.small_networks import KINDS, grown, image_network

CPU16 = Runtime(torch.device("cpu"), torch.bfloat16, "sdpa", False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small image autoencoder, saved."""
    image_network("kl").save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def edit(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("kind", KINDS)
def test_image_and_temporal_folders_load(kind: str, tmp_path: Path) -> None:
    latents = Rng(2).normal(ImageAutoencoder(image_network(kind)).latent_channels, 3, 4, 4)
    for number, network in enumerate((ImageAutoencoder(image_network(kind)), grown(kind, trained=True))):
        network.save_pretrained(tmp_path / str(number))
        loaded = load_autoencoder(tmp_path / str(number))
        assert type(loaded) is type(network)
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
        assert torch.equal(loaded.decode_chunk(latents), network.decode_chunk(latents))


def test_a_pipelines_vae_is_found(folder: Path) -> None:
    (folder.parent / "model_index.json").write_text("{}")
    assert load_autoencoder(folder.parent).name == f"{folder.parent.name}/vae"
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="without a vae"):
        load_autoencoder(folder.parent)


def test_fewer_bits_keep_the_latent_space(folder: Path) -> None:
    whole, half = load_autoencoder(folder), load_autoencoder(folder, runtime=CPU16)
    assert half.dtype == torch.bfloat16
    assert half.latent_space() == whole.latent_space()


def test_names_of_old_checkpoints_are_understood(folder: Path) -> None:
    before = load_autoencoder(folder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in load_file(folder / WEIGHTS).items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        weights[name] = value
    assert any("proj_attn" in name for name in weights)
    save_file(weights, folder / WEIGHTS)
    after = load_autoencoder(folder)
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [
        {"_class_name": "AutoencoderKLWan"},
        {"_class_name": "os:system"},
        {"_class_name": None},
        {"latent_channels": 5},
        {"block_out_channels": [8, 32]},
        {"block_out_channels": [8]},
        {"block_out_channels": [1 << 30, 1 << 30]},
        {"layers_per_block": 10**9},
        {"layers_per_block": 16384},
        {"scaling_factor": "x"},
        {"scaling_factor": None},
        {"scaling_factor": 0},
        {"shift_factor": [0, 0]},
        {"act_fn": "nothing"},
        {"norm_num_groups": 3},
        {"down_block_types": ["Nothing", "Nothing"]},
    ],
)
def test_configs_that_do_not_fit_are_refused(folder: Path, settings: dict[str, object]) -> None:
    edit(folder, **settings)
    with pytest.raises(CheckpointError):
        load_autoencoder(folder)


def test_damaged_and_missing_weights_are_refused(folder: Path) -> None:
    path = folder / WEIGHTS
    whole = path.read_bytes()
    for data in (whole[:-10], whole[:50], b"", b"\x80\x04 no weights at all"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="safetensors"):
            load_autoencoder(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_autoencoder(folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled"):
        load_autoencoder(folder)


def test_unreadable_configs_are_refused(folder: Path, tmp_path: Path) -> None:
    for text in ("", "[]", "{", '"AutoencoderKL"'):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError):
            load_autoencoder(folder)
    with pytest.raises(CheckpointError, match="neither"):
        load_autoencoder(tmp_path / "nowhere")


def test_a_delta_goes_on_its_own_image_autoencoder_only(folder: Path, tmp_path: Path) -> None:
    network = TemporalAutoencoder.from_image(load_autoencoder(folder))
    for parameter in temporal_parameters(network).values():
        parameter.data += 0.1
    network.save_delta(tmp_path / "delta")
    assert set(load_file(tmp_path / "delta" / "temporal.safetensors")) == set(temporal_parameters(network))
    again = load_autoencoder(tmp_path / "delta", image_autoencoder=folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    with pytest.raises(CheckpointError, match="needs its image autoencoder"):
        load_autoencoder(tmp_path / "delta")
    with pytest.raises(CheckpointError, match="another image autoencoder"):
        load_autoencoder(tmp_path / "delta", image_autoencoder=ImageAutoencoder(image_network("kl", seed=3)))
    edit(tmp_path / "delta", temporal_num_convs=1)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_autoencoder(tmp_path / "delta", image_autoencoder=folder)


def test_a_delta_of_changed_spatial_weights_is_refused(tmp_path: Path) -> None:
    network = grown("tiny", trained=True)
    next(iter(network.decoder.parameters())).data += 1
    with pytest.raises(UsageError, match="spatial"):
        network.save_delta(tmp_path / "delta")
    network.save_with_delta(tmp_path / "whole")
    assert not (tmp_path / "whole" / "delta").exists()


def test_weights_of_unknown_origin_have_no_delta(tmp_path: Path) -> None:
    network = TemporalAutoencoder(ImageAutoencoder(image_network("tiny")).image_config)
    assert not network.has_delta
    with pytest.raises(UsageError, match="unknown origin"):
        network.save_delta(tmp_path / "delta")


@pytest.mark.parametrize(("runtime", "hint"), [(None, "weights are damaged"), (CPU16, "bf16; try --dtype fp32")])
def test_values_that_are_no_numbers_say_where_they_come_from(folder: Path, runtime: Runtime | None, hint: str) -> None:
    network = load_autoencoder(folder, runtime=runtime)
    latents = torch.zeros(3, 1, 4, 4)
    with pytest.raises(CheckpointError, match=r"denoiser.*--dtype"):
        list(network.decode([latents / 0]))
    for part, run in (
        ("decoder", lambda: network.decode([latents])),
        ("encoder", lambda: network.encode([latents[None, :, 0]])),
    ):
        damaged = next(getattr(network, part).parameters())
        damaged.data.fill_(torch.inf)
        with pytest.raises(CheckpointError, match=rf"the {part} of vae .*{hint}"):
            list(run())


@pytest.mark.parametrize("how", [{"variant": "fp16"}, {"max_shard_size": 20_000}, {"safe_serialization": False}])
def test_what_is_saved_in_other_ways_loads(how: dict[str, object], tmp_path: Path) -> None:
    for number, network in enumerate((image_network("kl"), grown("kl", trained=True))):
        network.save_pretrained(tmp_path / str(number), **how)
        loaded = load_autoencoder(tmp_path / str(number), variant=how.get("variant"))
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())


def test_a_delta_looks_for_its_image_autoencoder_among_the_checkpoints_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = TemporalAutoencoder.from_image(load_autoencoder(folder))
    network.save_delta(tmp_path / "delta")
    monkeypatch.setenv("LATENTVID_CHECKPOINTS", str(tmp_path))
    assert load_autoencoder(tmp_path / "delta").image_weights() == network.image_weights()
    for name in (str(folder), f"../{tmp_path.name}/vae", "a\0b", "x" * 5000, 3, None):
        edit(tmp_path / "delta", image_name=name)
        with pytest.raises(CheckpointError, match="holds temporal layers only"):
            load_autoencoder(tmp_path / "delta")


def test_memory_that_does_not_suffice_is_said(folder: Path) -> None:
    network = load_autoencoder(folder, max_memory=1 << 20)  # less than the process holds already
    with pytest.raises(ResourceError, match="--max-memory"):
        list(network.encode([torch.zeros(1, 3, 64, 64)]))


def test_without_a_limit_a_frame_of_any_size_is_taken(folder: Path) -> None:
    network = load_autoencoder(folder)
    assert network.frames_per_decode(16, 16) > network.frames_per_decode(256, 256) > 1
    assert network.frames_per_decode(1 << 14, 1 << 14) == 1
