"""Carries out a recipe in child processes that are killed on the way, and prints what happened as JSON.

Run by test_killed_runs.py: run_and_die.py RECIPE SEED. Importing torch takes seconds, so one process does it and forks
for each attempt. It may have no threads, whose locks a fork would copy and never release.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1])]

import torch  # noqa: E402 - the path comes first
from transformers.utils.logging import disable_progress_bar  # noqa: E402 - likewise

from chain import Recorder  # noqa: E402 - likewise
from dsee.training import load_recipe, run  # noqa: E402 - likewise

#: What a save is made of, as Python's audit events name it.
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove")
MOST = 40


class Log(Recorder):
    """Progress in a file, since who is killed cannot tell."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def note(self, line):
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def stage(self, name, total):
        self.note(f"stage {name}")
        return super().stage(name, total)

    def skipped(self, name):
        self.note(f"kept {name}")

    def say(self, text):
        self.note(f"said {text}")


def writes(event, arguments, output):
    if event not in OPERATIONS or not str(arguments[0]).startswith(str(output)):
        return False
    return event != "open" or (isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)))


def attempt(recipe_path, output, log, die_at=None):
    """The child: runs, and is killed at the n-th operation on files of the output, if that is wanted."""
    child = os.fork()
    if child:
        return child
    try:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if writes(event, arguments, output):
                seen += 1
                if seen == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        torch.set_num_threads(1)
        progress = Log(log)
        run(load_recipe(recipe_path), base=recipe_path.parent, output=output, progress=progress)
        progress.note(f"operations {seen}")
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - reported to the parent
        Log(log).note(f"failed {type(error).__name__}: {error}")
    os._exit(1)


def processor_time(process):
    """Seconds a process has had, whatever else the machine does."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watched(process, limit):
    """Wait for a child, or kill it after so many seconds of processor time; return how it ended and what it had."""
    had = 0.0
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), had
        had = processor_time(process)
        if limit is not None and had >= limit:
            os.kill(process, signal.SIGKILL)
            limit = None
        time.sleep(0.002)


def lines(log, word):
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [line.removeprefix(f"{word} ") for line in text.splitlines() if line.startswith(f"{word} ")]


def main():
    recipe, seed = Path(sys.argv[1]), int(sys.argv[2])
    disable_progress_bar()
    straight_log, log = recipe.parent / "straight.log", recipe.parent / f"broken-{seed}.log"
    straight = recipe.parent / "straight"
    code, whole = watched(attempt(recipe, straight, straight_log), None)
    operations = int(lines(straight_log, "operations")[0]) if code == 0 else 0
    draw, output = random.Random(seed), recipe.parent / f"broken-{seed}"
    deaths, half = [], 0
    for number in range(MOST):
        # by turns while computing and while saving; the last attempt is left alone
        timed = number % 2 == 0
        limit = draw.uniform(0.1, 0.5) * whole if timed else None
        die_at = None if timed else draw.randrange(1, operations // 3)
        if number == MOST - 1:
            limit = die_at = None
        half += bool(list(output.rglob(".*.writing")))
        ended, _ = watched(attempt(recipe, output, log, die_at), limit)
        if ended != -signal.SIGKILL:
            break
        started = lines(log, "stage")
        deaths.append([started[-1] if started else None, "computing" if timed else "saving"])
    found = {"straight": code, "ended": ended, "deaths": deaths, "half": half}
    print(json.dumps(found | {"said": lines(log, "said"), "failed": lines(log, "failed")}))


if __name__ == "__main__":
    main()
