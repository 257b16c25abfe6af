"""The schedule inside transformers' Trainer: the rule holds at the end, and a resumed run ends as the straight one."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

import dsee
from conftest import adapted, tiny_bert, training_arguments, training_rows
from dsee.errors import ArtifactError, InputError
from dsee.pruning.targets import mask_targets

STEPS = 8
FILE = "dsee_schedule.safetensors"


def trainer(folder, callback, full=False, **changes):
    model = tiny_bert() if full else adapted(tiny_bert(), init_weights=True)
    arguments = training_arguments(folder, **({"max_steps": STEPS, "weight_decay": 0.1} | changes))
    return Trainer(model=model, args=arguments, train_dataset=training_rows(), callbacks=[callback])


def gradual(score="movement", **changes):
    return dsee.Gradual(dsee.Blocks(0.6, score=score), **({"start": 0.1, "end": 0.8, "every": 2} | changes))


def density(model):
    targets = mask_targets(model)
    for target in targets:
        assert not target.weight[~target.mask].any()
    return 1 - sum(int(t.mask.sum()) for t in targets) / sum(t.mask.numel() for t in targets)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Folder and model of an unbroken run."""
    folder = tmp_path_factory.mktemp("straight")
    run = trainer(folder, dsee.GradualCallback(gradual()))
    run.train()
    return folder, run.model


def test_the_rule_holds_at_the_end_and_the_history_knows(straight):
    _, model = straight
    assert density(model) == pytest.approx(0.6, abs=2e-3)
    step = dsee.history(model)[-1]
    assert step["step"] == "prune"
    assert step["schedule"] == {"start": 1, "end": 6, "every": 2, "law": "cubic", "regrow": False}
    assert not any("dsee_movement" in vars(module) for module in model.modules())


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_run_ends_where_the_unbroken_one_ends(step, straight, tmp_path):
    folder, model = straight
    checkpoint = folder / f"checkpoint-{step}"
    resumed = trainer(tmp_path, dsee.GradualCallback(gradual(), resume_from=checkpoint))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    theirs = dict(model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in resumed.model.named_parameters())
    assert density(resumed.model) == density(model)


def test_the_last_checkpoint_of_the_folder_is_found_without_being_named(straight, tmp_path):
    folder, model = straight
    shutil.copytree(folder / "checkpoint-4", tmp_path / "checkpoint-4")
    resumed = trainer(tmp_path, dsee.GradualCallback(gradual()))
    resumed.train(resume_from_checkpoint=True)
    theirs = dict(model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in resumed.model.named_parameters())


def test_full_fine_tuning_holds_the_masks_and_resumes(tmp_path):
    run = trainer(tmp_path / "a", dsee.GradualCallback(gradual("weight")), full=True)
    run.train()
    assert density(run.model) == pytest.approx(0.6, abs=2e-3)
    checkpoint = tmp_path / "a" / "checkpoint-4"
    resumed = trainer(tmp_path / "b", dsee.GradualCallback(gradual("weight"), resume_from=checkpoint), full=True)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    theirs = dict(run.model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in resumed.model.named_parameters())


def test_the_file_in_a_checkpoint_is_one_bit_and_one_float_a_weight(straight):
    folder, model = straight
    stored = load_file(folder / "checkpoint-4" / FILE)
    for target in mask_targets(model):
        size = target.shape[0] * target.shape[1]
        assert stored[f"mask.{target.name}"].shape == (size // 8,)
        assert stored[f"movement.{target.name}"].numel() == size
    assert not list(folder.rglob("*.writing"))


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_lost_or_damaged_file_is_named(damage, straight, tmp_path):
    folder, _ = straight
    shutil.copytree(folder / "checkpoint-4", tmp_path / "checkpoint-4")
    path = tmp_path / "checkpoint-4" / FILE
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"dsee_schedule\.safetensors is not in"):
        trainer(tmp_path, dsee.GradualCallback(gradual())).train(resume_from_checkpoint=True)


def test_a_checkpoint_made_without_the_schedule_is_refused(tmp_path):
    from transformers import TrainerCallback

    trainer(tmp_path, TrainerCallback(), max_steps=2).train()
    with pytest.raises(ArtifactError, match="made without GradualCallback"):
        trainer(tmp_path, dsee.GradualCallback(gradual())).train(resume_from_checkpoint=True)


def test_a_training_that_ends_early_warns(tmp_path):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    run = trainer(tmp_path, dsee.GradualCallback(gradual()))
    run.add_callback(Stop())
    with pytest.warns(RuntimeWarning, match="stopped after step 3, before the schedule did"):
        run.train()


def test_callbacks_restored_by_the_trainer_are_refused(tmp_path):
    run = trainer(tmp_path, dsee.GradualCallback(gradual()), restore_callback_states_from_checkpoint=True)
    with pytest.raises(InputError, match="finds its state by itself"):
        run.train()
