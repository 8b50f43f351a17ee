"""The loop on a task of a few numbers: exact resume, accumulation, averaged weights, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentvid.core.errors import CheckpointError, ResourceError, UsageError
from latentvid.core.files import LOCK, locked
from latentvid.training.interrupts import held_interrupts
from latentvid.training.loop import LoopConfig, TrainingDiverged, saved_states, train
from tests.training.toys import CONFIG, ThreePlayers, ToyTask

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, task: ToyTask | None = None, *, config: LoopConfig = CONFIG, **more: Any) -> dict[str, Any]:
    return train(task or ToyTask(), config, folder, device="cpu", **more)


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the log without its times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k != "step_s"} for line in lines]


def exported(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "export" / "toy.safetensors")


def assert_equal_runs(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    for name, value in exported(one).items():
        assert torch.equal(value, exported(other)[name])
    last, other_last = saved_states(one)[-1], saved_states(other)[-1]
    assert last.name == other_last.name
    weights, other_weights = load_file(last / "model.safetensors"), load_file(other_last / "model.safetensors")
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())
    averages = [torch.load(state / "ema.pt", weights_only=True)["shadow_params"] for state in (last, other_last)]
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))


class Killed(BaseException):
    """Ends a run where no handler waits for it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_a_run_is_a_folder_with_a_log_states_and_what_was_trained(whole: Path) -> None:
    names = {p.name for p in whole.iterdir()}
    assert names == {LOCK, "export", "log.jsonl", "loop.json", "result.json", "state"}
    assert [p.name for p in saved_states(whole)] == ["step-10", "step-12"]
    assert sorted(p.name for p in (whole / "state").iterdir()) == ["step-10", "step-12"]
    assert [r["step"] for r in records(whole) if "loss" in r] == [4, 8, 12]
    assert [r["step"] for r in records(whole) if "validation" in r] == [6, 12]
    for record in records(whole):
        if "loss" in record:
            assert record["half"] == pytest.approx(record["loss"] / 2)
            assert record["grad_norm"] > 0


@pytest.mark.parametrize("at", [4, 6, 8])
def test_a_run_that_dies_and_is_resumed_equals_one_that_does_not(at: int, whole: Path, tmp_path: Path) -> None:
    """Steps 6 and 8 lie behind the state of step 5, whose logged means were half done."""

    def die(record: dict[str, Any]) -> None:
        if record["step"] == at:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, on_record=die)
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, -signal.SIGINT)])
def test_a_killed_process_is_resumed_exactly(number: int, code: int, whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.toys", str(tmp_path), "0.15"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4\n"
        assert process.stdout.readline() == "6\n"
        process.send_signal(number)
        process.wait(timeout=60)
    assert process.returncode == code
    if number == signal.SIGINT:  # saved where it was
        assert int(saved_states(tmp_path)[-1].name.removeprefix("step-")) >= 6
    else:
        assert [p.name for p in saved_states(tmp_path)] == ["step-5"]
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 6, "validation": {"weight": 0.5}')  # a line that the kill cut short
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


def test_a_finished_run_resumed_is_exported_again_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "export" / "toy.safetensors").unlink()
    assert run(tmp_path, resume=True) == {}
    assert_equal_runs(tmp_path, whole)


