"""torch.compile takes the model in one graph and computes the same."""

import pytest
import torch

from conftest import adapted, batch, logits, tiny_bert
from dsee.update import folded, sparse_product
from update.models import adapted_gpt2, close, own

# the compiler of torch 2.13 uses things that torch 2.13 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def assert_equal_to_eager(backend):
    # query has both parts, value has S2 alone
    eager, model = (adapted(tiny_bert(num_hidden_layers=1), rank_pattern={"value": 0}) for _ in range(2))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(logits(compiled), logits(eager), **close())
    eager(**batch(labels=True)).loss.backward()
    compiled(**batch(labels=True)).loss.backward()
    theirs = dict(eager.named_parameters())
    for name, parameter in model.named_parameters():
        if name in own(model):
            torch.testing.assert_close(parameter.grad, theirs[name].grad, **close())


def test_one_graph_forward_and_backward_equal_eager():
    assert_equal_to_eager("aot_eager")


def test_a_large_support_compiles_in_one_graph_without_folding(monkeypatch):
    model = adapted(tiny_bert(num_hidden_layers=1), n_sparse=200)
    expected = logits(model)
    # both matrix forms from now on, and folding would raise
    monkeypatch.setattr(sparse_product, "DENSE_TOKENS", 0)
    monkeypatch.setattr(folded, "FOLD_TOKENS", 0)
    monkeypatch.setattr(folded, "FOLD_PRODUCTS", 0.0)
    monkeypatch.setattr(folded, "_product", None)
    with pytest.raises(TypeError):
        logits(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled), expected, **close())


def test_a_fused_layer_compiles_in_one_graph():
    model = adapted_gpt2(fused_parts=None)
    expected = logits(model)
    torch.compiler.reset()
    torch.testing.assert_close(logits(torch.compile(model, fullgraph=True, backend="aot_eager")), expected, **close())


@pytest.mark.slow
def test_the_default_compiler_gives_the_same():
    assert_equal_to_eager("inductor")
