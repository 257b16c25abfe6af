"""Models and small truths that the tests of masks share."""

from __future__ import annotations

import functools

import torch
from torch import nn

from conftest import adapted, batch, tiny_bert
from cut_families import build
from dsee.pruning.targets import mask_targets

#: 36 x 36 and 42 x 36: no multiples of 5, 8 or 16.
RAGGED = {"hidden_size": 36, "num_hidden_layers": 2, "intermediate_size": 42}
#: Scores that need no data and no update.
FREE = ["weight", "weight+update", "random"]


@functools.cache
def shared(name: str):
    """A model that no test may change."""
    if name == "ragged":
        return adapted(tiny_bert(**RAGGED))
    if name == "bert":
        return adapted(tiny_bert())
    return build(name)


def data(count=2):
    return [batch(labels=True, seed=seed) for seed in range(count)]


def weights_of(model):
    """Name of each matrix that may be masked -> its W, (out, in)."""
    return {target.name: target.weight for target in mask_targets(model)}


def matrix(weight):
    """A model of one linear, for arithmetic by hand; found through ``targets=["linear"]``."""
    model = nn.Module()
    model.linear = nn.Linear(*reversed(weight.shape), bias=False)
    with torch.no_grad():
        model.linear.weight.copy_(weight)
    return model


def zeros(mask):
    return int((~mask).sum())
