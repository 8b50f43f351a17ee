"""The training loop: mixed precision, accumulation, clipping, averaged weights, exact resume, a log.

The only file that touches accelerate. A run is a folder:

    loop.json        the settings
    recipe.json      what was trained on what, where a recipe was run
    log.jsonl        one line per `log_every` steps and per validation
    state/step-N/    all that resuming needs; written beside and renamed, the last two are kept
    export/          what the task makes of the averaged weights: the last ones, or the best
    result.json      written last: which step's weights were exported, and whether the run stopped early

Files that the run did not write, or that were changed since, are never replaced (see `core/folder.py`).
"""

from __future__ import annotations

import math
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, send_to_device, set_seed
from diffusers.training_utils import EMAModel
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentvid.core.config import StrictModel
from latentvid.core.errors import CheckpointError, LatentVidError, ResourceError, UsageError
from latentvid.core.files import read_json, resource_errors
from latentvid.core.folder import Folder, Layout
from latentvid.core.rng import Rng
from latentvid.core.runtime import resolve_runtime
from latentvid.training.interrupts import held_interrupts
from latentvid.training.log import LOG, OnRecord, RunLog
from latentvid.training.task import Player, Task

KEPT_STATES = 2
LOOP, RECIPE, RESULT, EXPORT = "loop.json", "recipe.json", "result.json", "export"
_STAGED = ".export"
LAYOUT = Layout(
    files=re.compile(
        r"loop\.json|recipe\.json|log\.jsonl|result\.json|\.?export/.+"
        r"|state/\.?step-\d+/(model|optimizer|scheduler|sampler|scaler|random_states|dl_state|pytorch_model|ema|best|log)"
        r"[\w.-]*"
    ),
    folders=re.compile(r"state|state/\.?step-\d+|\.?export(/.+)?"),
    grows=frozenset([LOG]),
    documents=re.compile(r"export/(README\.md|metrics\.json)"),
)
"""What lies in the folder of a run."""


class TrainingDiverged(LatentVidError):
    """The loss is not a number any more."""


class LoopConfig(StrictModel):
    """How to train, whatever the task."""

    steps: int = Field(1000, ge=1)
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate; a task may scale it per parameter group."""
    warmup: int = Field(100, ge=0)
    """Steps over which the rate rises linearly from zero."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: held, or lowered to 2 % of the peak at the last step."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    accumulate: int = Field(1, ge=1)
    """Batches per step."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are what is validated and exported. 0 averages nothing."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    log_every: int = Field(20, ge=1)
    save_every: int = Field(500, ge=1)
    validate_every: int = Field(1000, ge=1)
    keep: Literal["last", "best"] = "last"
    """Which averaged weights to export: the last, or those of the validation with the best score."""
    patience: int = Field(0, ge=0)
    """Stop after so many validations in a row that were no better, where the best is kept; 0 never stops."""
    prefetch: int = Field(2, ge=1)
    """Batches made ahead in a background thread."""


def train(
    task: Task,
    config: LoopConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    on_record: OnRecord | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train `task` and export it; return the last record of training (empty if there was nothing left to do).

    An interrupt (Ctrl-C) waits for the end of the step, saves the state and is then raised; a second one does not wait.

    Args:
        folder: the run's folder. It must be new, unless `resume`.
        resume: go on from the last saved state (or start, where there is none). The result equals that of a run
            that was never interrupted.
        device: "auto" (whatever accelerate finds), "cpu", "cuda" or "mps".
        on_record: called with every log record, for a progress bar.
        recipe: what is trained on what, written into the folder as it is.

    Raises:
        UsageError: the folder holds a run already, nothing is trainable, or the device cannot compute in the
            precision asked for.
        ResourceError: the device is not there, or another process is working in the folder.
        CheckpointError: the state to resume from is damaged, or of another network.
        TrainingDiverged: the loss became infinite or NaN.
    """
    run = _Run(task, config, Path(folder), device=device, on_record=on_record)
    try:
        run.start(resume=resume, recipe=recipe)
        with held_interrupts() as interrupted:
            while run.step < config.steps and not run.is_stopped:
                run.advance()
                if interrupted():
                    run.save_alone()
                    raise KeyboardInterrupt
        run.finish()
    finally:
        run.close()
    return run.last_record


@dataclass
class Best:
    """The best validation so far: its step and score, how many have followed, and its weights."""

    step: int = 0
    score: float = -math.inf
    waited: int = 0
    weights: list[Tensor] | None = None


@dataclass(frozen=True, slots=True)
class _Learner:
    """A player with its optimizer, and the peak rate of each of its parameter groups."""

    player: Player
    optimizer: Any
    rates: list[float]


