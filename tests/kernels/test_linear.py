"""A linear on the kernels is the same layer to everything but the clock."""

import copy
import io

import pytest
import torch
from kernel_oracle import KINDS, assert_equals_oracle, expected, needs_kernels, sparse_weight
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.errors import InputError
from dsee.kernels import from_kernels, on_kernels, to_kernels
from dsee.kernels.linear import STATE


def layer(make, kind, rows=32, columns=48):
    generator = torch.Generator().manual_seed(2)
    weight = sparse_weight(rows, columns, 0.6, kind, generator)
    made = nn.Linear(columns, rows) if make is nn.Linear else Conv1D(rows, columns)
    with torch.no_grad():
        made.weight.copy_(weight if make is nn.Linear else weight.T)
        made.bias.copy_(torch.randn(rows, generator=generator))
    return made, weight


@pytest.fixture(params=[nn.Linear, Conv1D], ids=["Linear", "Conv1D"])
def make(request):
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_forward_equals_the_oracle(make, kind):
    made, weight = layer(make, kind)
    to_kernels(made, kind, "gelu")
    x = torch.randn(5, 7, 48)
    with torch.no_grad():
        assert_equals_oracle(made(x), expected(x, weight, made.bias, activation="gelu"))


@pytest.mark.parametrize("kind", KINDS)
def test_names_parameters_and_files_do_not_change(make, kind):
    made, _ = layer(make, kind)
    holder = nn.Sequential(made)
    before = {name: value.clone() for name, value in holder.state_dict().items()}
    to_kernels(made, kind)
    assert isinstance(made, make)
    after = holder.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(on_kernels(holder)) == ["0"]
    from_kernels(made)
    assert type(made) is make
    assert STATE not in made.__dict__
    assert on_kernels(holder) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dense_layer(make, kind):
    made, _ = layer(make, kind)
    twin = copy.deepcopy(made)
    to_kernels(made, kind)
    x = torch.randn(6, 48, requires_grad=True)
    made(x).square().sum().backward()
    found, x.grad = x.grad, None
    twin(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad)
    torch.testing.assert_close(made.weight.grad, twin.weight.grad)
    torch.testing.assert_close(made.bias.grad, twin.bias.grad)


@needs_kernels
def test_a_changed_weight_is_packed_again(make):
    made, weight = layer(make, "weights")
    to_kernels(made, "weights")
    x = torch.randn(3, 48)
    with torch.no_grad():
        first = made(x)
        made.weight.mul_(2.0)
        assert_equals_oracle(made(x), expected(x, 2 * weight, made.bias))
        made.weight = nn.Parameter(made.weight.detach() / 2)
        torch.testing.assert_close(made(x), first)
        made.load_state_dict({"weight": torch.zeros_like(made.weight), "bias": made.bias})
        assert torch.equal(made(x), made.bias.expand(3, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_densely(make, dtype):
    made, _ = layer(make, "blocks")
    twin = copy.deepcopy(made).to(dtype)
    to_kernels(made, "blocks")
    made.to(dtype)
    x = torch.randn(3, 48, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(made(x), twin(x))


def test_autocast_computes_densely(make):
    made, _ = layer(make, "blocks")
    to_kernels(made, "blocks")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert made(torch.randn(3, 48)).dtype == torch.bfloat16


def test_copies_and_pickles_work(make):
    made, _ = layer(make, "blocks")
    to_kernels(made, "blocks", "relu")
    x = torch.randn(3, 48)
    stream = io.BytesIO()
    torch.save(made, stream)
    stream.seek(0)
    with torch.no_grad():
        want = made(x)
        assert torch.equal(copy.deepcopy(made)(x), want)
        assert torch.equal(torch.load(stream, weights_only=False)(x), want)


def test_printing_says_what_runs(make):
    made, _ = layer(make, "blocks")
    to_kernels(made, "blocks", "gelu")
    assert "kernel=blocks" in repr(made)
    assert "activation=gelu" in repr(made)


def test_other_layers_are_refused():
    with pytest.raises(InputError, match="a LayerNorm cannot run on the kernels"):
        to_kernels(nn.LayerNorm(3), "blocks")


@pytest.mark.slow
@needs_kernels
# torch's own compiler, when it is first imported
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_takes_it_whole(make, kind):
    made, _ = layer(make, kind)
    to_kernels(made, kind, "gelu")
    compiled = torch.compile(nn.Sequential(made, nn.LayerNorm(32)), fullgraph=True)
    eager = nn.Sequential(made, compiled._orig_mod[1])
    for tokens in (3, 40):
        x = torch.randn(tokens, 48)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), eager(x))


@needs_kernels
def test_the_operator_passes_torchs_own_check():
    from dsee.kernels.torch_operator import _operator

    made, _ = layer(nn.Linear, "blocks")
    to_kernels(made, "blocks")
    packed = made.packed()
    x = torch.randn(3, 48)
    given = (x, packed.start, packed.column, packed.value, made.bias.detach(), "blocks", 32, packed.chunk, "gelu")
    torch.library.opcheck(_operator, given, test_utils=("test_schema", "test_faketensor"))
