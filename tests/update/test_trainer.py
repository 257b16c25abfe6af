"""transformers' Trainer drives the update like any PEFT model, and resumes to the same weights."""

import pytest
import torch
from transformers import Trainer

from conftest import adapted, tiny_bert, training_arguments, training_rows
from update.models import own, snapshot

STEPS = 6


def trainer(folder, **changes):
    model = adapted(tiny_bert(), init_weights=True)
    arguments = training_arguments(folder, **({"max_steps": STEPS} | changes))
    return Trainer(model=model, args=arguments, train_dataset=training_rows(), eval_dataset=training_rows())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Folder and weights of an unbroken run."""
    folder = tmp_path_factory.mktemp("straight")
    run = trainer(folder)
    before = snapshot(run.model)
    run.train()
    return folder, before, run


def test_the_trainer_moves_the_update_and_the_head_only(straight):
    _, before, run = straight
    moved = {name for name, p in run.model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == own(run.model)


def test_a_checkpoint_holds_the_adapter_and_no_base(straight):
    folder, _, _ = straight
    names = {path.name for path in (folder / "checkpoint-2").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt"} <= names
    assert not names & {"model.safetensors", "pytorch_model.bin"}


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_resumed_from_a_checkpoint_ends_where_the_unbroken_run_ends(step, straight, tmp_path):
    folder, _, run = straight
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert resumed.state.global_step == STEPS
    theirs = dict(run.model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in resumed.model.named_parameters())


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    run = trainer(tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, learning_rate=0.3)
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert losses[-1] > min(losses), "or the last model would be the best and nothing would have to be loaded"
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=100 * torch.finfo(torch.float32).eps)


# transformers 5.23 has a new name for it, the first versions of 5 know the old one only
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_through_the_trainer_gives_the_same_weights(straight, tmp_path):
    _, _, run = straight
    again = trainer(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    again.train()
    theirs = dict(run.model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in again.model.named_parameters())
