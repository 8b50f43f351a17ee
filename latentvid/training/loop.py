"""The training loop: mixed precision, accumulation, clipping, averaged weights, exact resume, a log.

The only file that touches accelerate. A run is a folder:

    log.jsonl        one line per `log_every` steps and per validation
    state/step-N/    all that resuming needs; written beside and renamed, the last two are kept
    export/          what the task makes of the averaged weights
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device, set_seed
from diffusers.training_utils import EMAModel
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentvid.core.config import StrictModel
from latentvid.core.errors import LatentVidError, UsageError
from latentvid.core.files import write_json
from latentvid.training.task import Task

KEPT_STATES = 2
OnRecord = Callable[[dict[str, Any]], None]


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
) -> dict[str, Any]:
    """Train `task` and export it; return the last log record.

    Args:
        folder: the run's folder. It must be new, unless `resume`.
        resume: go on from the last saved state (or start, where there is none). The result equals that of a run
            that was never interrupted.
        device: "auto" (whatever accelerate finds) or "cpu".
        on_record: called with every log record, for a progress bar.

    Raises:
        UsageError: the folder holds a run already, or nothing is trainable.
        TrainingDiverged: the loss became infinite or NaN.
    """
    run = _Run(task, config, Path(folder), device=device, on_record=on_record)
    run.start(resume=resume)
    try:
        while run.step < config.steps:
            run.advance()
    except KeyboardInterrupt:
        run.save()
        raise
    run.finish()
    return run.last_record


class _Run:
    def __init__(
        self, task: Task, config: LoopConfig, folder: Path, *, device: str, on_record: OnRecord | None
    ) -> None:
        self.config, self.folder, self.on_record = config, folder, on_record
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            cpu=device == "cpu",
            # Images skip the temporal layers, so not every parameter has a gradient at every step.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        groups = task.parameter_groups(config.lr)
        if not any(group["params"] for group in groups):
            raise UsageError("nothing to train: every parameter is frozen.")
        self.base_rates = [group.get("lr", config.lr) for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        self.task = task
        self.model, self.optimizer = self.accelerator.prepare(task, optimizer)
        self.trained = [p for group in groups for p in group["params"]]
        self.ema = EMAModel(self.trained, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
        self.step = 0
        self.last_record: dict[str, Any] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._since = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: dict[int, Any] = {}

    def start(self, *, resume: bool) -> None:
        states = sorted(self.folder.glob("state/step-*"), key=lambda p: int(p.name.removeprefix("step-")))
        if (states or (self.folder / "log.jsonl").exists()) and not resume:
            raise UsageError(f"{self.folder} holds a training run already; pass --resume or another folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        set_seed(self.config.seed)
        if states:
            self._load(states[-1])
        if self.accelerator.is_main_process:
            write_json(self.folder / "loop.json", self.config.model_dump(mode="json"))
            self._cut_log()

    def advance(self) -> None:
        """Take one optimizer step, and log, validate and save as due."""
        # Dropout draws from the global generator: reseeding by step makes a resumed run draw the same.
        set_seed(self.config.seed * 1_000_003 + self.step + self.accelerator.process_index)
        self._set_rates()
        for micro in range(self.config.accumulate):
            last = micro == self.config.accumulate - 1
            batch = send_to_device(self._batch(self.step * self.config.accumulate + micro), self.accelerator.device)
            with self._sync(last), self._attention():
                with self.accelerator.autocast():
                    loss, terms = self.model(batch)
                self.accelerator.backward(loss / self.config.accumulate)
            self._note({"loss": loss, **terms})
        norm = self.accelerator.clip_grad_norm_(self.trained, self.config.clip_norm)
        self._note({"grad_norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.config.ema_decay:
            self.ema.step(self.trained)
        self._after_step()

    def _after_step(self) -> None:
        config, last = self.config, self.step == self.config.steps
        if self.step % config.log_every == 0 or last:
            self._log_means()
        if self.step % config.validate_every == 0 or last:
            with self.averaged():
                figures = self.task.validate()
            if figures:
                self._record({"step": self.step, "validation": figures})
        if self.step % config.save_every == 0 and not last:
            self.save()

    def finish(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.save()
        export = self.folder / "export"
        export.mkdir(exist_ok=True)
        if self.accelerator.is_main_process:
            with self.averaged():
                self.task.export(export)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Run the block with the averaged weights in place, in evaluation mode and without gradients."""
        self.task.eval()
        if self.config.ema_decay:
            self.ema.store(self.trained)
            self.ema.copy_to(self.trained)
        try:
            with torch.no_grad():
                yield
        finally:
            if self.config.ema_decay:
                self.ema.restore(self.trained)
            self.task.train()

    def save(self) -> None:
        target = self.folder / "state" / f"step-{self.step}"
        beside = target.with_name(f".{target.name}")
        if self.accelerator.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(beside), safe_serialization=True)
        if self.accelerator.is_main_process and not target.exists():
            torch.save(self.ema.state_dict(), beside / "ema.pt")
            beside.rename(target)
            states = sorted(target.parent.glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))
            for old in states[:-KEPT_STATES]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _load(self, state: Path) -> None:
        self.accelerator.wait_for_everyone()
        self.accelerator.load_state(str(state))
        self.ema.load_state_dict(torch.load(state / "ema.pt", weights_only=True, map_location="cpu"))
        self.ema.to(self.accelerator.device)
        self.step = int(state.name.removeprefix("step-"))

    def _batch(self, index: int) -> Any:
        """Return batch `index`, and set the next ones going. Ranks take different batches."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for k in range(index, index + self.config.prefetch + 1):
            if k not in self._ahead:
                self._ahead[k] = self._pool.submit(self.task.batch, k * world + rank)
        return self._ahead.pop(index).result()

    def _set_rates(self) -> None:
        config = self.config
        factor = min(1.0, (self.step + 1) / config.warmup) if config.warmup else 1.0
        if config.schedule == "cosine":
            done = max(0, self.step - config.warmup) / max(1, config.steps - config.warmup)
            factor *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def _attention(self) -> AbstractContextManager[None]:
        """On the CPU, attention by plain matrix products.

        The flash kernel's backward pass there takes about ten times as long for many short sequences, which is what
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

    def _note(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            value = float(value.detach())
            if name == "loss" and not math.isfinite(value):
                raise TrainingDiverged(
                    f"the loss is {value} at step {self.step}; lower lr, or resume from the last state with another seed."
                )
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def _log_means(self) -> None:
        now = time.monotonic()
        record: dict[str, Any] = {"step": self.step, "steps": self.config.steps}
        record |= {name: total / count for name, (total, count) in self._sums.items()}
        record["lr"] = self.optimizer.param_groups[0]["lr"]
        record["step_s"] = (now - self._since) / max(1, self._sums["grad_norm"][1])
        self._sums, self._since = {}, now
        self.last_record = record
        self._record(record)

    def _record(self, record: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        if self.on_record:
            self.on_record(record)

    def _cut_log(self) -> None:
        """Drop what a killed run logged after its last saved state; it will be logged again."""
        log = self.folder / "log.jsonl"
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