def test_resuming_what_never_began_begins_it(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Let Ctrl-C raise, also where the tests run in the background and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_interrupts_wait_for_the_step_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("_ctrl_c")
def test_an_interrupt_saves_a_whole_step(whole: Path, tmp_path: Path) -> None:
    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 8:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_record=interrupt)
    assert saved_states(tmp_path)[-1].name == "step-8"
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    class Halves(ToyTask):
        def batch(self, index: int) -> dict[str, Tensor]:
            whole = super().batch(index // 2)
            return {name: value.chunk(2)[index % 2] for name, value in whole.items()}

    plain = {"dropout": 0.0}
    run(tmp_path / "one", ToyTask(**plain))
    run(tmp_path / "two", Halves(**plain), config=CONFIG.model_copy(update={"accumulate": 2}))
    for name, value in exported(tmp_path / "one").items():
        torch.testing.assert_close(exported(tmp_path / "two")[name], value, atol=1e-6, rtol=1e-5)


def test_batches_are_asked_for_once_in_order_and_none_too_many(tmp_path: Path) -> None:
    task = ToyTask()
    run(tmp_path, task, config=CONFIG.model_copy(update={"accumulate": 2, "prefetch": 5}))
    assert task.asked == list(range(2 * CONFIG.steps))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    task = ToyTask(dropout=0.0, size=64)
    config = CONFIG.model_copy(update={"steps": 60, "log_every": 1, "lr": 0.1, "save_every": 100})
    run(tmp_path, task, config=config)
    losses = [r["loss"] for r in records(tmp_path) if "loss" in r]
    assert sum(losses[-5:]) < 0.1 * sum(losses[:5])


def test_one_step_is_adamws(tmp_path: Path) -> None:
    config = LoopConfig(steps=1, lr=0.01, warmup=0, schedule="constant", ema_decay=0, clip_norm=0.5, weight_decay=0.1)
    task, witness = ToyTask(dropout=0.0), ToyTask(dropout=0.0)
    run(tmp_path, task, config=config)
    optimizer = torch.optim.AdamW(witness.parameters(), lr=0.01, betas=config.betas, weight_decay=0.1)
    witness(witness.batch(0))[0].backward()
    torch.nn.utils.clip_grad_norm_(witness.parameters(), 0.5)
    optimizer.step()
    for name, value in witness.state_dict().items():
        torch.testing.assert_close(task.state_dict()[name], value)
        torch.testing.assert_close(exported(tmp_path)[name], value)


def test_players_take_their_turns_each_by_an_optimizer_of_its_own(tmp_path: Path) -> None:
    """Against the loop written out; killed and resumed it is the same run."""
    config = CONFIG.model_copy(update={"clip_norm": 0.5, "ema_decay": 0.5, "log_every": 1})
    task, witness = ThreePlayers(), ThreePlayers()
    run(tmp_path / "whole", task, config=config)
    players = witness.players(config.lr)
    optimizers = [torch.optim.AdamW(player.groups, config.lr, config.betas, weight_decay=0.01) for player in players]
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    logged = [record for record in records(tmp_path / "whole") if "lr" in record]
    for step in range(config.steps):
        witness.begin_step(step)
        for player, optimizer, peaks in zip(players, optimizers, rates, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak / config.lr * logged[step]["lr"]
            batches = [witness.batch(step)] if player.batches is None else player.batches()
            for batch in batches:
                (witness(batch)[0] / len(batches)).backward(inputs=player.parameters())
            if batches:
                torch.nn.utils.clip_grad_norm_(player.parameters(), config.clip_norm)
                optimizer.step()
            witness.zero_grad()
        assert ("attested" in logged[step]) == bool(step % 2)
    begun, done = ThreePlayers().state_dict(), task.state_dict()
    for name, value in witness.state_dict().items():
        torch.testing.assert_close(done[name], value)
        assert not torch.equal(done[name], begun[name])
    state = saved_states(tmp_path / "whole")[-1]
    averages = torch.load(state / "ema.pt", weights_only=True)["shadow_params"]
    assert [average.shape for average in averages] == [p.shape for each in players[:2] for p in each.parameters()]
    assert {file.name for file in state.glob("optimizer*")} == {"optimizer.bin", "optimizer_1.bin", "optimizer_2.bin"}
    written = exported(tmp_path / "whole")
    assert torch.equal(written["witness.weight"], done["witness.weight"])
    assert not torch.equal(written["imitator.weight"], done["imitator.weight"])

    def die(record: dict[str, Any]) -> None:
        if record["step"] == 8:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "parts", ThreePlayers(), config=config, on_record=die)
    run(tmp_path / "parts", ThreePlayers(), config=config, resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_player_that_diverges_or_has_nothing_to_learn_is_named(tmp_path: Path) -> None:
    class Astray(ThreePlayers):
        def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            loss, terms = super().forward(batch)
            return loss * (float("nan") if "imitate" in batch else 1.0), terms

    with pytest.raises(TrainingDiverged, match="the loss of the imitator is nan at step 0"):
        run(tmp_path / "astray", Astray())
    task = ThreePlayers()
    first, second, third = task.players(0.1)
    task.players = lambda lr: [first, second, replace(third, groups=[{"params": []}])]  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="every parameter of the witness is frozen"):
        run(tmp_path / "frozen", task)
    task.players = lambda lr: [second, third]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="exactly one player"):
        run(tmp_path / "nobody", task)


def test_the_averaged_weights_are_validated_and_exported_and_the_others_trained_on(tmp_path: Path) -> None:
    task = ToyTask()
    run(tmp_path, task)
    averages = torch.load(saved_states(tmp_path)[-1] / "ema.pt", weights_only=True)["shadow_params"]
    for average, (name, value) in zip(averages, task.named_parameters(), strict=True):
        assert torch.equal(exported(tmp_path)[name], average)
        assert not torch.allclose(value, average)
        assert torch.equal(load_file(saved_states(tmp_path)[-1] / "model.safetensors")[name], value)
    validated = [r["validation"]["weight"] for r in records(tmp_path) if "validation" in r]
    assert validated[-1] == pytest.approx(float(exported(tmp_path)["layer.weight"].sum()))
    assert task.training


