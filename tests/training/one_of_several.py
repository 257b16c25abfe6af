"""Run by torchrun, or alone: carries out recipes and writes down what this process saw and wrote.

torchrun --nproc-per-node 2 one_of_several.py FOLDER RECIPE...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from transformers import Trainer

import dsee
from chain import Recorder
from dsee import processes
from dsee.training import load_recipe, run
from dsee.training.same import _hash

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(output):
    """Every file under ``output`` that this process opens to write, makes, renames or removes."""
    touched = []

    def hook(event, args):
        if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
            paths = args[:1]
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            paths = args[:2] if event == "os.rename" else args[:1]
        else:
            return
        touched.extend(str(path) for path in paths if str(path).startswith(str(output)))

    sys.addaudithook(hook)
    return touched


def watch_losses():
    losses, sharded, step = [], [], Trainer.training_step

    def training_step(self, model, *args, **kwargs):
        loss = step(self, model, *args, **kwargs)
        losses.append(float(loss))
        sharded.append(any(hasattr(p, "full_tensor") for p in model.parameters()))
        return loss

    Trainer.training_step = training_step
    return losses, sharded


def carry_out(path, losses, sharded, see=lambda output: []):
    """Run a recipe into a folder of its name; return what there is to compare."""
    recipe = load_recipe(path).model_copy(update={"output": f"out-{path.stem}-{processes.count()}"})
    output = path.parent / recipe.output
    touched, progress = see(output), Recorder()
    result = run(recipe, base=path.parent, progress=progress)
    found = {
        "processes": processes.count(),
        "stages": result.stages,
        "shown": progress.ran,
        "steps": progress.steps,
        "touched": list(touched),
        "losses": list(losses),
        "sharded": list(sharded),
        "files": {str(p.relative_to(output)): p.stat().st_size for p in sorted(output.rglob("*")) if p.is_file()},
        "model": {n: _hash(p) for n, p in dsee.load(result.output / "model").state_dict().items()},
    }
    losses.clear()
    sharded.clear()
    return found


def main():
    folder, *recipes = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    losses, sharded = watch_losses()
    with processes.together():
        if os.environ.get("DSEE_TEST_FAILS_ON") == str(processes.index()):
            fail_in_the_third_step()
        found = {path.stem: carry_out(path, losses, sharded, watch) for path in recipes}
        (folder / f"seen-{processes.index()}-of-{processes.count()}.json").write_text(json.dumps(found))


def fail_in_the_third_step():
    step, seen = Trainer.training_step, []

    def training_step(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 3:
            raise dsee.InputError("the third step is one too many")
        return step(self, *args, **kwargs)

    Trainer.training_step = training_step


if __name__ == "__main__":
    from dsee.cli import app

    # the errors and the exit code are those of the command
    app.app = main
    app.main()