def _learners(players: Sequence[Player], config: LoopConfig) -> list[_Learner]:
    """Give every player an optimizer.

    Raises:
        UsageError: there is nothing to train.
        ValueError: not exactly one player learns from the task's batches.
    """
    if sum(player.batches is None for player in players) != 1:
        raise ValueError("exactly one player of a task learns from its batches")
    found = []
    for player in players:
        if not player.parameters():
            whose = f" of the {player.name}" if len(players) > 1 else ""
            raise UsageError(f"nothing to train: every parameter{whose} is frozen.")
        groups = list(player.groups)
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        found.append(_Learner(player, optimizer, [group.get("lr", config.lr) for group in groups]))
    return found


class _Run:
    def __init__(
        self, task: Task, config: LoopConfig, folder: Path, *, device: str, on_record: OnRecord | None
    ) -> None:
        self.config, self.folder = config, folder
        self.accelerator = _accelerator(config, device)
        self.task = task
        learners = _learners(task.players(config.lr), config)
        self.model, *optimizers = self.accelerator.prepare(task, *(learner.optimizer for learner in learners))
        self.learners = [replace(one, optimizer=it) for one, it in zip(learners, optimizers, strict=True)]
        self.trained = [p for one in learners if one.player.averaged for p in one.player.parameters()]
        self.ema = EMAModel(self.trained, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
        self.step = 0
        self.best = Best()
        self.last_record: dict[str, Any] = {}
        self.files = Folder(folder, LAYOUT)
        self.log = RunLog(self.files if self.accelerator.is_main_process else None, on_record)
        self._since, self._logged = time.monotonic(), 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._held = ExitStack()
        self._ahead: dict[int, Any] = {}

    def start(self, *, resume: bool, recipe: Mapping[str, Any] | None = None) -> None:
        check_folder(self.folder, resume=resume)
        states = saved_states(self.folder)
        with resource_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            self._held.enter_context(self.files.held())
            self._prepare_folder(resume=resume)
        self.task.train()
        if states:
            self._load(states[-1])
        if self.accelerator.is_main_process:
            for name, settings in ((LOOP, self.config.model_dump(mode="json")), (RECIPE, recipe)):
                if settings is not None and self.files.is_free(name):
                    self.files.write_json(name, settings)
            self.log.cut(self.step if states else -1)
        if self.config.keep == "best" and not states:
            self._validate()  # so that weights which training only worsens are kept as they came

    def _prepare_folder(self, *, resume: bool) -> None:
        """Begin the list of a new run's files, and remove what a killed process left half-written."""
        check_folder(self.folder, resume=resume)  # now that nobody else is in it
        if not self.files.files():
            self.files.begin()
        self.files.sweep()
        self.files.drop(_STAGED)
        for torn in sorted(self.folder.glob("state/.step-*")):
            if torn.name.removeprefix(".step-").isdigit():
                self.files.drop_known(f"state/{torn.name}")

    @property
    def is_stopped(self) -> bool:
        """Whether the score has not risen for as long as patience lasts."""
        return 0 < self.config.patience <= self.best.waited

    def advance(self) -> None:
        """Take one optimizer step, and log, validate and save as due."""
        # Dropout draws from the global generator: reseeding by step makes a resumed run draw the same.
        stream = f"step/{self.step}/rank/{self.accelerator.process_index}"
        set_seed(Rng(self.config.seed).seed_of(stream) % 2**32)
        self._set_rates()
        self.task.begin_step(self.step)
        for learner in self.learners:
            self._take_turn(learner)
        self.step += 1
        if self.config.ema_decay:
            self.ema.step(self.trained)
        self._after_step()

    def _take_turn(self, learner: _Learner) -> None:
        """Take one optimizer step of a player, if there is something for it to learn from."""
        player = learner.player
        is_main = player.batches is None
        batches: Iterable[Any]
        if player.batches is None:
            count = self.config.accumulate
            indices = range(self.step * count, (self.step + 1) * count)
            batches = (send_to_device(self._batch(index), self.accelerator.device) for index in indices)
        else:
            batches = player.batches()
            count = len(batches)
        if not count:
            return
        for k, batch in enumerate(batches):
            with self._sync(k == count - 1), self._attention():
                with self.accelerator.autocast():
                    loss, terms = self.model(batch)
                self.accelerator.backward(loss / count)
            self._check_finite(loss, player)
            self._note({"loss": loss, **terms} if is_main else terms)
        for other in self.learners:
            if other is not learner:
                other.optimizer.zero_grad()  # a player learns from its own batches alone
        norm = self.accelerator.clip_grad_norm_(player.parameters(), self.config.clip_norm)
        if is_main:
            self._note({"grad_norm": norm})
        learner.optimizer.step()
        learner.optimizer.zero_grad()

    def _after_step(self) -> None:
        config, last = self.config, self.step == self.config.steps
        if self.step % config.log_every == 0 or last:
            self._log_means()
        if self.step % config.validate_every == 0 or last:
            self._validate()
        if self.step % config.save_every == 0 and not last:
            self.save()

    def _validate(self) -> None:
        with self.averaged():
            figures = self._agreed(self.task.validate())
            if not figures:
                return
            score = self.task.score(figures) if self.config.keep == "best" else None
            if score is not None and score > self.best.score:
                self.best = Best(self.step, score, 0, [p.detach().cpu().clone() for p in self.trained])
            elif self.best.weights is not None:
                self.best.waited += 1
        self.task.validated(figures)
        self.log.record({"step": self.step, "validation": figures})
        if self.is_stopped and self.step < self.config.steps:
            why = f"no better score in {self.best.waited} validations; the weights of step {self.best.step} are kept"
            self.log.record({"step": self.step, "stopped": why})

    def _agreed(self, figures: dict[str, float]) -> dict[str, float]:
        """Return the main process's figures: all must come to the same conclusions."""
        if self.accelerator.num_processes == 1:
            return figures
        found: dict[str, float] = broadcast_object_list([figures])[0]
        return found

    def finish(self) -> None:
        self.save()
        if self.accelerator.is_main_process:
            kept = self.step if self.best.weights is None else self.best.step
            done = {"steps": self.step, "kept": kept, "stopped": self.step < self.config.steps}
            with resource_errors(self.folder / EXPORT):
                self._export()
            if not self.files.has(RESULT) or self.files.read_json(RESULT) != done:
                self.files.write_json(RESULT, done)
        self.accelerator.wait_for_everyone()

    def _export(self) -> None:
        """Write the export beside its place, and move what is new in it there."""
        self.files.drop(_STAGED)
        try:
            staged = self.files.make_folder(_STAGED)
            with self.averaged(self.best.weights):
                self.task.export(staged)
            self.files.make_folder(EXPORT)
            kept = self.files.install(_STAGED, EXPORT)
        finally:
            self.files.drop(_STAGED)
        for name in kept:
            warnings.warn(f"{self.folder / name} was changed since it was written; it is left as it is.", stacklevel=2)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._held.close()

    @contextmanager
    def averaged(self, instead: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Run the block with the averaged weights (or those given) in place, in evaluation mode, without gradients."""
        self.task.eval()
        swap = self.config.ema_decay or instead is not None
        if swap:
            self.ema.store(self.trained)
            self.ema.copy_to(self.trained)
        if instead is not None:
            for parameter, value in zip(self.trained, instead, strict=True):
                parameter.data.copy_(value)
        try:
            with torch.no_grad():
                yield
        finally:
            if swap:
                self.ema.restore(self.trained)
            self.task.train()

    def save(self) -> None:
        """Write all that resuming needs beside its place, and rename it; all processes together."""
        name = f"state/step-{self.step}"
        target = self.folder / name
        if target.exists():
            return
        beside = target.with_name(f".{target.name}")
        self.accelerator.wait_for_everyone()
        try:
            with resource_errors(target):
                self.accelerator.save_state(str(beside), safe_serialization=True)
                self.accelerator.wait_for_everyone()
                if self.accelerator.is_main_process:
                    torch.save(self.ema.state_dict(), beside / "ema.pt")
                    self.files.write_json(f"state/{beside.name}/log.json", self.log.state())
                    if self.config.keep == "best":
                        torch.save(vars(self.best), beside / "best.pt")
                    self.files.list_all(f"state/{beside.name}", name)
                    beside.rename(target)
        except ResourceError as error:
            if self.accelerator.is_main_process:
                self.files.drop_known(f"state/{beside.name}")
            raise ResourceError(f"{error} What was saved before is kept; --resume goes on from there.") from error
        if self.accelerator.is_main_process:
            for old in saved_states(self.folder)[:-KEPT_STATES]:
                self.files.drop_known(f"state/{old.name}")
        self.accelerator.wait_for_everyone()

    def save_alone(self) -> None:
        """Save, unless other processes would have to join in: they may stand at another step."""
        if self.accelerator.num_processes == 1:
            self.save()

    def _load(self, state: Path) -> None:
        try:
            self.accelerator.load_state(str(state))
            self.ema.load_state_dict(torch.load(state / "ema.pt", weights_only=True, map_location="cpu"))
            sums = state / "log.json"
            self.log.load_state(read_json(sums) if sums.exists() else {})
            if self.config.keep == "best":
                self.best = Best(**torch.load(state / "best.pt", weights_only=True, map_location="cpu"))
        except Exception as error:  # torch, safetensors, pickle and accelerate each have their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{state} cannot be resumed from, being damaged or of another network ({reason});"
                " delete it to go on from the state before it."
            ) from error
        self.ema.to(self.accelerator.device)
        self.step = self._logged = int(state.name.removeprefix("step-"))

    def _batch(self, index: int) -> Any:
        """Return batch `index`, and set the next ones going. Ranks take different batches."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        end = self.config.steps * self.config.accumulate
        for k in range(index, min(end, index + self.config.prefetch + 1)):
            if k not in self._ahead:
                self._ahead[k] = self._pool.submit(self.task.batch, k * world + rank)
        return self._ahead.pop(index).result()

    def _set_rates(self) -> None:
        config = self.config
        factor = min(1.0, (self.step + 1) / config.warmup) if config.warmup else 1.0
        if config.schedule == "cosine":
            done = max(0, self.step - config.warmup) / max(1, config.steps - config.warmup)
            factor *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for learner in self.learners:
            for group, rate in zip(learner.optimizer.param_groups, learner.rates, strict=True):
                group["lr"] = rate * factor

    def _attention(self) -> AbstractContextManager[None]:
        """On the CPU, attention by plain matrix products.

        The flash kernel's backward pass there takes far longer for many short sequences, which is what
        attention across frames is.
        """
        if self.accelerator.device.type == "cpu":
            return sdpa_kernel([SDPBackend.MATH])
        return nullcontext()

    @contextmanager
    def _sync(self, last: bool) -> Iterator[None]:
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def _check_finite(self, loss: Tensor, player: Player) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            whose = "" if player.batches is None else f" of the {player.name}"
            raise TrainingDiverged(
                f"the loss{whose} is {value} at step {self.step}; lower lr, or resume from the last state with"
                " another seed."
            )

    def _note(self, terms: Mapping[str, Tensor]) -> None:
        for name, tensor in terms.items():
            self.log.note(name, float(tensor.detach()))

    def _log_means(self) -> None:
        now = time.monotonic()
        record: dict[str, Any] = {"step": self.step, "steps": self.config.steps, **self.log.take_means()}
        record["lr"] = next(one.optimizer.param_groups[0]["lr"] for one in self.learners if one.player.batches is None)
        record["step_s"] = (now - self._since) / max(1, self.step - self._logged)
        self._since, self._logged = now, self.step
        self.last_record = record
        self.log.record(record)


def is_main_process() -> bool:
    """Tell whether this is the process, of those that torchrun started, that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def main_process_first(device: str = "auto") -> Iterator[None]:
    """Let the main process run the block before all others, which then find what it wrote."""
    with PartialState(cpu=device == "cpu").main_process_first():
        yield


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that holds a run already, unless it is to be resumed, or files that a run would replace.

    Raises:
        UsageError: as above.
        CheckpointError: links are in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the run.")
    files = Folder(folder, LAYOUT)
    files.check()
    has_begun = bool(saved_states(folder)) or files.has(LOG)
    if has_begun and not resume:
        raise UsageError(f"{folder} holds a training run already; pass --resume or another folder.")
    is_run = has_begun and (files.has(LOOP) or files.is_listed)
    if not is_run:
        taken = [name for name in files.files() if not (files.is_listed and files.owns(name))]
        taken += [name for name in ("state", EXPORT) if (folder / name).is_dir() and any((folder / name).iterdir())]
    else:
        taken = [RESULT] if files.is_listed and not files.is_free(RESULT) else []
    if taken:
        raise UsageError(
            f"{folder / taken[0]} was not written by this run, or was changed since; move it away, or name another "
            "folder."
        )


def saved_states(folder: Path) -> list[Path]:
    """Return the folders of a run's saved states, oldest first."""
    found = [p for p in folder.glob("state/step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def _accelerator(config: LoopConfig, device: str) -> Accelerator:
    if device not in ("auto", "cpu"):
        resolve_runtime(device)
    if device == "cpu" and config.mixed_precision == "fp16":
        raise UsageError("mixed_precision=fp16 is not computed on the CPU; use bf16 or no.")
    # accelerate's state is global: without this, the settings of an earlier run in this process would stay.
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            cpu=device == "cpu",
            # Images skip the temporal layers, so not every parameter has a gradient at every step.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise UsageError(f"mixed_precision={config.mixed_precision}: {error}") from error
    if device not in ("auto", accelerator.device.type):
        raise ResourceError(f"--device {device}: accelerate computes on {accelerator.device.type} here; use auto.")
    return accelerator
