"""Several processes at one run, started by torchrun: who leads, what the first one does alone, what all share out.

Messages go through a gloo group of their own, whatever the gradients go through, so that waiting for the first process
costs the others nothing and may take hours. Outside of :func:`together`, and inside of :func:`first`, there is one
process, and every function here does the plain thing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from dsee.errors import DseeError, EchoError, InputError, ProcessError, StoppedError

T = TypeVar("T")
Job = TypeVar("Job")

#: How long one process may wait for another one's message. torchrun ends all when one dies, so that this is no guard.
PATIENCE = timedelta(days=7)


@dataclass
class _Group:
    """The processes of this run as this one sees them."""

    index: int = 0
    count: int = 1
    channel: Any = None
    store: Any = None
    #: greater than 0 while the first process works alone
    alone: int = 0


_group = _Group()


def launched() -> int:
    """Return how many processes torchrun or accelerate says it has started; 1 without them."""
    wanted = os.environ.get("WORLD_SIZE", "1")
    return int(wanted) if wanted.isdigit() and "RANK" in os.environ else 1


def count() -> int:
    """Return how many processes are at this piece of work."""
    return 1 if _group.alone else _group.count


def index() -> int:
    """Return the number of this process, from 0."""
    return _group.index


def uses_gpus() -> bool:
    """Whether models are tuned on GPUs."""
    import torch

    unwanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return torch.cuda.is_available() and not unwanted


def leads() -> bool:
    """Whether this is the process that writes and shows."""
    return _group.index == 0


@contextmanager
def together() -> Iterator[None]:
    """Work as one of the processes that torchrun started; where there is only one, nothing is different.

    Raises:
        InputError: more processes on a machine than it has GPUs.
        EchoError: another process has failed already, and said so.
        ProcessError: another process has gone without a word.
    """
    if launched() == 1 or _group.count > 1:
        yield
        return
    try:
        _join()
    except InputError as error:
        # each finds it by itself
        raise (EchoError(error.exit_code) if os.environ["RANK"] != "0" else error) from None
    try:
        yield
    except BaseException as error:
        told = _told(error)
        if told is error:
            raise
        raise told from error
    else:
        _leave()


def _join() -> None:
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    gpus = torch.cuda.device_count() if uses_gpus() else 0
    here, local = int(os.environ.get("LOCAL_WORLD_SIZE", launched())), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and here > gpus:
        raise InputError(
            f"{here} processes on a machine with {gpus} GPUs. Start one for each (--nproc-per-node {gpus}), or set "
            "ACCELERATE_USE_CPU=true to leave the GPUs out."
        )
    if gpus:
        torch.cuda.set_device(local)
    if distributed.is_initialized():
        _group.index, _group.count = distributed.get_rank(), distributed.get_world_size()
    else:
        try:
            _group.store, _group.index, _group.count = next(iter(rendezvous("env://", timeout=timedelta(minutes=30))))
        except ValueError as error:
            raise InputError(
                f"RANK and WORLD_SIZE speak of {launched()} processes, but {error}. Start them with torchrun, or unset "
                "WORLD_SIZE to run in one."
            ) from error
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=PrefixStore("dsee", _group.store),
            rank=_group.index,
            world_size=_group.count,
        )
    _group.channel = distributed.new_group(backend="gloo", timeout=PATIENCE)


def _leave() -> None:
    from torch import distributed

    _answers(None)
    vars(_group).update(vars(_Group()))
    distributed.destroy_process_group()


def _told(error: BaseException) -> BaseException:
    """The error as this process should raise it: as it is if nobody has failed before, else without a word."""
    if isinstance(error, EchoError) or not isinstance(error, Exception):
        return error
    try:
        first = _group.store is None or _group.store.add("dsee/failed", 1) == 1
    except RuntimeError:
        # whoever kept the store has gone
        first = False
    if not first:
        return EchoError(getattr(error, "exit_code", 1))
    if isinstance(error, DseeError):
        if _group.index and not isinstance(error, ProcessError | StoppedError):
            error.args = (f"process {_group.index} of {_group.count}: {error}", *error.args[1:])
        return error
    if isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection", "NCCL")):
        return _gone()
    return error


def _gone() -> ProcessError:
    return ProcessError(
        f"process {_group.index} of {_group.count}: another process of this run has gone. Its own message, or "
        "torchrun's, says why. The same command goes on from the last finished stage."
    )


def _answers(value: Any) -> list[Any]:
    """The value of every process, on every process."""
    from torch import distributed

    found: list[Any] = [None] * _group.count
    try:
        distributed.all_gather_object(found, value, group=_group.channel)
    except RuntimeError as error:
        raise _gone() from error
    return found


def shared(value: T) -> T:
    """Return the first process's value, on every process.

    Args:
        value: plain data; of no matter on the others.
    """
    if count() == 1:
        return value
    from torch import distributed

    box = [value]
    try:
        distributed.broadcast_object_list(box, src=0, group=_group.channel)
    except RuntimeError as error:
        raise _gone() from error
    return box[0]


def first(work: Callable[[], T]) -> T:
    """Let the first process do something for all, while the others wait; return what it returned.

    Args:
        work: returns plain data.

    Raises:
        Exception: what ``work`` raised, on the first process.
        EchoError: on the others.
    """
    if count() == 1:
        return work()
    result: Any = None
    failure: Exception | None = None
    if leads():
        _group.alone += 1
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised again below, once the others know
            failure = error
        finally:
            _group.alone -= 1
    result, code = shared((result, getattr(failure, "exit_code", 1) if failure else 0))
    if failure:
        raise failure
    if code:
        raise EchoError(code)
    return result  # type: ignore[no-any-return]  # what came through the channel is what was sent


def before_the_others(work: Callable[[], T]) -> T:
    """Let the first process do something, and then all others: what it leaves in caches is there for them.

    Args:
        work: done once on each process.

    Raises:
        Exception: what ``work`` raised; EchoError on the others if it was the first one's.
    """
    if count() == 1:
        return work()
    kept: list[T] = []
    first(lambda: kept.append(work()))
    return kept[0] if kept else work()


def agree(what: str, value: Any, remedy: str) -> None:
    """Refuse to go on where processes differ.

    Args:
        what: is compared, for the message.
        value: plain data.
        remedy: what to do.

    Raises:
        ProcessError: they differ; on the processes beside the first :class:`EchoError`.
    """
    if count() == 1:
        return
    found = _answers(value)
    others = [number for number, theirs in enumerate(found) if theirs != found[0]]
    if not others:
        return
    if not leads():
        raise EchoError(ProcessError.exit_code)
    differing = ", ".join(str(number) for number in others)
    more = ""
    if isinstance(value, dict):
        keys = [key for key in value if any(not isinstance(f, dict) or f.get(key) != value[key] for f in found)]
        more = f" (first of all in {keys[0]})" if keys else ""
    raise ProcessError(f"{what}: not the same on process 0 and on {differing} of {_group.count}{more}. {remedy}")


def spread(jobs: Sequence[Job], work: Callable[[Job], T], done: Callable[[list[Job]], None] | None = None) -> list[T]:
    """Share jobs out among the processes, and return all results, in the jobs' order, on every process.

    Every process does as many as any other, so that work which needs all at once (a sharded model) does not stall; who
    has none left repeats one, whose result nobody looks at.

    Args:
        jobs: the same on every process.
        work: makes a result of plain data or arrays.
        done: told of the jobs that all processes have finished since the last call.
    """
    processes = count()
    mine: list[T] = []
    for start in range(0, len(jobs), processes):
        round_ = list(jobs[start : start + processes])
        mine.append(work(round_[_group.index % len(round_)] if processes > 1 else round_[0]))
        if done:
            done(round_)
    if processes == 1:
        return mine
    found = _answers(mine)
    return [found[number % processes][number // processes] for number in range(len(jobs))]
