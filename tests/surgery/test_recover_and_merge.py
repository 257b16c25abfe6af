"""tune, prune, recover, merge: the update trains on after a cut, and merging it changes no logit."""

import torch
import transformers
from mask_oracle import ALL_LINEARS, TOLERANCE, strong
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

import dsee
from conftest import adapted, batch, logits, tiny_bert
from dsee.architectures import structure
from dsee.update import DseeLayer, SparseDelta


def recover(model, steps=5):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch(labels=True)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def test_a_fresh_optimizer_trains_on_and_merging_is_exact(family):
    model = strong(family(), target_modules=ALL_LINEARS)
    recover(model, 2)
    dsee.prune(model, dsee.Heads(0.25), dsee.Neurons(0.5, score="update"))
    pruned = logits(model)
    shape = structure(model)
    recover(model)
    unmerged = logits(model)
    assert (unmerged - pruned).abs().max() > 1e-2
    small = dsee.merge(model)
    torch.testing.assert_close(logits(small), unmerged, rtol=0.0, atol=TOLERANCE[torch.float32])
    assert structure(small) == shape == {"heads": [3] * 3, "neurons": [20] * 3}


def test_recovering_lowers_the_loss():
    model = strong(tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    dsee.prune(model, dsee.Heads(0.5), dsee.Neurons(0.5))
    losses = recover(model, 30)
    assert losses[-1] < 0.5 * losses[0]


def test_merging_in_fp64_keeps_fp64():
    model = strong(tiny_bert()).double()
    unmerged = logits(model)
    torch.testing.assert_close(logits(dsee.merge(model)), unmerged, rtol=0.0, atol=TOLERANCE[torch.float64])


def test_pruning_commutes_with_merging(family):
    one, other = (strong(family(), target_modules=ALL_LINEARS) for _ in range(2))
    rules = dsee.Heads(2, score="random", seed=4), dsee.Neurons(9, score="random", seed=4)
    dsee.prune(one, *rules)
    one, other = dsee.merge(one), dsee.merge(other)
    dsee.prune(other, *rules)
    assert torch.equal(logits(one), logits(other))


def test_the_result_is_a_plain_transformers_model(family):
    base = family()
    kind, names = type(base), set(base.state_dict())
    model = adapted(base)
    dsee.prune(model, dsee.Heads(1))
    small = dsee.merge(model)
    assert type(small) is kind
    assert isinstance(small, transformers.PreTrainedModel)
    peft_kinds = (BaseTunerLayer, DseeLayer, SparseDelta, AuxiliaryTrainingWrapper)
    assert not [name for name, module in small.named_modules() if isinstance(module, peft_kinds)]
    assert set(small.state_dict()) == names
    assert not hasattr(small, "peft_config")
    assert not any(parameter.requires_grad for parameter in small.parameters())


def test_the_trained_task_head_is_in_the_result():
    model = adapted(tiny_bert())
    recover(model, 2)
    trained = model.get_base_model().classifier.modules_to_save["default"].weight.detach().clone()
    assert not torch.equal(trained, tiny_bert().classifier.weight)
    assert torch.equal(dsee.merge(model).classifier.weight, trained)


def test_only_the_active_adapter_is_merged():
    model = strong(tiny_bert())
    config = dsee.DseeConfig(task_type="SEQ_CLS", r=2, n_sparse=5, init_weights=False)
    model.add_adapter("other", config)
    default = logits(model)
    model.set_adapter("other")
    unmerged = logits(model)
    assert not torch.allclose(default, unmerged)
    torch.testing.assert_close(logits(dsee.merge(model)), unmerged, rtol=0.0, atol=1e-5)
