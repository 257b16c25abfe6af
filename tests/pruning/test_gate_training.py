"""The l1 penalty on gates: the same step whichever way it is put, and checkpoints that keep the gates."""

import pytest
import torch
from transformers import Trainer

import dsee
from conftest import adapted, batch, tiny_bert, training_arguments, training_rows
from dsee.pruning.gates import gate_parameters, gate_values, penalise_steps

STEPS = 6


def gated_model(wrapped=True, spread=0.3):
    model = (
        adapted(tiny_bert(), init_weights=True, target_modules=["query", "output.dense"]) if wrapped else tiny_bert()
    )
    dsee.add_gates(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for gate in gate_parameters(model):
            gate.add_(spread * torch.randn(gate.shape, generator=generator))
        gate_parameters(model)[0][0] = 0.0
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [1, 3])
def test_the_step_hook_gives_autograds_gradient_of_the_penalty(parts):
    """Also under gradient accumulation, where the penalty counts once."""
    one, other = gated_model(), gated_model()
    batches = [batch(labels=True, seed=seed) for seed in range(parts)]
    for inputs in batches:
        ((one(**inputs).loss + dsee.gate_penalty(one, 0.25)) / parts).backward()
        (other(**inputs).loss / parts).backward()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.0)
    penalise_steps(other, optimizer, 0.25)
    before = gradients(other)
    optimizer.step()
    expected, found = gradients(one), gradients(other)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
        assert torch.equal(found[name], before[name]) is not name.endswith("gate")


def test_the_penalty_is_the_sum_of_magnitudes():
    model = gated_model()
    total = sum(float(gate.detach().abs().sum()) for gate in gate_parameters(model))
    assert float(dsee.gate_penalty(model, 0.5).detach()) == pytest.approx(0.5 * total, rel=1e-6)


def test_the_hook_ends_when_removed():
    model = gated_model()
    optimizer = torch.optim.SGD(gate_parameters(model), lr=1.0)
    before = gate_values(model)
    penalise_steps(model, optimizer, 0.25).remove()
    optimizer.step()
    assert all(torch.equal(before[name], gate) for name, gate in gate_values(model).items())


def test_a_gate_without_a_gradient_is_pulled_all_the_same():
    model = gated_model()
    optimizer = torch.optim.SGD(gate_parameters(model), lr=1.0)
    before = gate_values(model)
    penalise_steps(model, optimizer, 0.25)
    optimizer.step()
    for name, gate in gate_values(model).items():
        torch.testing.assert_close(gate, before[name] - 0.25 * before[name].sign())


def test_a_fused_optimizer_under_mixed_precision_gets_the_scaled_penalty():
    model = gated_model()
    optimizer = torch.optim.Adam(gate_parameters(model), lr=0.0, fused=True)
    # as GradScaler sets them for the time of a step; the hook comes after it and before the update
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    penalise_steps(model, optimizer, 0.25)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.extend(gate.grad.clone() for gate in gate_parameters(model)))
    optimizer.step()
    signs = [256.0 * gate.detach().sign() for gate in gate_parameters(model)]
    assert all(torch.equal(gradient, sign) for gradient, sign in zip(seen, signs, strict=True))


def trainer(folder, callback=True, wrapped=True, model=None, **changes):
    return Trainer(
        model=model or gated_model(wrapped),
        args=training_arguments(folder, **({"max_steps": STEPS} | changes)),
        train_dataset=training_rows(),
        eval_dataset=training_rows(),
        callbacks=[dsee.GateCallback(0.01)] if callback else [],
    )


@pytest.fixture(scope="module", params=[True, False], ids=["peft", "bare"])
def straight(request, tmp_path_factory):
    """Folder and model of an unbroken run, and whether it is a PeftModel."""
    folder = tmp_path_factory.mktemp("straight")
    run = trainer(folder, wrapped=request.param)
    run.train()
    return folder, run.model, request.param


def test_trainer_moves_the_gates_and_shrinks_them_with_the_penalty(straight, tmp_path):
    _, model, wrapped = straight
    start = gate_values(gated_model(wrapped))
    assert not any(torch.equal(start[name], gate) for name, gate in gate_values(model).items())
    free = trainer(tmp_path, callback=False, wrapped=wrapped, save_strategy="no")
    free.train()
    assert float(dsee.gate_penalty(model, 1.0).detach()) < float(dsee.gate_penalty(free.model, 1.0).detach())


@pytest.mark.parametrize("restoring", [False, True])
def test_a_resumed_run_ends_where_the_unbroken_run_ends(straight, tmp_path, restoring):
    folder, model, wrapped = straight
    resumed = trainer(tmp_path, wrapped=wrapped, restore_callback_states_from_checkpoint=restoring)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    theirs = dict(model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in resumed.model.named_parameters())


def test_a_checkpoints_adapter_holds_no_gate(straight):
    folder, _, wrapped = straight
    if not wrapped:
        pytest.skip("a bare model's checkpoint is the whole model")
    from safetensors.torch import load_file

    assert not [name for name in load_file(folder / "checkpoint-2" / "adapter_model.safetensors") if "gate" in name]


def test_a_checkpoint_without_gates_is_refused(tmp_path):
    trainer(tmp_path / "one", callback=False, max_steps=2).train()
    resumed = trainer(tmp_path / "two")
    with pytest.raises(dsee.OrderError, match="holds no gates"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))


def test_the_best_models_gates_are_loaded_at_the_end(tmp_path):
    run = trainer(tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, learning_rate=0.3)
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert losses[-1] > min(losses), "or the last model would be the best and nothing would have to be loaded"
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=100 * torch.finfo(torch.float32).eps)


# transformers 5.23 has a new name for it, the first versions of 5 know the old one only
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gates(straight, tmp_path):
    _, model, wrapped = straight
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    again = trainer(tmp_path, wrapped=wrapped, save_strategy="no", **settings)
    again.train()
    for name, gate in gate_values(again.model).items():
        torch.testing.assert_close(gate, gate_values(model)[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"label_smoothing_factor": 0.1},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"max_grad_norm": 1e-3},
    ],
    ids=["label smoothing", "accumulation", "clipping"],
)
def test_the_penalty_counts_once_and_in_full_per_step(changes, tmp_path):
    """With and without it, one step of plain descent differs by its subgradient, whatever is done to the loss."""
    before = gate_values(gated_model())
    settings = {"max_steps": 1, "save_strategy": "no", "optim": "sgd", "lr_scheduler_type": "constant"} | changes
    pulled = []
    for strength in (0.0, 1.0):
        run = trainer(tmp_path, callback=False, **settings)
        run.add_callback(dsee.GateCallback(strength))
        run.train()
        pulled.append(gate_values(run.model))
    for name, start in before.items():
        torch.testing.assert_close(pulled[0][name] - pulled[1][name], 1e-2 * start.sign(), rtol=0, atol=1e-6)
