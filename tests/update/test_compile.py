"""torch.compile takes the model in one graph and computes the same."""

import pytest
import torch

from conftest import adapted, batch, logits, tiny_bert
from update.models import close, own

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


@pytest.mark.slow
def test_the_default_compiler_gives_the_same():
    assert_equal_to_eager("inductor")
