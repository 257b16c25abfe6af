"""Helpers of the tests of the chain."""

from types import SimpleNamespace

import yaml

from conftest import sentences, write_csv

RECIPE = {
    "data": {"train": "train.csv", "split": {"validation": 0.15, "test": 0.25}},
    "update": {"r": 4, "n_sparse": 8, "target_modules": ["query", "value", "intermediate.dense"]},
    "tune": {"epochs": 6, "learning_rate": 1e-2, "batch_size": 8},
    "prune": {"heads": 0.25, "neurons": 0.4, "calibration": 32},
    "recover": {"epochs": 3, "learning_rate": 1e-2, "batch_size": 8},
    "measure": {"sequence": 16, "runs": 2, "memory": False},
    "max_length": 32,
    "output": "out",
}


def prepare(folder, model_folder, **changes):
    write_csv(folder / "train.csv", sentences(160))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"model": str(model_folder)} | changes), encoding="utf-8")
    return path


class Recorder:
    """Progress that remembers which stages ran."""

    def __init__(self):
        self.ran, self.kept, self.steps, self.said = [], [], {}, []

    def stage(self, name, total):
        from contextlib import nullcontext

        self.ran.append(name)
        self.steps[name] = [0, total]
        return nullcontext(SimpleNamespace(advance=lambda n=1: self._advance(name, n), note=lambda text: None))

    def _advance(self, name, steps):
        self.steps[name][0] += steps

    def skipped(self, name):
        self.kept.append(name)

    def say(self, text):
        self.said.append(text)
