"""Learning rates of their own for U, V, S2 and the head, in plain torch and under a Trainer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

import dsee
from conftest import adapted, batch, tiny_bert
from dsee.errors import InputError, OrderError


def by_name(groups):
    return {group["name"]: group for group in groups}


def names_of(model, group):
    wanted = {id(p) for p in group["params"]}
    return [name for name, p in model.named_parameters() if id(p) in wanted]


def test_each_part_has_its_rate():
    model = adapted(tiny_bert())
    groups = by_name(dsee.parameter_groups(model, 1e-3, up_ratio=4, sparse_lr=2e-2, head_lr=5e-4, weight_decay=0.1))
    assert list(groups) == ["V", "U", "S2", "head", "head_no_decay"]
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {"V": 1e-3, "U": 4e-3, "S2": 2e-2, "head": 5e-4, "head_no_decay": 5e-4}
    )
    assert [group["weight_decay"] for group in groups.values()] == [0.1, 0.1, 0.0, 0.1, 0.0]
    parts = {"V": "dsee_V", "U": "dsee_U", "S2": "dsee_S", "head": "classifier", "head_no_decay": "classifier"}
    for name, group in groups.items():
        assert all(parts[name] in path for path in names_of(model, group))
    assert all(path.endswith("bias") for path in names_of(model, groups["head_no_decay"]))


@settings(max_examples=12, deadline=None)
@given(
    r=st.integers(0, 3),
    n_sparse=st.integers(0, 5),
    bias=st.sampled_from(["none", "all", "dsee_only"]),
    full=st.sampled_from([None, ["pooler"], ["LayerNorm"]]),
)
def test_every_trainable_parameter_is_in_one_group(r, n_sparse, bias, full):
    if r == n_sparse == 0:
        r = 1
    model = adapted(tiny_bert(), r=r, n_sparse=n_sparse, bias=bias, modules_to_save=full, support="random")
    groups = dsee.parameter_groups(model, 1e-3)
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert all(group["params"] for group in groups)


def test_norms_and_biases_are_not_decayed():
    model = tiny_bert()
    groups = by_name(dsee.parameter_groups(model, 1e-3, weight_decay=0.1))
    plain, bare = names_of(model, groups["head"]), names_of(model, groups["head_no_decay"])
    assert "bert.embeddings.LayerNorm.weight" in bare
    assert all(name.endswith("bias") or "LayerNorm" in name for name in bare)
    assert not any(name.endswith("bias") or "LayerNorm" in name for name in plain)


def test_an_optimizer_moves_each_part_by_its_own_rate():
    model = adapted(tiny_bert())
    # Adam's first step has the length of the rate, whatever the gradient
    optimizer = torch.optim.Adam(dsee.parameter_groups(model, 1e-3, up_ratio=3, sparse_lr=7e-3, head_lr=2e-3), eps=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    model(**batch(labels=True)).loss.backward()
    optimizer.step()
    rates = {"dsee_V": 1e-3, "dsee_U": 3e-3, "dsee_S": 7e-3, "classifier": 2e-3}
    seen = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = next(part for part in rates if part in name)
        moved = (parameter.detach() - before[name]).abs()[parameter.grad.abs() > 1e-8]
        torch.testing.assert_close(moved, torch.full_like(moved, rates[part]), rtol=1e-3, atol=1e-7)
        seen.add(part)
    assert seen == set(rates)


def test_a_trainer_schedules_all_groups(tmp_path):
    model = adapted(tiny_bert())
    rows = [{k: v[i] for k, v in batch(8, labels=True).items()} for i in range(8)]
    optimizer = torch.optim.AdamW(dsee.parameter_groups(model, 1e-3, up_ratio=4))
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=4, **quiet)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([1e-3, 4e-3, 1e-3, 1e-3, 1e-3])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0] * 5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"lr": 0.0}, "lr=0.0 has to be positive"),
        ({"lr": float("nan")}, "lr=nan has to be positive"),
        ({"lr": 1e-3, "up_ratio": -1}, "up_ratio=-1 has to be positive"),
        ({"lr": 1e-3, "sparse_lr": 0.0}, "sparse_lr=0.0 has to be positive"),
        ({"lr": 1e-3, "weight_decay": -0.1}, "weight_decay=-0.1 has to be 0 or more"),
        ({"lr": 1e-3, "sparse_weight_decay": -0.1}, "sparse_weight_decay=-0.1 has to be 0 or more"),
    ],
)
def test_impossible_rates_are_refused(arguments, expected):
    with pytest.raises(InputError, match=expected):
        dsee.parameter_groups(adapted(tiny_bert()), **arguments)


def test_a_frozen_model_has_no_groups():
    model = adapted(tiny_bert()).requires_grad_(False)
    with pytest.raises(OrderError, match="nothing in this model is trainable"):
        dsee.parameter_groups(model, 1e-3)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 32 / 4), (True, 32 / 2)])
def test_rank_stabilised_scaling(rslora, scale):
    from dsee.update.layer import update_layers

    model = adapted(tiny_bert(), use_rslora=rslora)
    assert {layer.dsee_scaling["default"] for _, layer in update_layers(model)} == {scale}


def test_rank_stabilised_scaling_survives_saving(tmp_path):
    from peft import PeftModel

    model = adapted(tiny_bert(), use_rslora=True)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    assert again.peft_config["default"].use_rslora
    assert torch.equal(model(**batch()).logits, again.eval()(**batch()).logits)