def test_dropout_is_on_from_the_first_step(tmp_path: Path) -> None:
    task = ToyTask()
    task.eval()
    seen = []
    task.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    run(tmp_path, task, config=CONFIG.model_copy(update={"steps": 2}))
    assert seen == [True, True]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_warm_up_and_fall(schedule: str, tmp_path: Path) -> None:
    config = LoopConfig(steps=20, lr=1.0, warmup=4, schedule=schedule, log_every=1, ema_decay=0)
    run(tmp_path, config=config)
    rates = [r["lr"] for r in records(tmp_path) if "lr" in r]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    if schedule == "constant":
        assert rates[4:] == [1.0] * 16
    else:
        assert rates[4:] == sorted(rates[4:], reverse=True)
        assert 0.02 <= rates[-1] < 0.05


def test_large_and_negative_seeds_will_do(tmp_path: Path) -> None:
    for seed in (123_456_789_012, -1):
        run(tmp_path / str(seed), config=CONFIG.model_copy(update={"steps": 1, "seed": seed}))


def test_settings_of_an_earlier_run_in_the_process_do_not_stay(tmp_path: Path) -> None:
    run(tmp_path / "half", config=CONFIG.model_copy(update={"steps": 1, "mixed_precision": "bf16"}))
    run(tmp_path / "full")
    run(tmp_path / "half again", config=CONFIG.model_copy(update={"steps": 1, "mixed_precision": "bf16"}))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_state_before(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="the loss is inf at step 7; lower lr"):
        run(tmp_path, ToyTask(poison=7))
    assert [p.name for p in saved_states(tmp_path)] == ["step-5"]
    weights = load_file(saved_states(tmp_path)[-1] / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_a_run_is_not_overwritten(whole: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in whole.rglob("*"))
    with pytest.raises(UsageError, match="holds a training run already; pass --resume"):
        run(whole)
    assert sorted((p, p.stat().st_mtime_ns) for p in whole.rglob("*")) == before


def test_two_processes_do_not_work_on_one_run(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = (folder / "log.jsonl").read_bytes()
    with locked(folder), pytest.raises(ResourceError, match="another process is working on this run"):
        run(folder, resume=True)
    assert (folder / "log.jsonl").read_bytes() == before
    run(folder, resume=True)


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        run(tmp_path / "file")


@pytest.mark.parametrize("damage", ["optimizer.bin", "model.safetensors", "ema.pt"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_state_is_told_and_the_one_before_serves(damage: str, how: str, whole: Path, tmp_path: Path) -> None:
    run(tmp_path)
    last = saved_states(tmp_path)[-1]
    file = last / damage
    file.unlink() if how == "gone" else file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="step-12 cannot be resumed from.*delete it to go on"):
        run(tmp_path, resume=True)
    for part in last.iterdir():
        part.unlink()
    last.rmdir()
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


def test_a_state_of_another_network_is_told(tmp_path: Path) -> None:
    run(tmp_path)
    other = ToyTask()
    other.layer = torch.nn.Linear(7, 1)
    with pytest.raises(CheckpointError, match="of another network"):
        run(tmp_path, other, resume=True)


def test_frozen_tasks_and_devices_that_are_not_there_are_refused(tmp_path: Path) -> None:
    task = ToyTask()
    task.requires_grad_(False)
    with pytest.raises(UsageError, match="every parameter is frozen"):
        run(tmp_path / "frozen", task)
    with pytest.raises(UsageError, match="fp16"):
        run(tmp_path / "fp16", config=CONFIG.model_copy(update={"mixed_precision": "fp16"}))
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="--device cuda"):
            train(ToyTask(), CONFIG, tmp_path / "cuda", device="cuda")


RANKS = """
import sys
from pathlib import Path
import torch
from latentvid.training.loop import train
from tests.training.toys import CONFIG, ToyTask
task = ToyTask(dropout=0.0)
train(task, CONFIG, Path(sys.argv[1]), device="cpu")
rank = torch.distributed.get_rank()
torch.save({"asked": task.asked, "weights": task.state_dict()}, Path(sys.argv[1]) / f"rank-{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_see_different_batches_and_end_with_equal_weights(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py"), str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / "run" / f"rank-{k}.pt", weights_only=True) for k in range(2))
    assert one["asked"] == list(range(0, 24, 2))
    assert other["asked"] == list(range(1, 24, 2))
    assert all(torch.equal(value, other["weights"][name]) for name, value in one["weights"].items())

    class Both(ToyTask):
        def batch(self, index: int) -> dict[str, Tensor]:
            pair = [super(Both, self).batch(2 * index + k) for k in range(2)]
            return {name: torch.cat([part[name] for part in pair]) for name in pair[0]}

    alone = Both(dropout=0.0)
    run(tmp_path / "alone", alone)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(one["weights"][name], value, atol=1e-5, rtol=1e-4)
