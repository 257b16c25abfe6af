"""policy="split": the same logits, every zero kept, and what fell on zeros as a branch beside the weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsee
from conftest import adapted, batch, logits, tiny_bert
from cut_families import answer, build, task_type
from dsee.masks import get_mask, oriented
from dsee.pruning.targets import mask_targets
from dsee.update import SideConv1D, SideLinear
from dsee.update.layer import update_layers
from dsee.update.side import SideBranch
from update.models import close, scrambled, two_adapters

RULES = {
    "weights": dsee.Weights(0.6, score="weight"),
    "blocks": dsee.Blocks(0.5, score="weight"),
    "2:4": dsee.NofM(2, 4, score="weight"),
}
TARGETS = {"gpt2": ["c_attn", "c_fc"], "bert": ["query", "intermediate.dense"], "llama": ["q_proj", "down_proj"]}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# merging says what it dropped of the update at the zeros; other tests look at that
pytestmark = pytest.mark.filterwarnings("ignore:merge. every zero kept; on")


def pruned(name="bert", rule="weights", dtype=torch.float32, **config):
    model = adapted(build(name).to(dtype), task_type=task_type(name), target_modules=TARGETS[name], **config)
    dsee.prune(scrambled(model), RULES[rule])
    return model


def sides(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, SideBranch)}


@settings(max_examples=16, deadline=None)
@given(
    st.sampled_from(sorted(TARGETS)),
    st.sampled_from(sorted(RULES)),
    st.sampled_from(DTYPES),
    st.sampled_from([{}, {"r": 0}, {"n_sparse": 0}]),
)
def test_it_is_exact_and_keeps_every_zero(name, rule, dtype, parts):
    model = pruned(name, rule, dtype, support="random", **parts)
    before, masks = answer(model, name), {t.name: t.mask for t in mask_targets(model)}
    adapted_paths = {name.removeprefix("base_model.model.") for name, _ in update_layers(model)}
    merged = dsee.merge(model, policy="split")
    found = sides(merged)
    # an S2 that happens to lie on kept weights needs no branch
    assert set(found) <= adapted_paths
    assert set(found) == adapted_paths or parts == {"r": 0}
    tolerance = close(dtype)["atol"] * (10 if dtype in (torch.bfloat16, torch.float16) else 1)
    torch.testing.assert_close(answer(merged, name), before, rtol=0, atol=tolerance)
    for target in mask_targets(merged):
        assert torch.equal(target.mask, masks[target.name])
        off = oriented(target.linear)[~target.mask]
        assert not off.any()
        assert not torch.signbit(off).any()


def test_the_parts_are_where_they_belong():
    model = pruned(n_sparse=200, support="random")
    layer = update_layers(model)[0][1]
    mask, s2 = get_mask(layer), 8.0 * layer.dsee_S["default"].dense()
    before = layer.base_weight().clone()
    side = next(iter(sides(dsee.merge(model, policy="split")).values()))
    torch.testing.assert_close(side.weight, torch.where(mask, before + s2, 0.0))
    flat = torch.zeros(mask.numel())
    flat[side.side_indices.long()] = side.side_values
    torch.testing.assert_close(flat.view(mask.shape), torch.where(mask, 0.0, s2))
    assert side.side_sizes == (4, int((~mask.reshape(-1)[layer.dsee_S["default"].indices.long()]).sum()))
    assert not any(p.requires_grad for p in side.parameters())


def test_the_result_has_no_trace_of_peft():
    merged = dsee.merge(pruned(), policy="split")
    assert {type(side) for side in sides(merged).values()} == {SideLinear}
    assert not hasattr(merged, "peft_config")
    assert not any("base_layer" in name for name in merged.state_dict())
    assert {type(s) for s in sides(dsee.merge(pruned("gpt2"), policy="split")).values()} == {SideConv1D}


def test_it_says_what_stays_beside():
    with pytest.warns(UserWarning, match="every zero kept; on 6 matrices a part of the update stays beside"):
        merged = dsee.merge(pruned(), policy="split")
    step = dsee.history(merged)[-1]
    assert step["policy"] == "split"
    assert step["zeros_after"] >= step["zeros_before"] - 1e-6


def test_a_base_without_zeros_takes_the_whole_update():
    model = scrambled(adapted(tiny_bert()))
    before = logits(model)
    merged = dsee.merge(model, policy="split")
    assert not sides(merged)
    torch.testing.assert_close(logits(merged), before, **close())


def test_only_the_active_adapter_is_in_it():
    model = two_adapters(tiny_bert())
    dsee.prune(model, RULES["weights"])
    model.set_adapter("second")
    before = logits(model)
    merged = dsee.merge(model, policy="split")
    torch.testing.assert_close(logits(merged), before, **close())
    assert {side.side_sizes[0] for side in sides(merged).values()} == {2}


def test_a_cut_model_splits_too():
    model = pruned()
    dsee.prune(model, dsee.Heads(1), dsee.Neurons(8, score="weight"))
    before = logits(model)
    torch.testing.assert_close(logits(dsee.merge(model, policy="split")), before, **close())


def test_a_second_split_of_a_matrix_is_refused_and_changes_nothing():
    model = scrambled(adapted(dsee.merge(pruned(), policy="split"), target_modules=TARGETS["bert"]))
    before = logits(model)
    with pytest.raises(dsee.OrderError, match="has a branch of an earlier split"):
        dsee.merge(model, policy="split")
    assert torch.equal(logits(model), before)
    with pytest.warns(UserWarning, match="zeros fell"):
        again = dsee.merge(model, policy="dense")
    torch.testing.assert_close(logits(again), before, **close())


def test_a_cut_through_a_branch_is_refused():
    merged = dsee.merge(pruned(), policy="split")
    with pytest.raises(dsee.ArchitectureError, match="branch of a split merge"):
        dsee.prune(merged, dsee.Heads(1, score="weight"))


def test_gates_on_a_branch_are_refused():
    model = adapted(tiny_bert(), target_modules=["output.dense"], support="random")
    dsee.prune(scrambled(model), RULES["weights"])
    with pytest.raises(dsee.ArchitectureError, match="which no gate is folded into"):
        dsee.add_gates(dsee.merge(model, policy="split"))


def test_its_operations_are_counted():
    merged = dsee.merge(pruned(), policy="split")
    branch = sum(sum(p.numel() for n, p in side.named_parameters() if "side" in n) for side in sides(merged).values())
    assert dsee.flops(merged, 2, 5).update == 2 * 10 * branch
    assert dsee.flops(dsee.merge(scrambled(adapted(tiny_bert()))), 2, 5).update == 0


def test_it_runs_on_other_shapes_in_a_compiled_graph():
    merged = dsee.merge(pruned(n_sparse=200, support="random"), policy="split")
    side = next(iter(sides(merged).values()))
    exported = torch.export.export(
        side, (torch.randn(2, 5, 32),), dynamic_shapes={"input": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}}
    ).module()
    for shape in [(2, 5, 32), (7, 3, 32)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(exported(x), side(x))


@pytest.mark.slow
def test_it_exports_to_onnx(tmp_path):
    from dsee.runtime import OnnxModel

    merged = dsee.merge(pruned(n_sparse=200, support="random"), policy="split")
    runner = OnnxModel(dsee.export_onnx(merged, tmp_path / "onnx"))
    found = runner.run({name: tensor.numpy() for name, tensor in batch(3, 7).items()})
    torch.testing.assert_close(torch.tensor(found), logits(merged, batch(3, 7)), rtol=0, atol=1e-4)
