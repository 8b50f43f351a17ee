"""The config loader: what it accepts, what it refuses, and that its refusals name the place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from latentvid.core import config as config_module
from latentvid.core.config import StrictModel, dump_config, load_config, merge, read_tree
from latentvid.core.errors import UsageError


class Iid(StrictModel):
    kind: Literal["iid"] = "iid"


class Mixed(StrictModel):
    kind: Literal["mixed"] = "mixed"
    alpha: float = 1.0
    """Weight of the shared draw."""


Noise = Annotated[Iid | Mixed, Field(discriminator="kind")]


class Optim(StrictModel):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


class Run(StrictModel):
    steps: int
    name: str = "run"
    noise: Noise = Mixed()
    optim: Optim | None = None
    stages: list[Noise] = []
    parts: dict[str, Optim] = {}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(write(tmp_path, "run.yaml", text), Run, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "run.yaml", "steps: 40\nnoise: {kind: mixed, alpha: 2}\noptim: {lr: 1e-4}\n")
    run = load_config(path, Run)
    assert run == Run(steps=40, noise=Mixed(alpha=2.0), optim=Optim(lr=1e-4))
    assert isinstance(run.optim.lr, float) if run.optim else False


def test_no_file_gives_the_defaults_and_overrides() -> None:
    assert load_config(None, Run, ["steps=3", "noise.kind=iid"]) == Run(steps=3, noise=Iid())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps: 1\nnoise: {kind: mixed, alhpa: 2}", "config.noise.alhpa is not known; did you mean 'alpha'?"),
        ("setps: 1", "config.setps is not known; did you mean 'steps'?"),
        ("steps: 1\nnoise: {kind: mixd}", "config.noise.kind 'mixd' is not known; did you mean 'mixed'?"),
        ("steps: 1\nnoise: {kind: os.system}", "config.noise.kind 'os.system' is not known; known: iid, mixed"),
        ("steps: 1\nnoise: {alpha: 2}", "config.noise needs a 'kind', one of: iid, mixed."),
        ("name: x", "config.steps is missing."),
        ("steps: many", "config.steps: input should be a valid integer"),
        ("steps: 1\noptim: {lr: fast}", "config.optim.lr: input should be a valid number"),
        ("steps: 1\noptim: {lr: .inf}", "config.optim.lr: input should be a finite number"),
        ("steps: 1\noptim: {betas: [0.9]}", "config.optim.betas[1] is missing."),
        ("steps: 1\nnoise: mixed", "config.noise: input should be"),
        ("steps: 1\nstages: [{kind: iid}, {kind: mixed, alpa: 1}]", "config.stages[1].alpa is not known; did you mean"),
        ("steps: 1\nstages: [{kind: nothing}]", "config.stages[0].kind 'nothing' is not known; known: iid, mixed"),
        ("steps: 1\nparts: {encoder: {rl: 1}}", "config.parts.encoder.rl is not known"),
        ("steps: 1\noptim: {learning: 1}", "config.optim.learning is not known; known: betas, lr"),
    ],
)
def test_refusals_name_the_place(tmp_path: Path, text: str, sentence: str) -> None:
    said = refusal(tmp_path, text)
    assert sentence in said
    assert said.startswith(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "steps: !!python/object/apply:os.system ['true']",
        "!!python/object:latentvid.core.config.StrictModel {}",
        "a: &a [1]\nb: *a",
        "steps: 1\nsteps: 2",
        "[1, 2]",
        "steps: [",
        "? [a, b]\n: 1",
        "\x00",
        "steps: " + "[" * 5000,
        "steps: " + "[" * 70 + "]" * 70,
        "name: !!binary aGk=",
        "name: !!set {x}",
        "name: !!timestamp 2020-01-01",
        "name: !!bool maybe",
        "name: !!int ''",
        "name: !!float ''",
        "steps: " + "9" * 5000,
        "".join(f"k{n}: 1\n" for n in range(20_000)),
    ],
)
def test_refuses_what_is_not_plain_data(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, text)


def test_refuses_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "MAX_BYTES", 10)
    assert "larger" in refusal(tmp_path, "steps: 1\nname: abcdefgh\n")


def test_refuses_a_missing_file_and_bytes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(tmp_path / "none.yaml", Run)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00steps")
    with pytest.raises(UsageError, match="UTF-8"):
        load_config(tmp_path / "bytes.yaml", Run)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5", 1.5),
        ("-3", -3),
        ("no", "no"),
        ("true", True),
        ("12:30", "12:30"),
        ("010", "010"),
        ("2020-01-01", "2020-01-01"),
        ("~", None),
        ("", None),
        ("1e5", 1e5),
        (".5", 0.5),
        ("0x10", 16),
        ("1_000", 1000),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    read = read_tree(write(tmp_path, "a.yaml", f"key: {text}\n"))["key"]
    assert read == value
    assert type(read) is type(value)


def test_extends_merges_left_to_right_relative_to_the_file(tmp_path: Path) -> None:
    write(tmp_path, "base/one.yaml", "steps: 1\nname: one\noptim: {lr: 0.5}\n")
    write(tmp_path, "base/two.yaml", "extends: more/three.yaml\nname: two\nnoise: {kind: mixed, alpha: 3}\n")
    write(tmp_path, "base/more/three.yaml", "steps: 3\noptim: {betas: [0.1, 0.2]}\n")
    path = write(tmp_path, "run.yaml", "extends: [base/one.yaml, base/two.yaml]\nnoise: {kind: iid}\n")
    assert load_config(path, Run) == Run(steps=3, name="two", noise=Iid(), optim=Optim(lr=0.5, betas=(0.1, 0.2)))


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "other.yaml", "extends: run.yaml\n")
    assert "circle" in refusal(tmp_path, "extends: other.yaml\nsteps: 1\n")
    assert "circle" in refusal(tmp_path, "extends: run.yaml\nsteps: 1\n")


def test_what_one_config_extends_is_bounded(tmp_path: Path) -> None:
    for level in range(6):
        write(tmp_path, f"{level}.yaml", f"extends: [{level + 1}.yaml, {level + 1}.yaml]\n")
    write(tmp_path, "6.yaml", "steps: 1\n")
    assert "more than 32 files" in refusal(tmp_path, "extends: 0.yaml\n")


def test_extending_one_file_twice_is_no_circle(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "steps: 1\n")
    write(tmp_path, "left.yaml", "extends: base.yaml\n")
    assert load_config(write(tmp_path, "run.yaml", "extends: [left.yaml, base.yaml]\n"), Run).steps == 1


@pytest.mark.parametrize("extends", ["3", "{a: b}", "[1]"])
def test_extends_must_name_files(tmp_path: Path, extends: str) -> None:
    refusal(tmp_path, f"extends: {extends}\nsteps: 1\n")


def test_overrides_are_yaml_and_reach_everywhere(tmp_path: Path) -> None:
    path = write(tmp_path, "run.yaml", "steps: 1\nnoise: {kind: mixed, alpha: 2}\nstages: [{kind: iid}]\n")
    run = load_config(path, Run, ["optim.lr=1e-4", "noise.alpha=5", "stages.0={kind: mixed, alpha: 4}", "name=a=b"])
    assert run == Run(steps=1, name="a=b", noise=Mixed(alpha=5), optim=Optim(lr=1e-4), stages=[Mixed(alpha=4)])


def test_overriding_the_kind_drops_the_keys_of_the_old_kind_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path, "run.yaml", "steps: 1\nnoise: {kind: mixed, alpha: 2}\n")
    assert load_config(path, Run, ["noise.kind=iid"]).noise == Iid()
    path = write(tmp_path, "run.yaml", "steps: 1\nnoise: {kind: iid}\n")
    assert load_config(path, Run, ["noise.alpha=3", "noise.kind=mixed"]).noise == Mixed(alpha=3)


@pytest.mark.parametrize("override", ["steps", "=3", "noise..alpha=1", "stages.7.kind=iid", "name.0=1", "steps=["])
def test_bad_overrides_are_refused(tmp_path: Path, override: str) -> None:
    refusal(tmp_path, "steps: 1\nname: x\n", override)


def test_dump_reads_back(tmp_path: Path) -> None:
    run = Run(steps=7, noise=Mixed(alpha=0.125), optim=Optim(lr=1e-7), stages=[Iid()], name="on")
    assert load_config(write(tmp_path, "dumped.yaml", dump_config(run)), Run) == run


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run(steps=1).steps = 2  # type: ignore[misc]


TREES = st.recursive(
    st.integers() | st.booleans(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
).filter(lambda tree: isinstance(tree, dict))


@given(TREES, TREES, TREES)
def test_merging_is_associative_and_lays_above(a: dict, b: dict, c: dict) -> None:
    assert merge(a, {}) == merge({}, a) == merge(a, a) == a
    for key, value in b.items():
        if not isinstance(value, dict):
            assert merge(a, b)[key] == value
    if not any(isinstance(x, dict) != isinstance(y, dict) for x, y in _shared_leaves(a, b, c)):
        assert merge(merge(a, b), c) == merge(a, merge(b, c))


def _shared_leaves(*trees: Any) -> list[tuple[Any, Any]]:
    pairs = []
    for i, left in enumerate(trees):
        for right in trees[i + 1 :]:
            if isinstance(left, dict) and isinstance(right, dict):
                for key in left.keys() & right.keys():
                    pairs += [(left[key], right[key]), *_shared_leaves(left[key], right[key])]
    return pairs
