"""The exported model says what the model says, for every batch and length, padding included."""

import pytest
import torch
from onnx_tools import exported

from conftest import batch, logits
from dsee.runtime import OnnxModel

SHAPES = [(1, 1), (1, 8), (2, 16), (5, 3), (3, 33), (7, 80)]
#: Each of 3 layers adds sums of up to 40 products to what goes on to the next.
FP32 = 3 * 40 * torch.finfo(torch.float32).eps
#: Weights in steps of 1/64, activations in steps of 1/255 of their range; 20 products with independent errors.
INT8 = 20**0.5 * (1 / 64 + 1 / 255)


def _errors(export):
    """Largest difference on each shape, over the largest logit of all."""
    model = OnnxModel(export.folder)
    differences, scale = [], 0.0
    for size, length in SHAPES:
        inputs = batch(size, length)
        expected = logits(export.model, inputs)
        found = torch.from_numpy(model.run({name: tensor.numpy() for name, tensor in inputs.items()}))
        assert found.shape == expected.shape
        assert found.dtype == torch.float32
        differences.append((found - expected).abs().max().item())
        scale = max(scale, expected.abs().max().item())
    return [difference / scale for difference in differences]


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_fp32_agrees_with_torch(name):
    assert max(_errors(exported(name))) <= FP32


def test_int8_stays_near_torch():
    assert max(_errors(exported("bert", "int8"))) <= INT8


def test_what_is_behind_the_padding_changes_nothing():
    inputs = {name: tensor.numpy().copy() for name, tensor in batch(2, 10).items()}
    model = OnnxModel(exported("bert").folder)
    before = model.run(inputs)
    inputs["input_ids"][1, 5:] = 99
    assert abs(model.run(inputs) - before).max() <= FP32 * abs(before).max()


def test_a_sentence_alone_and_in_a_batch_gets_the_same_logits():
    inputs = {name: tensor.numpy() for name, tensor in batch(4, 10).items()}
    model = OnnxModel(exported("bert").folder)
    together = model.run(inputs)
    alone = model.run({name: array[1:2, :5] for name, array in inputs.items()})
    assert abs(together[1] - alone[0]).max() <= FP32 * abs(together).max()
