"""A fresh update changes nothing at all."""

import pytest
import torch

from conftest import adapted, batch, logits, tiny_bert
from update.models import tiny_gpt2

CONFIGS = {"both": {}, "low rank only": {"n_sparse": 0}, "sparse only": {"r": 0}}


@pytest.mark.parametrize("parts", CONFIGS)
def test_a_fresh_update_changes_no_logit(family, parts):
    before = logits(family())
    model = adapted(family(), init_weights=True, **CONFIGS[parts])
    assert float((logits(model) - before).abs().max()) == 0.0


def test_the_check_itself_would_notice_an_update():
    assert float((logits(adapted(tiny_bert())) - logits(tiny_bert())).abs().max()) > 0.01


@pytest.mark.parametrize("target", [["query", "value"], "all-linear"])
def test_a_fresh_update_on_other_layers_changes_no_logit(target):
    model = adapted(tiny_bert(), init_weights=True, target_modules=target)
    assert torch.equal(logits(model), logits(tiny_bert()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_fresh_update_changes_no_logit_in_another_dtype(dtype):
    before = logits(tiny_bert().to(dtype))
    assert torch.equal(logits(adapted(tiny_bert().to(dtype), init_weights=True)), before)


def test_a_fresh_update_changes_no_logit_of_gpt2():
    model = adapted(tiny_gpt2(), init_weights=True, task_type="CAUSAL_LM", support="magnitude")
    assert torch.equal(logits(model), logits(tiny_gpt2()))


def test_a_fresh_update_changes_no_logit_under_autocast():
    base, model = tiny_bert(), adapted(tiny_bert(), init_weights=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(**batch()).logits, base(**batch()).logits)
