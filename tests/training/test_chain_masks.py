"""The chain with masks in place of cuts: at once, or growing while a teacher helps to recover."""

import pytest
import torch

import dsee
from chain import Recorder, prepare
from dsee.errors import InputError
from dsee.pruning.targets import mask_targets
from dsee.training import load_recipe, run

QUICK = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 16}
NO_EXPORT = {"tune": QUICK, "export": {"onnx": []}}
# the update is trained as if it were dense, and merging says what it dropped at the zeros
pytestmark = pytest.mark.filterwarnings("ignore:merge. every zero kept")


def ran(folder, model_folder, **changes):
    path = prepare(folder, model_folder, **(NO_EXPORT | changes))
    recorder = Recorder()
    return run(load_recipe(path), base=folder, progress=recorder), recorder


def density(model):
    targets = mask_targets(model)
    assert all(not target.weight[~target.mask].any() for target in targets)
    return 1 - sum(int(t.mask.sum()) for t in targets) / sum(t.mask.numel() for t in targets)


def test_a_schedule_masks_while_recovering_and_the_merged_model_keeps_the_zeros(tmp_path, model_folder):
    blocks = {"ratio": 0.5, "score": "movement"}
    result, recorder = ran(
        tmp_path,
        model_folder,
        prune={"blocks": blocks, "schedule": {"start": 0.1, "end": 0.6, "every": 2}, "calibration": 32},
        recover=QUICK | {"distill": True},
    )
    assert list(result.stages) == ["tune", "recover", "merge", "measure"]
    assert list(result.variants) == ["dense", "recovered"]
    for name in recorder.ran:
        done, total = recorder.steps[name]
        assert done == total, name
    out = tmp_path / "out"
    assert not any(t.mask is not None for t in mask_targets(dsee.load(out / "stages" / "tuned")))
    recovered, merged = dsee.load(out / "stages" / "recovered"), dsee.load(out / "model")
    assert density(recovered) == pytest.approx(0.5, abs=2e-3)
    assert density(merged) == density(recovered)
    steps = dsee.history(merged)
    assert [step["step"] for step in steps] == ["tune", "prune", "recover", "merge"]
    assert steps[1]["schedule"]["law"] == "cubic"
    assert steps[1]["zeros_before"] == 0
    assert steps[1]["zeros_after"] == pytest.approx(0.5, abs=2e-3)
    again = Recorder()
    run(load_recipe(tmp_path / "recipe.yaml"), base=tmp_path, progress=again)
    assert again.ran == []


def test_the_best_epoch_is_one_whose_masks_are_whole(tmp_path, model_folder):
    from types import SimpleNamespace

    from dsee.training.fit import KeepBest
    from dsee.training.recipe import TrainSpec

    schedule = SimpleNamespace(done=False)
    figures = iter([90.0, 80.0, 85.0, 70.0])
    keeper = KeepBest(
        lambda _: {"accuracy": next(figures)}, SimpleNamespace(note=lambda _: None), TrainSpec(patience=1), schedule
    )
    model, control = torch.nn.Linear(2, 2), SimpleNamespace(should_training_stop=False)
    for step, done in enumerate((False, True, True), 1):
        schedule.done = done
        keeper.on_epoch_end(None, SimpleNamespace(global_step=step, max_steps=4), control, model=model)
        assert not control.should_training_stop
    assert keeper.best == {"accuracy": 85.0}
    keeper.on_epoch_end(None, SimpleNamespace(global_step=4, max_steps=4), control, model=model)
    assert control.should_training_stop


@pytest.mark.slow
def test_masks_at_once_come_after_the_cuts_of_the_same_recipe(tmp_path, model_folder):
    result, _ = ran(
        tmp_path, model_folder, prune={"heads": 1, "nofm": {"n": 2, "m": 4}, "calibration": 32}, recover=QUICK
    )
    assert list(result.variants) == ["dense", "pruned", "recovered"]
    merged = dsee.load(tmp_path / "out" / "model")
    for target in mask_targets(merged):
        assert (target.weight.reshape(-1, 4) != 0).sum(1).max() <= 2
    assert merged.bert.encoder.layer[0].attention.self.query.weight.shape == (24, 32)


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"nofm": {"n": 3, "m": 7}}, "no multiple of 7"),
        ({"nofm": {"n": 4, "m": 4}}, "0 < n < m"),
        ({"blocks": {"ratio": 0.5, "score": "fischer"}}, "Did you mean 'fisher'"),
        ({"weights": {"ratio": 0.5, "targets": ["qery"]}}, "Did you mean 'query'"),
        ({"weights": 0.5, "schedule": {"start": 0.5, "end": 0.3}}, "does not come after"),
        ({"weights": 0.5, "schedule": {"end": 100000}}, "do not fit into a training of"),
    ],
)
def test_what_cannot_be_met_is_found_before_tuning(tmp_path, model_folder, prune, said):
    path = prepare(tmp_path, model_folder, prune=prune)
    recorder = Recorder()
    with pytest.raises(InputError, match=said):
        run(load_recipe(path), base=tmp_path, progress=recorder)
    assert recorder.ran == []


def test_an_update_under_the_mask_merges_to_what_was_recovered(tmp_path, model_folder):
    result, _ = ran(
        tmp_path,
        model_folder,
        update={"r": 4, "n_sparse": 16, "support": "random", "masked": True, "target_modules": "all-linear"},
        prune={"nofm": [2, 4], "calibration": 32},
        recover=QUICK | {"epochs": 1},
    )
    out = tmp_path / "out"
    recovered, merged = dsee.load(out / "stages" / "recovered"), dsee.load(out / "model")
    assert recovered.peft_config["default"].masked
    inputs = {"input_ids": torch.arange(5, 15).view(2, 5)}
    with torch.no_grad():
        first, second = recovered(**inputs).logits, merged(**inputs).logits
    # a layer without a mask, the pooler, is merged with the rounding of that
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    assert result.stages["merge"]["test"] == result.stages["recover"]["test"]
    assert "said" not in result.stages["merge"]
    assert dsee.history(merged)[-1]["dropped"] == 0.0
