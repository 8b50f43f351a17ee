"""Checkpoint folders and safetensors headers, read without loading weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentvid.core.checkpoints import describe_checkpoint, read_header
from latentvid.core.errors import CheckpointError


def component(folder: Path, config: dict, **tensors: tuple[int, ...]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tensors:
        arrays = {name: np.zeros(shape, np.float16) for name, shape in tensors.items()}
        save_file(arrays, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "skies"
    component(folder / "vae", {"_class_name": "AutoencoderKL", "block_out_channels": [8, 8, 8]}, a=(2, 3), b=(4,))
    component(folder / "unet", {"_class_name": "UNet2DConditionModel", "sample_size": 16}, c=(10, 10))
    component(folder / "text_encoder", {"architectures": ["CLIPTextModel"]}, d=(5,))
    index = {
        "_class_name": "LatentVideoPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "safety_checker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Skies\n", encoding="utf-8")
    (folder / "metrics.json").write_text('{"psnr": 31.5}', encoding="utf-8")
    return folder


def test_describes_a_pipeline(pipeline: Path) -> None:
    found = describe_checkpoint(pipeline)
    assert found["name"] == "skies"
    assert (found["type"], found["class"]) == ("pipeline", "LatentVideoPipeline")
    assert found["num_parameters"] == 6 + 4 + 100 + 5
    assert found["resolution"] == [64, 64]
    assert found["license"] == "apache-2.0"
    assert found["metrics"] == {"psnr": 31.5}
    assert found["components"]["vae"]["dtypes"] == ["F16"]
    assert found["components"]["text_encoder"]["class"] == "CLIPTextModel"
    assert found["components"]["safety_checker"] is None
    json.dumps(found)


def test_the_resolution_of_a_decoder_grown_from_an_image_autoencoder(pipeline: Path) -> None:
    grown = {"_class_name": "TemporalAutoencoder", "image_autoencoder": {"block_out_channels": [8, 8]}}
    (pipeline / "vae" / "config.json").write_text(json.dumps(grown), encoding="utf-8")
    assert describe_checkpoint(pipeline)["resolution"] == [32, 32]


def test_counts_real_weights(assets: Path) -> None:
    found = describe_checkpoint(assets / "weights" / "taesd")
    assert (found["type"], found["class"], found["num_parameters"]) == ("component", "AutoencoderTiny", 2_445_063)


def test_a_missing_component_is_named(pipeline: Path) -> None:
    (pipeline / "unet").rename(pipeline / "tenu")
    with pytest.raises(CheckpointError, match="'unet'"):
        describe_checkpoint(pipeline)


@pytest.mark.parametrize("name", ["../skies/vae", "/etc", "vae/../vae"])
def test_a_component_cannot_lie_elsewhere(pipeline: Path, name: str) -> None:
    (pipeline / "model_index.json").write_text(json.dumps({name: ["a", "b"]}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="missing"):
        describe_checkpoint(pipeline)


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_a_broken_index_is_refused(pipeline: Path, text: str) -> None:
    (pipeline / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="model_index.json"):
        describe_checkpoint(pipeline)


@pytest.mark.parametrize(
    "card", ["", "# no front matter", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\nlicense: x"]
)
def test_a_card_that_says_nothing_is_no_failure(pipeline: Path, card: str) -> None:
    (pipeline / "README.md").write_text(card, encoding="utf-8")
    assert describe_checkpoint(pipeline)["license"] is None


def test_weights_that_are_not_safetensors_are_named_and_not_read(pipeline: Path) -> None:
    (pipeline / "vae" / "pytorch_model.bin").write_bytes(b"anything")
    assert describe_checkpoint(pipeline)["components"]["vae"]["unread"] == ["pytorch_model.bin"]


def test_reads_a_header(tmp_path: Path) -> None:
    save_file({"latents": np.zeros((4, 5), np.float32)}, tmp_path / "a.safetensors", metadata={"fps": "25/1"})
    header = read_header(tmp_path / "a.safetensors")
    assert header.metadata == {"fps": "25/1"}
    assert header.tensors == {"latents": ("F32", (4, 5))}
    assert header.num_parameters == 20


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_damage_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(tmp_path / "a.safetensors")


def test_a_header_that_promises_more_than_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"latents": np.zeros((4, 5), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_header(tmp_path / "a.safetensors")
