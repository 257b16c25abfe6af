"""A support comes with its file: what happens when file, configuration and base do not belong together."""

import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import save_file

import dsee
from conftest import adapted, batch, logits, tiny_bert
from dsee.update import SparseDelta
from dsee.update.layer import update_layers
from update.models import adapter_tensors, scrambled


def saved(folder, base=tiny_bert, **config):
    model = scrambled(adapted(base(), **({"task_type": None} | config)))
    model.save_pretrained(folder)
    return model


def rewrite(folder, name_part, change):
    """Change some tensors of an adapter file."""
    tensors = {
        name: change(tensor).contiguous() if name_part in name else tensor
        for name, tensor in adapter_tensors(folder).items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("n_sparse", [4, 17])
def test_the_checkpoint_decides_n(n_sparse, low_cpu_mem_usage, tmp_path):
    model = saved(tmp_path, n_sparse=9)
    config = dsee.DseeConfig.from_pretrained(tmp_path)
    config.n_sparse = n_sparse
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path, config=config, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded.eval()), logits(model))
    assert all(layer.dsee_S["default"].n_sparse == 9 for _, layer in update_layers(loaded))


def test_a_checkpoint_with_another_n_loads_for_training(tmp_path):
    saved(tmp_path, n_sparse=9)
    config = dsee.DseeConfig.from_pretrained(tmp_path)
    config.n_sparse = 4
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path, config=config, is_trainable=True)
    loaded(**batch(labels=True)).loss.backward()
    assert all(layer.dsee_S["default"].weight.grad.shape == (9,) for _, layer in update_layers(loaded))


def test_a_state_dict_with_another_n_replaces_the_support_of_a_living_model(tmp_path):
    model = saved(tmp_path, n_sparse=9)
    other = adapted(tiny_bert(), task_type=None, n_sparse=4, support="random")
    logits(other)
    set_peft_model_state_dict(other, adapter_tensors(tmp_path))
    assert torch.equal(logits(other), logits(model))


def test_fresh_training_from_a_stored_configuration_says_what_to_do(tmp_path):
    saved(tmp_path)
    config = dsee.DseeConfig.from_pretrained(tmp_path)
    model = get_peft_model(tiny_bert(), config)
    with pytest.raises(dsee.DseeError, match="set support_stored=False"):
        model(**batch())


def test_a_stored_configuration_with_the_field_reset_trains_afresh(tmp_path):
    saved(tmp_path, init_weights=True)
    config = dsee.DseeConfig.from_pretrained(tmp_path)
    config.support_stored = False
    assert torch.equal(logits(get_peft_model(tiny_bert(), config).eval()), logits(tiny_bert()))


def test_merging_a_support_that_was_never_loaded_is_refused(tmp_path):
    saved(tmp_path)
    model = get_peft_model(tiny_bert(), dsee.DseeConfig.from_pretrained(tmp_path))
    with pytest.raises(dsee.DseeError, match="has not been loaded"):
        model.merge_and_unload()


@pytest.mark.parametrize("r", [0, 4])
@pytest.mark.parametrize(
    "other", [{"intermediate_size": 48}, {"intermediate_size": 24}], ids=["larger base", "smaller base"]
)
def test_an_update_for_other_shapes_is_refused_by_peft_s_loader(r, other, tmp_path):
    saved(tmp_path, r=r, target_modules=["intermediate.dense"])
    with pytest.raises(dsee.ArtifactError, match=f"40 x 32 matrix.*{other['intermediate_size']} x 32"):
        PeftModel.from_pretrained(tiny_bert(**other), tmp_path)


def test_an_update_for_other_shapes_is_refused_after_transformers_loader(tmp_path):
    # that loader asks no tuner; the positions would land on wrong weights if nothing looked at the shape
    saved(tmp_path, r=0, target_modules=["intermediate.dense"])
    model = tiny_bert(intermediate_size=48)
    model.load_adapter(str(tmp_path))
    with pytest.raises(dsee.ArtifactError, match="40 x 32 matrix but sits on one of 48 x 32"):
        logits(model)


def test_a_low_rank_update_for_other_shapes_is_refused_with_the_shapes(tmp_path):
    saved(tmp_path, n_sparse=0, target_modules=["intermediate.dense"])
    with pytest.raises((dsee.ArtifactError, RuntimeError), match=r"40"):
        PeftModel.from_pretrained(tiny_bert(intermediate_size=48), tmp_path)


DAMAGE = {
    "past the end": lambda positions: positions + 32 * 32,
    "negative": lambda positions: positions - 32 * 32,
    "twice the same": lambda positions: positions[:1].expand(positions.shape).clone(),
    "out of order": lambda positions: positions.flip(0),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_positions_are_refused_before_they_are_used(damage, tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, "indices", DAMAGE[damage])
    with pytest.raises(dsee.DseeError):
        logits(PeftModel.from_pretrained(tiny_bert(), tmp_path).eval())


def test_a_file_without_positions_is_refused_at_the_first_use(tmp_path):
    saved(tmp_path)
    tensors = {name: t for name, t in adapter_tensors(tmp_path).items() if "indices" not in name}
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="missing adapter keys"):
        model = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    with pytest.raises(dsee.DseeError, match="has not been loaded"):
        logits(model.eval())


@pytest.mark.parametrize(
    "positions", [[0, 0, 1], [0, 20], [3, 25]], ids=["twice", "just past the end", "far past the end"]
)
def test_a_sparse_part_refuses_positions_that_do_not_fit(positions):
    with pytest.raises(dsee.InputError, match="twice or lie outside the 4 x 5 matrix"):
        SparseDelta(torch.tensor(positions), 4, 5)


def test_a_sparse_part_sorts_its_positions_and_starts_at_zero():
    sparse = SparseDelta(torch.tensor([7, 0, 19]), 4, 5)
    assert sparse.indices.tolist() == [0, 7, 19]
    rows, columns = sparse.rows_and_columns()
    assert (rows.tolist(), columns.tolist()) == ([0, 1, 3], [0, 2, 4])
    assert torch.equal(sparse.dense(), torch.zeros(4, 5))


def test_positions_need_eight_bytes_from_two_to_the_thirty_first_weights_on():
    from dsee.update.sparse_delta import index_dtype

    assert index_dtype(2**16, 2**15) == torch.int64
    assert index_dtype(2**16, 2**15 - 1) == torch.int32
