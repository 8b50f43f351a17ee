"""Many clips to latent files on a Ray cluster: the batch of `batch.py`, by workers that each load the autoencoder once.

Only names and records pass through Ray: every machine reads clips and checkpoint, and writes latents, under the same
paths. Workers can take all CPUs without the batch starving: the list of clips is made here, so that Ray Data has no
reading tasks, which would wait for a CPU for ever.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from latentvid.autoencoders.base import BaseAutoencoder
from latentvid.autoencoders.batch import EncodeSettings, Job, encode_files, failure
from latentvid.autoencoders.codec import OnFrames
from latentvid.autoencoders.load import component_folder, load_autoencoder
from latentvid.core.errors import LatentVidError, ResourceError, UsageError
from latentvid.core.places import find_checkpoint
from latentvid.core.runtime import resolve_runtime

ATTEMPTS = 3
"""At a clip whose worker dies: killed, crashed, or with its machine."""
_LOCAL: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 128 << 20}
"""Of a cluster on this machine; only names pass through its store."""


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Where to encode, and what by."""

    address: str = "local"
    """"local" starts a cluster on this machine, "auto" is the one that runs on it; else HOST:PORT or ray://HOST:PORT."""
    num_workers: int | None = None
    """By default one per GPU, or else one per machine."""
    device: str = "auto"
    dtype: str = "auto"
    max_memory: int | None = None
    """Bytes, of each worker."""


@dataclass(frozen=True, slots=True)
class Pool:
    """How many workers, and what each of them takes of the cluster."""

    num_workers: int
    cpus: int
    gpus: int
    threads: int


def encode_files_on_ray(
    vae: str | Path,
    jobs: Sequence[Job],
    settings: EncodeSettings | None = None,
    options: RayOptions | None = None,
    *,
    overwrite: bool = False,
    on_frames: OnFrames | None = None,
) -> Iterator[dict[str, Any]]:
    """Like `encode_files`, with the records in the order in which the clips are done.

    On the CPU the latents are, byte for byte, those of a plain run with as many threads as a worker has; whatever their
    number, either takes the other's files for done.

    Args:
        vae: a folder or name, as for `load_autoencoder`.
        on_frames: called with the number of frames of each clip that was encoded.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
        CheckpointError: there is no such autoencoder, or a worker found it damaged.
        ResourceError: the cluster has no such device, or memory or disk do not suffice.
    """
    options = options or RayOptions()
    component_folder(vae)  # before anything is started
    if not jobs:
        return
    with _cluster(options.address) as ray:
        pool = pool_for([node["Resources"] for node in ray.nodes() if node["Alive"]], options)
        for number, outcome in _outcomes(ray, vae, jobs, settings or EncodeSettings(), options, pool, overwrite):
            if isinstance(outcome, Exception):
                raise outcome
            source, target = jobs[number]
            if outcome["status"] == "encoded" and on_frames:
                on_frames(outcome["num_frames"])
            # As they were named, not as the workers know them.
            yield {**outcome, **{k: str(v) for k, v in (("source", source), ("output", target)) if k in outcome}}


def pool_for(machines: Sequence[Mapping[str, float]], options: RayOptions) -> Pool:
    """Return what each worker is to take of machines with such resources ("CPU", "GPU").

    More workers than there is room for are no mistake: the rest wait until the cluster grows, or for ever.

    Raises:
        ResourceError: there is no such device, or no CPU at all.
    """
    cpus, gpus = ([int(machine.get(kind, 0)) for machine in machines] for kind in ("CPU", "GPU"))
    if not any(cpus):
        raise ResourceError("none of the Ray cluster's machines offers a CPU.")
    if options.device == "cuda" and not any(gpus):
        raise ResourceError("--device cuda: none of the Ray cluster's machines offers a GPU.")
    threads = torch.get_num_threads()
    if any(gpus) and options.device in ("auto", "cuda"):
        return Pool(options.num_workers or sum(gpus), 1, 1, threads)
    num_workers = options.num_workers or sum(1 for number in cpus if number)
    each = min(max(1, sum(cpus) // num_workers), max(cpus))
    return Pool(num_workers, each, 0, min(each, threads))


class _Attempts:
    """Counts how often each clip is begun: Ray gives one whose worker died to the next worker, for ever."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Return which attempt at a clip this is, from 1."""
        self._counts[number] += 1
        return self._counts[number]


@dataclass
class _Worker:
    """Encodes clips, in a process of its own."""

    vae: str
    settings: EncodeSettings
    options: RayOptions
    threads: int
    overwrite: bool
    attempts: Any

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number, job = pickle.loads(row["job"])
        return {"outcome": pickle.dumps((number, self._outcome(number, job)))}

    def _outcome(self, number: int, job: Job) -> dict[str, Any] | Exception:
        """Return a clip's record, or what ends the batch: raised, Ray would wrap it, and lose its exit code."""
        import ray

        if ray.get(self.attempts.begin.remote(number)) > ATTEMPTS:
            why = f"{job[0]}: {ATTEMPTS} workers died on it; is there memory for them? See --max-memory, --ray-workers."
            return failure(job[0], LatentVidError(why))
        try:
            (record,) = encode_files(self.autoencoder, [job], self.settings, overwrite=self.overwrite)
        except Exception as error:
            return _portable(error)
        return record

    @cached_property
    def autoencoder(self) -> BaseAutoencoder:
        """Loaded with the first clip, so that what is wrong with it is told like what is wrong with a clip."""
        torch.set_num_threads(self.threads)
        runtime = resolve_runtime(self.options.device, self.options.dtype)
        return load_autoencoder(self.vae, runtime=runtime, max_memory=self.options.max_memory)


def _portable(error: Exception) -> Exception:
    """Return an exception, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # constructors of any library
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _outcomes(
    ray: Any,
    vae: str | Path,
    jobs: Sequence[Job],
    settings: EncodeSettings,
    options: RayOptions,
    pool: Pool,
    overwrite: bool,
) -> Iterator[tuple[int, Any]]:
    """Yield the number of each clip as it is done, with its record, or what ends the batch."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    rows = [
        {"job": pickle.dumps((number, (source.absolute(), target.absolute())))}
        for number, (source, target) in enumerate(jobs)
    ]
    # One clip per block and none in waiting: no clip waits for another, or dies with it.
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Worker,
        fn_constructor_kwargs={
            "vae": str(find_checkpoint(vae).absolute()),
            "settings": settings,
            "options": options,
            "threads": pool.threads,
            "overwrite": overwrite,
            "attempts": ray.remote(num_cpus=0)(_Attempts).remote(),
        },
        compute=ray.data.ActorPoolStrategy(size=pool.num_workers, max_tasks_in_flight_per_actor=1),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
        yield from (pickle.loads(outcome) for outcome in batch["outcome"])


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Yield Ray, connected; what is already connected in this process is used as it is.

    Raises:
        UsageError: it is not installed, or there is nothing at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report over the network
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # which means, on Linux too: loopback only
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("Ray is not installed; pip install 'latentvid[ray]', or leave --ray away.") from error
    if ray.is_initialized():
        yield ray
        return
    try:
        with _own_sigterm():
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **(_LOCAL if address == "local" else {}),
            )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UsageError(f"--ray {address}: no Ray cluster can be used there ({reason}).") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is told by our records
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM, in whose place Ray puts its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
