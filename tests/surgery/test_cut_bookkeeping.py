"""After a cut every number that a model keeps about itself is true."""

import pytest
from mask_oracle import ALL_LINEARS, UNEVEN, strong
from torch import nn

from conftest import tiny_bert, tiny_distilbert
from dsee.architectures import layers
from dsee.pruning import LayerPlan
from dsee.surgery import cut
from dsee.update import SparseDelta


@pytest.mark.parametrize("updated", [False, True])
def test_every_linear_knows_its_shape(family, updated):
    model = strong(family(), target_modules=ALL_LINEARS) if updated else family()
    cut(model, UNEVEN)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert {linear.weight.shape for linear in linears} >= {(16, 32), (8, 32), (32, 1), (1, 32)}
    for linear in linears:
        assert linear.weight.shape == (linear.out_features, linear.in_features)
        assert linear.bias is None or linear.bias.shape == (linear.out_features,)
        assert linear.weight.is_contiguous()


def test_every_sparse_part_knows_its_shape(family):
    model = strong(family(), target_modules=ALL_LINEARS, n_sparse=100)
    cut(model, UNEVEN)
    for view in layers(model):
        for part in ("query", "key", "value", "output", "ffn_in", "ffn_out"):
            base = view.part(part).get_base_layer()
            for sparse in view.part(part).dsee_S.values():
                assert isinstance(sparse, SparseDelta)
                assert sparse.shape.tolist() == list(base.weight.shape)
                assert (sparse.out_features, sparse.in_features) == tuple(base.weight.shape)
                sparse.check()


def test_bert_counts_its_heads():
    model = tiny_bert()
    cut(model, UNEVEN)
    attention = [view.part("attention") for view in layers(model)]
    assert [a.num_attention_heads for a in attention] == [2, 4, 1]
    assert [a.all_head_size for a in attention] == [16, 32, 8]
    assert [a.attention_head_size for a in attention] == [8, 8, 8]


def test_distilbert_counts_its_heads():
    model = tiny_distilbert()
    cut(model, UNEVEN)
    attention = [view.part("attention") for view in layers(model)]
    assert [a.n_heads for a in attention] == [2, 4, 1]
    assert [a.dim for a in attention] == [16, 32, 8]


def test_the_configuration_holds_the_structure(family):
    model = family()
    cut(model, UNEVEN)
    assert model.config.dsee_structure == {"heads": [2, 4, 1], "neurons": [36, 1, 40]}


def test_the_parts_that_stay_are_the_ones_that_were_not_named():
    model, untouched = tiny_bert(), tiny_bert()
    cut(model, [LayerPlan(heads=(0, 2), neurons=(1,)), LayerPlan(), LayerPlan()])
    first, was = layers(model)[0], layers(untouched)[0]
    rows = [*range(8, 16), *range(24, 32)]
    for part in ("query", "key", "value"):
        assert first.part(part).weight.equal(was.part(part).weight[rows])
        assert first.part(part).bias.equal(was.part(part).bias[rows])
    assert first.part("output").weight.equal(was.part("output").weight[:, rows])
    assert first.part("output").bias.equal(was.part("output").bias)
    neurons = [0, *range(2, 40)]
    assert first.part("ffn_in").weight.equal(was.part("ffn_in").weight[neurons])
    assert first.part("ffn_out").weight.equal(was.part("ffn_out").weight[:, neurons])
    for layer in (1, 2):
        kept = dict(layers(untouched)[layer].module.named_parameters())
        for name, value in layers(model)[layer].module.named_parameters():
            assert value.equal(kept[name])
