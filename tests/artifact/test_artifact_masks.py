"""Masks on disk: the same bits come back, kept zeros included, and nothing else is needed to run the model."""

import json
import subprocess
import sys

import pytest
import torch
from artifact_tools import bytes_of, rehash
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import dsee
from conftest import adapted, logits, tiny_bert
from cut_families import answer, build
from dsee.artifact.masks import MASKS
from dsee.masks import oriented
from dsee.pruning import get_mask, masked_linears, set_mask
from dsee.pruning.targets import mask_targets
from update.models import scrambled

RULES = {
    "weights": dsee.Weights(0.5, score="weight"),
    "blocks": dsee.Blocks(0.6, score="random"),
    "2:4": dsee.NofM(2, 4, score="weight"),
}
QUERY = "bert.encoder.layer.0.attention.self.query"
# merging says what it dropped of the update at the zeros; other tests look at that
pytestmark = pytest.mark.filterwarnings("ignore:merge. ")


def masks_of(model):
    return {target.name: target.mask for target in mask_targets(model) if target.mask is not None}


def assert_same_masks(one, other):
    first, second = masks_of(one), masks_of(other)
    assert list(first) == list(second)
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)


def pruned(rule="weights", merged=True, cut=False):
    model = scrambled(adapted(tiny_bert()))
    dsee.prune(model, *([dsee.Heads(1), dsee.Neurons(4)] if cut else []), RULES[rule])
    return dsee.merge(model) if merged else model


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cut", [False, True])
def test_masks_weights_history_and_logits_come_back(tmp_path, rule, merged, cut):
    model = pruned(rule, merged, cut)
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert_same_masks(loaded, model)
    assert torch.equal(logits(loaded), logits(model))
    assert dsee.history(loaded) == dsee.history(model)
    assert bytes_of(dsee.save(loaded, tmp_path / "again")) == bytes_of(tmp_path / "out")


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_masks_of_other_families_come_back(tmp_path, name):
    model = build(name)
    dsee.prune(model, dsee.Blocks(0.5, score="weight"))
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert_same_masks(loaded, model)
    assert torch.equal(answer(loaded, name), answer(model, name))


def test_a_kept_weight_that_is_zero_is_still_kept(tmp_path):
    model = tiny_bert()
    query = model.get_submodule(QUERY)
    query.weight.data[0, :4] = 0.0
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[0, :2] = False
    set_mask(query, mask)
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert torch.equal(get_mask(loaded.get_submodule(QUERY)), mask)


def test_the_masks_are_one_bit_a_weight_and_covered_by_the_manifest(tmp_path):
    out = dsee.save(pruned(), tmp_path / "out")
    bits = load_file(out / MASKS)
    assert {b.dtype for b in bits.values()} == {torch.uint8}
    assert sum(b.numel() for b in bits.values()) == 19968 // 8
    assert MASKS in json.loads((out / "dsee.json").read_text())["files"]
    assert "masks" not in " ".join(load_file(out / "model.safetensors"))


def test_a_model_without_masks_has_no_such_file(tmp_path):
    assert not (dsee.save(tiny_bert(), tmp_path / "out") / MASKS).exists()


def test_masks_are_no_part_of_an_adapters_file(tmp_path):
    out = dsee.save(pruned(merged=False), tmp_path / "out")
    assert not any("mask" in name for name in load_file(out / "adapter" / "adapter_model.safetensors"))


def test_tuning_goes_on_under_the_same_mask_after_loading(tmp_path):
    from update.models import train_step

    model = dsee.load(dsee.save(pruned(merged=False), tmp_path / "out"), trainable=True)
    train_step(model)
    again = dsee.load(dsee.save(model, tmp_path / "again"))
    assert_same_masks(again, model)


def test_pruning_further_after_loading_grows_the_mask(tmp_path):
    model = dsee.load(dsee.save(pruned(merged=False), tmp_path / "out"))
    before = masks_of(model)
    dsee.prune(model, dsee.Weights(0.75, score="weight"))
    after = masks_of(model)
    assert sum(int(m.sum()) for m in after.values()) == 19968 // 4
    assert not any(bool((after[name] & ~before[name]).any()) for name in after)


def test_an_earlier_pattern_is_known_after_loading(tmp_path):
    model = dsee.load(dsee.save(pruned("blocks"), tmp_path / "out"))
    with pytest.raises(dsee.OrderError, match=r"prune \(Blocks 4x1 0\.6\)"):
        dsee.prune(model, dsee.Neurons(3, score="weight"))


def test_the_stock_class_reads_the_model(tmp_path):
    model = pruned()
    stock = AutoModelForSequenceClassification.from_pretrained(dsee.save(model, tmp_path / "out")).eval()
    assert type(stock) is type(tiny_bert())
    assert torch.equal(logits(stock), logits(model))


@pytest.mark.slow
def test_stock_transformers_reads_the_model_without_dsee(tmp_path):
    model = pruned()
    out = dsee.save(model, tmp_path / "out")
    code = (
        "import sys, torch; from transformers import AutoModelForSequenceClassification as A; "
        f"m = A.from_pretrained({str(out)!r}).eval(); "
        "x = torch.arange(5, 15)[None]; "
        "print('dsee' in sys.modules, m(input_ids=x).logits.detach().tolist()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    word, _, rest = done.stdout.partition(" ")
    assert word == "False"
    expected = logits(model, {"input_ids": torch.arange(5, 15)[None]})[0]
    torch.testing.assert_close(torch.tensor(json.loads(rest)), expected, rtol=0, atol=1e-6)


def tampered(tmp_path, change):
    out = dsee.save(pruned(), tmp_path / "out")
    bits = load_file(out / MASKS)
    change(bits)
    save_file(bits, out / MASKS)
    return rehash(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bits: bits.update({QUERY: bits[QUERY][:5]}), rf"the mask of {QUERY} does not fit.*has 128 bytes"),
        (lambda bits: bits.update({QUERY: bits[QUERY].int()}), "its bits are stored as torch.int32"),
        (lambda bits: bits.update({"bert.nowhere": bits[QUERY].clone()}), "the mask of bert.nowhere does not fit"),
        (lambda bits: bits.update({"bert.embeddings.LayerNorm": bits[QUERY].clone()}), "LayerNorm does not fit"),
        (lambda bits: bits.update({QUERY: torch.zeros_like(bits[QUERY])}), "weights where its mask says zero"),
    ],
)
def test_masks_that_do_not_belong_to_the_weights_are_refused(tmp_path, change, message):
    out = tampered(tmp_path, change)
    with pytest.raises(dsee.ArtifactError, match=message):
        dsee.load(out)


def test_a_model_whose_weights_left_their_masks_is_not_saved(tmp_path):
    model = pruned(merged=False).merge_and_unload()
    with pytest.raises(dsee.InputError, match=r"has weights where its mask says zero.*dsee\.merge"):
        dsee.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for linear in list(masked_linears(model).values()):
        if bool((oriented(linear)[~get_mask(linear)] != 0).any()):
            set_mask(linear, None)
    dsee.save(model, tmp_path / "out")


def test_inspect_tells_the_zeros_and_counts_no_bits_as_parameters(tmp_path, capsys):
    from dsee.cli.inspect import inspect

    model = pruned()
    inspect(dsee.save(model, tmp_path / "out"))
    text = capsys.readouterr().out
    assert "zeros       50.0% of 19,968 weights in 18 matrices" in text
    assert f"parameters  {sum(p.numel() for p in model.parameters()):,}" in text
    assert "prune: zeros 0.0% -> 50.0% (weights 0.5 by weight, global)" in text
