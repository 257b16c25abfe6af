"""Saves in child processes that are killed, or whose disk is full, and prints what is left as JSON.

Run by test_artifact_killed.py. Importing torch takes seconds, so one process does it and forks for each trial. It may
have no threads, whose locks a fork would copy and never release.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from artifact_tools import beside, unevenly_cut  # noqa: E402 - the path comes first
from transformers.utils.logging import disable_progress_bar  # noqa: E402 - likewise

import dsee  # noqa: E402 - likewise
from conftest import logits, tiny_bert  # noqa: E402 - likewise

RANDOM_TRIALS = 12
#: Too small for config.json, for model.safetensors, and for the last bytes of it.
LIMITS = (100, 20_000, 90_000)
MODELS = {"old": unevenly_cut(tiny_bert(0)), "new": unevenly_cut(tiny_bert(1))}
EXPECTED = {name: logits(model) for name, model in MODELS.items()}


def save(folder: Path, which: str) -> None:
    dsee.save(MODELS[which], folder)


def forked(work) -> str:
    """Run ``work`` in a child and return what it returns, or how it ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, work().encode())
        except BaseException as error:  # noqa: BLE001 - reported to the parent
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read().decode()
    status = os.waitpid(child, 0)[1]
    return said or f"signal {os.WTERMSIG(status)}"


def state(folder: Path) -> dict[str, object]:
    """What a process that comes later finds: which model, whether own files are there, what lies beside."""

    def work() -> str:
        loaded = logits(dsee.load(folder))
        found = [name for name, expected in EXPECTED.items() if loaded.equal(expected)]
        notes = (folder / "notes.txt").is_file()
        save(folder, "new")
        return json.dumps({"model": found[0] if found else "neither", "notes": notes, "again": "saved"})

    said = forked(work)
    facts = json.loads(said) if said.startswith("{") else {"model": said, "notes": None, "again": said}
    return facts | {"beside": beside(folder)}


def fresh(folder: Path, pristine: Path) -> Path:
    shutil.copytree(pristine, folder)
    (folder / "notes.txt").write_text("mine")
    return folder


def die_at(folder: Path, number: int) -> str:
    """Save and be killed at the n-th operation on the file system that concerns the folder."""

    def work() -> str:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove") and folder.name in str(arguments[0]):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        save(folder, "new")
        return "done"

    return forked(work)


def each_step(root: Path, pristine: Path) -> list[dict[str, object]]:
    trials = []
    for number in range(1, 200):
        folder = fresh(root / f"step{number}" / "out", pristine)
        ended = die_at(folder, number)
        trials.append({"ended": ended, **state(folder)})
        if ended == "done":
            break
    return trials


def random_moments(root: Path, pristine: Path) -> list[dict[str, object]]:
    moments = random.Random(0)
    folder = fresh(root / "random" / "out", pristine)
    trials = []
    for _ in range(RANDOM_TRIALS):
        child = os.fork()
        if child == 0:
            while True:
                save(folder, "new")
                save(folder, "old")
        time.sleep(moments.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        trials.append(state(folder))
    return trials


def full_disk(root: Path, pristine: Path) -> list[dict[str, object]]:
    trials = []
    for limit in LIMITS:
        folder = fresh(root / f"full{limit}" / "out", pristine)

        def work(limit: int = limit, folder: Path = folder) -> str:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save(folder, "new")
            return "done"

        said = forked(work)
        trials.append({"limit": limit, "said": said, "left": beside(folder), **state(folder)})
    return trials


TRIALS = {"steps": each_step, "random": random_moments, "full": full_disk}

if __name__ == "__main__":
    parent = Path(sys.argv[1])
    disable_progress_bar()
    # all that is imported late is imported here, once
    save(parent / "pristine", "old")
    dsee.load(parent / "pristine")
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread is left"
    trials = {name: work(parent, parent / "pristine") for name, work in TRIALS.items()}
    sys.stdout.write("\n" + json.dumps(trials) + "\n")
