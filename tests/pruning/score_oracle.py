"""Scores once more, written plainly: loops over heads and neurons, dense matrices, no shared code."""

from __future__ import annotations

import importlib

import torch

from dsee.architectures import layers

UNITS = ("heads", "neurons")
ALL_LINEARS = r".*layer\.\d+\..*(query|key|value|dense|q_lin|k_lin|v_lin|out_lin|lin1|lin2)"


def score(model, name, unit, calibration=None, seed=0):
    """What the library computes."""
    module = importlib.import_module("dsee.pruning.scores")
    given = module.ScoreInput(model, layers(model), unit, seed, calibration)
    return [values.double() for values in module.check_score(name)(given)]


def delta(linear, adapter="default"):
    """dW = s (U V + S2), entry by entry."""
    if not hasattr(linear, "dsee_scaling") or adapter not in linear.dsee_scaling:
        return 0.0
    up, low = linear.dsee_U[adapter].weight.detach().double(), linear.dsee_V[adapter].weight.detach().double()
    if hasattr(linear.dsee_U[adapter], "parts"):
        # query, key and value in one matrix: a factor pair of its own for each that is tuned
        low_rank = torch.zeros(3, linear.dsee_U[adapter].out_features // 3, low.shape[1], dtype=torch.float64)
        pairs = zip(linear.dsee_U[adapter].parts, up.chunk(2), low.chunk(2), strict=True)
        for part, own_up, own_low in pairs:
            low_rank[part] = own_up @ own_low
        low_rank = low_rank.flatten(0, 1)
    else:
        low_rank = up @ low
    sparse = linear.dsee_S[adapter]
    for flat, value in zip(sparse.indices.tolist(), sparse.weight.tolist(), strict=True):
        low_rank[flat // low_rank.shape[1], flat % low_rank.shape[1]] += value
    return linear.dsee_scaling[adapter] * low_rank


def weight(linear):
    base = linear.base_layer if hasattr(linear, "base_layer") else linear
    return base.weight.detach().double()


def by_hand(model, unit, rows_of, columns_of, matrix):
    """Sum of |matrix(linear)| over the rows and columns that belong to each head or neuron."""
    result = []
    for view in layers(model):
        size = view.head_size if unit == "heads" else 1
        count = view.heads if unit == "heads" else view.neurons
        totals = []
        for i in range(count):
            mine = slice(i * size, (i + 1) * size)
            total = sum(matrix(view.part(part))[mine].abs().sum() for part in rows_of)
            total += sum(matrix(view.part(part))[:, mine].abs().sum() for part in columns_of)
            totals.append(float(total))
        result.append(totals)
    return result


def assert_scores(actual, expected):
    """fp32 sums of a few hundred terms against fp64 ones."""
    assert len(actual) == len(expected)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, torch.as_tensor(want, dtype=torch.float64), rtol=1e-5, atol=1e-9)
