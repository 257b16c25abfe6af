"""A sparse matrix as bits and values: every bit comes back, in fewer bytes, or it is left as it is."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee.artifact.encoding import OVERHEAD, Encoding, decode, encode, kept_of, parse
from dsee.errors import ArtifactError
from dsee.masks import pack
from dsee.pruning.blocks import block_grid, spread

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
BLOCKS = ((4, 1), (2, 8))


def same_bits(one, other):
    assert one.dtype == other.dtype
    kind = INTEGERS[one.element_size()]
    return torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


def pattern(kind, rows, columns, share, seed=0):
    draw = torch.Generator().manual_seed(seed)
    if kind == "2:4":
        order = torch.rand(rows, columns // 4, 4, generator=draw).argsort(-1)
        return (order < 2).view(rows, columns)
    if kind == "weights":
        return torch.rand(rows, columns, generator=draw) >= share
    grid = torch.rand(block_grid((rows, columns), kind), generator=draw) >= share
    return spread(grid, (rows, columns), kind)


def weights(rows, columns, dtype, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["weights", "2:4", *BLOCKS]),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
)
def test_every_bit_comes_back(kind, rows, columns, share, dtype, masked, transposed):
    columns = columns * 4 if kind == "2:4" else columns
    mask = pattern(kind, rows, columns, share)
    weight = weights(rows, columns, dtype).masked_fill(~mask, 0.0)
    weight[0, 0] = -0.0 if mask[0, 0] else 0.0
    found = encode(weight, mask if masked else None, transposed=transposed, blocks=BLOCKS)
    dense = weight.numel() * weight.element_size()
    if found is None:
        assert mask.sum() * weight.element_size() + mask.numel() / 8 + OVERHEAD >= dense * 0.9 or dense < 2 * OVERHEAD
        return
    encoding, bits, values = found
    assert values.numel() * values.element_size() + bits.numel() + OVERHEAD < dense
    tensor, kept = decode(parse(encoding.facts()), bits, values)
    assert same_bits(tensor.T if transposed else tensor, weight)
    assert tensor.is_contiguous()
    assert torch.equal(kept, mask) or not masked
    assert torch.equal(kept_of(encoding, bits), kept)


@pytest.mark.parametrize(
    ("kind", "most", "expected"),
    [("weights", 0.5315, "bitmask"), ((4, 1), 0.508, "blocks"), ((2, 8), 0.503, "blocks"), ("2:4", 0.5315, "2:4")],
    ids=str,
)
def test_half_the_zeros_take_about_half_the_bytes(kind, most, expected):
    mask = pattern(kind, 256, 512, 0.5)
    encoding, bits, values = encode(weights(256, 512, torch.float32) * mask, mask, blocks=BLOCKS)
    share = (bits.numel() + values.numel() * 4) / (256 * 512 * 4)
    assert (encoding.kind, encoding.block) == (expected, kind if expected == "blocks" else None)
    assert share <= most + abs(float(mask.float().mean()) - 0.5)


def test_a_kept_zero_of_a_mask_is_kept_and_a_group_of_fewer_is_no_pair():
    mask = pattern("2:4", 32, 64, 0.5)
    weight = weights(32, 64, torch.float32) * mask
    weight[3] = 0.0
    encoding, bits, _ = encode(weight, mask)
    assert encoding.kind == "2:4"
    assert torch.equal(kept_of(encoding, bits), mask)
    fewer = mask.clone()
    fewer[0, :4] = False
    assert encode(weight * fewer, fewer)[0].kind == "bitmask"


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_what_would_not_get_smaller_is_left(share):
    mask = pattern("weights", 64, 64, share)
    assert encode(weights(64, 64, torch.float32) * mask, mask) is None
    assert encode(torch.zeros(4, 4), None) is None


GOOD = Encoding("blocks", (8, 8), False, True, (4, 1)).facts()
BITS = Encoding("bitmask", (8, 8)).facts()


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [],
        {},
        "bitmask",
        GOOD | {"kind": "csr"},
        GOOD | {"kind": "bitmask"},
        GOOD | {"block": [0, 1]},
        GOOD | {"block": [4]},
        GOOD | {"more": 1},
        BITS | {"kind": "blocks"},
        BITS | {"shape": [8]},
        BITS | {"shape": [8, -8]},
        BITS | {"shape": [8, 2**31]},
        BITS | {"shape": [8.0, 8]},
        BITS | {"shape": [True, 8]},
        BITS | {"shape": "88"},
        BITS | {"mask": 1},
        BITS | {"transposed": None},
        BITS | {"kind": "2:4", "shape": [8, 6]},
        BITS | {"kind": ["2:4"]},
    ],
    ids=str,
)
def test_a_description_of_no_matrix_is_refused(facts):
    with pytest.raises(ArtifactError, match="does not say how a matrix is stored"):
        parse(facts)


def test_bits_and_values_that_do_not_belong_together_are_refused():
    mask = pattern("weights", 32, 32, 0.5)
    encoding, bits, values = encode(weights(32, 32, torch.float32) * mask, mask)
    for wrong in (bits[:-1], bits.int(), bits.view(2, -1)):
        with pytest.raises(ArtifactError, match="its bits are"):
            decode(encoding, wrong, values)
    for wrong in (values[:-1], values.view(1, -1), values.int(), torch.cat([values, values[:1]])):
        with pytest.raises(ArtifactError, match="its bits ask for"):
            decode(encoding, bits, wrong)
    flipped = bits.clone()
    flipped[3] ^= 4
    with pytest.raises(ArtifactError, match="its bits ask for"):
        decode(encoding, flipped, values)
    pairs = replace(encoding, kind="2:4")
    with pytest.raises(ArtifactError, match="same place"):
        kept_of(pairs, pack(torch.ones(1024, dtype=torch.bool)))
