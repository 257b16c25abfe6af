"""int8: per output channel, reduced range, smaller."""

import onnx
import pytest
from onnx import numpy_helper
from onnx_tools import exported

from dsee.artifact import read_manifest

#: 6 matrices in each of 3 layers, the pooler and the classifier.
MATRICES = 6 * 3 + 2


@pytest.fixture(scope="module")
def graph():
    return onnx.load(exported("bert", "int8").folder / "model.onnx").graph


@pytest.fixture(scope="module")
def stored(graph):
    return {tensor.name: tensor for tensor in graph.initializer}


def _products(graph):
    return [node for node in graph.node if node.op_type == "MatMulInteger"]


def test_every_matrix_is_quantised(graph, stored):
    assert len(_products(graph)) == MATRICES
    for node in _products(graph):
        assert stored[node.input[1]].data_type == onnx.TensorProto.INT8


def test_every_output_channel_has_a_scale_of_its_own(graph, stored):
    for node in _products(graph):
        weight = stored[node.input[1]]
        channels = weight.dims[1]
        scale = numpy_helper.to_array(stored[weight.name.removesuffix("_quantized") + "_scale"])
        assert scale.shape == (channels,)
        assert list(stored[node.input[3]].dims) == [channels]
        assert len(set(scale.tolist())) == channels


def test_weights_keep_to_the_reduced_range(graph, stored):
    # the full range saturates on processors with AVX2 but without VNNI
    largest = [int(abs(numpy_helper.to_array(stored[node.input[1]]).astype(int)).max()) for node in _products(graph)]
    assert max(largest) <= 64
    assert min(largest) >= 62


def _weight_bytes(folder):
    graph = onnx.load(folder / "model.onnx").graph
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)


def test_int8_is_smaller():
    small, large = exported("bert", "int8").folder, exported("bert").folder
    assert _weight_bytes(small) < _weight_bytes(large) / 2
    assert (small / "model.onnx").stat().st_size < (large / "model.onnx").stat().st_size


def test_the_manifest_says_which_precision_it_is():
    for quantize, precision in ((None, "fp32"), ("int8", "int8")):
        facts = read_manifest(exported("bert", quantize).folder).facts
        assert facts["precision"] == precision
        assert 0 < facts["logit_error"] < 0.5


def test_nothing_of_the_quantisation_is_left_behind():
    names = {path.name for path in exported("bert", "int8").folder.iterdir()}
    assert names == {"model.onnx", "tokenizer.json", "labels.json", "README.md", "dsee.json"}
