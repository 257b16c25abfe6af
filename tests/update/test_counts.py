"""r (in + out) + N trained values for each matrix, plus the head, and memory follows that count."""

import pytest
import torch

from conftest import adapted, batch, tiny_bert
from dsee.update.layer import update_layers
from update.models import adapted_gpt2, head_size, matrices, train_step


def trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("r", "n_sparse"), [(4, 9), (0, 9), (4, 0), (1, 1), (8, 1024)])
def test_trained_values_are_those_of_the_formula_plus_the_head(family, r, n_sparse):
    model = adapted(family(), r=r, n_sparse=n_sparse, support="magnitude")
    sizes = matrices(model)
    assert sizes == [(32, 32)] * 6
    assert trained(model) == sum(r * (out + in_) + n_sparse for out, in_ in sizes) + head_size(family())
    assert model.get_nb_trainable_parameters()[0] == trained(model)


def test_the_formula_holds_where_in_and_out_differ():
    model = adapted(tiny_bert(), target_modules=["intermediate.dense"])
    assert matrices(model) == [(40, 32)] * 3
    assert trained(model) == 3 * (4 * 72 + 9) + head_size(tiny_bert())


def test_the_formula_holds_for_conv1d():
    model = adapted_gpt2()
    assert matrices(model) == [(96, 32)] * 2
    assert trained(model) == 2 * (4 * 128 + 9)


def test_the_optimizer_keeps_two_moments_of_n_values_for_each_sparse_part():
    model = adapted(tiny_bert(), n_sparse=9)
    state = train_step(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])).state
    for _, layer in update_layers(model):
        kept = state[layer.dsee_S["default"].weight]
        assert {name: value.numel() for name, value in kept.items()} == {"step": 1, "exp_avg": 9, "exp_avg_sq": 9}
    moments = sum(value.numel() for kept in state.values() for name, value in kept.items() if name != "step")
    assert moments == 2 * trained(model)


def test_gradients_exist_for_the_update_and_the_head_only():
    model = adapted(tiny_bert())
    model(**batch(labels=True)).loss.backward()
    held = sum(p.grad.numel() for p in model.parameters() if p.grad is not None)
    assert held == trained(model)


def test_the_state_dict_holds_n_values_n_int32_positions_and_the_shape():
    model = adapted(tiny_bert(), n_sparse=9)
    sparse = {name: tensor for name, tensor in model.state_dict().items() if "dsee_S" in name}
    assert len(sparse) == 3 * 6
    kinds = {name.rpartition(".")[2]: (tuple(tensor.shape), tensor.dtype) for name, tensor in sparse.items()}
    assert kinds == {
        "weight": ((9,), torch.float32),
        "indices": ((9,), torch.int32),
        "shape": ((2,), torch.int32),
    }
