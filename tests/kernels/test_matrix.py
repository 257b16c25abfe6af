"""Packed matrices: what goes in comes out, and nothing broken gets as far as a kernel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import KINDS, needs_kernels, sparse_weight

from dsee.errors import InputError
from dsee.kernels import SparseMatrix, pack, pack_side, sparse_linear
from dsee.kernels.matrix import chunk_width


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 40),
    columns=st.integers(1, 700),
    zeros=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 999),
)
def test_packing_loses_nothing(kind, rows, columns, zeros, seed):
    weight = sparse_weight(rows, columns, zeros, kind, torch.Generator().manual_seed(seed))
    matrix = pack(weight, kind)
    assert torch.equal(matrix.dense(), weight)
    stored = int((weight != 0).sum()) if kind == "weights" else matrix.entries * 4
    assert matrix.value.numel() == stored
    assert matrix.bytes == 4 * stored + matrix.entries + 4 * matrix.start.numel()


def test_blocks_keep_the_zeros_inside_them():
    weight = torch.zeros(8, 3)
    weight[1, 2] = 5.0
    assert pack(weight, "blocks").entries == 1
    assert pack(weight, "blocks").value.tolist() == [[0.0, 5.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_kept_as_float32(dtype):
    weight = torch.randn(8, 16).to(dtype)
    assert torch.equal(pack(weight).dense(), weight.float())


def test_chunks_fit_the_first_level_cache_and_one_byte():
    for columns in (1, 8, 384, 768, 3072, 100_000):
        for panel in (12, 24, 32, 48, 64):
            width = chunk_width(columns, panel)
            assert 1 <= width <= 256
            assert width * panel * 4 <= 24 * 1024
    assert chunk_width(384, 24) == 192  # two equal ones rather than 256 and 128


@pytest.mark.parametrize(
    ("weight", "kind", "said"),
    [
        (torch.ones(3), "blocks", r"shape \(out, in\)"),
        (torch.ones(0, 3), "blocks", r"shape \(out, in\)"),
        (torch.ones(4, 4), "block", "Did you mean 'blocks'"),
    ],
)
def test_what_cannot_be_packed_is_refused(weight, kind, said):
    with pytest.raises(InputError, match=said):
        pack(weight, kind)


def test_a_side_branch_of_another_shape_is_refused():
    with pytest.raises(InputError, match="do not fit"):
        pack_side(torch.ones(4, 2), torch.ones(3, 8), pack(torch.ones(4, 8)))


def changed(matrix, **fields):
    own = {name: getattr(matrix, name) for name in ("kind", "shape", "chunk", "start", "column", "value")}
    return SparseMatrix(**(own | fields))


BREAKS = {
    "starts fall": (lambda m: {"start": m.start.flip(0).contiguous()}, "starts do not rise"),
    "starts end too late": (lambda m: {"start": m.start + (torch.arange(m.start.numel()) == m.start.numel() - 1).int()},
                            "starts do not rise"),
    "a column outside": (lambda m: {"column": torch.full_like(m.column, 255)}, "column lies outside"),
    "too few values": (lambda m: {"value": m.value[:-1].contiguous()}, "not as long as"),
    "too few columns": (lambda m: {"column": m.column[:-1].contiguous()}, "not as long as"),
    "too few starts": (lambda m: {"start": m.start[1:].contiguous()}, "not as long as"),
    "chunks too wide": (lambda m: {"chunk": 257}, "not 1 to 256"),
    "chunks of nothing": (lambda m: {"chunk": 0}, "not 1 to 256"),
    "another shape": (lambda m: {"shape": (m.shape[0] + 8, m.shape[1])}, "not as long as"),
    "no shape": (lambda m: {"shape": (0, m.shape[1])}, "rows or columns"),
    "another kind": (lambda m: {"kind": "weights" if m.kind == "blocks" else "blocks"}, "not as long as"),
    "no kind": (lambda m: {"kind": "csr"}, "unknown"),
    "wrong dtype": (lambda m: {"value": m.value.double()}, "torch.float32"),
    "strided": (lambda m: {"column": m.column.repeat_interleave(2)[::2]}, "contiguous"),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_matrix_is_refused_with_its_fault(kind, name):
    change, said = BREAKS[name]
    matrix = pack(sparse_weight(16, 200, 0.5, kind, torch.Generator().manual_seed(1)), kind, chunk=100)
    with pytest.raises(InputError, match=said):
        changed(matrix, **change(matrix))


@needs_kernels
@settings(max_examples=300, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**31))
def test_random_damage_is_refused_or_harmless(data, kind, seed):
    """A fuzz run: whatever passes the check may be multiplied with, and stays within its arrays."""
    noise = np.random.default_rng(seed)
    matrix = pack(sparse_weight(12, 60, 0.5, kind, torch.Generator().manual_seed(seed)), kind, chunk=25)
    fields = {name: getattr(matrix, name).clone() for name in ("start", "column", "value")}
    target = data.draw(st.sampled_from(["start", "column", "shape", "chunk"]))
    if target in fields:
        raw = fields[target].numpy().view(np.uint8)
        for _ in range(data.draw(st.integers(1, 4))):
            raw[noise.integers(raw.size)] = noise.integers(256)
    elif target == "shape":
        fields["shape"] = (int(noise.integers(-3, 40)), int(noise.integers(-3, 90)))
    else:
        fields["chunk"] = int(noise.integers(-5, 400))
    try:
        made = changed(matrix, **fields)
    except InputError:
        return
    x = torch.randn(int(noise.integers(1, 90)), made.shape[1])
    torch.testing.assert_close(sparse_linear(x, made), x @ made.dense().T, rtol=1e-4, atol=1e-4)
