"""An update on an embedding is the one on W: rows of s (U V + S2), to look up, to merge, to search and to hand on."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import dsee
from behaviours.families import WITH_WORDS
from conftest import VOCABULARY, adapted, batch, logits, tiny_bert
from dsee.update import DseeEmbedding
from dsee.update.embedding import add_sparse_rows
from dsee.update.sparse_delta import SparseDelta
from update.models import adapted_gpt2, dense_update, scrambled, tiny_gpt2

WORDS = "bert.embeddings.word_embeddings"
EPS = torch.finfo(torch.float32).eps


def on_words(r=2, n_sparse=9, **config):
    return adapted(tiny_bert(), target_modules=["word_embeddings"], r=r, n_sparse=n_sparse, **config)


def embedding(model):
    return next(module for module in model.modules() if isinstance(module, DseeEmbedding))


def width(model):
    return embedding(model).get_base_layer().embedding_dim


# up to a row's numbers each token is held against each entry, above S2 is written out
@pytest.mark.parametrize("n_sparse", [0, 1, 9, 32, 33, 400, VOCABULARY * 32])
@pytest.mark.parametrize("r", [0, 1, 3])
def test_it_is_the_lookup_of_the_dense_sum(r, n_sparse):
    if not r and not n_sparse:
        pytest.skip("nothing to train")
    model = scrambled(on_words(r=r, n_sparse=n_sparse, support="random"))
    layer = embedding(model)
    assert (r == 0) == ("default" not in layer.dsee_U)
    ids = batch()["input_ids"]
    expected = nn.functional.embedding(ids, layer.base_weight().double() + dense_update(layer))
    torch.testing.assert_close(layer(ids).double(), expected, rtol=0, atol=50 * EPS)


@pytest.mark.parametrize("n_sparse", [1, 5, 6, 40, 60])
def test_gradients_of_the_entries_are_exact(n_sparse):
    generator = torch.Generator().manual_seed(n_sparse)
    sparse = SparseDelta(torch.randperm(60, generator=generator)[:n_sparse], 10, 6).double()
    ids = torch.randint(0, 10, (3, 4), generator=generator)
    y = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator, requires_grad=True)

    def run(y, values):
        sparse.weight = values
        return add_sparse_rows(y, ids, sparse, 1.7)

    del sparse.weight
    values = torch.randn(n_sparse, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(run, (y, values))


def test_values_and_positions_are_all_that_is_stored(tmp_path):
    model = on_words(r=2, n_sparse=9)
    model.save_pretrained(tmp_path)
    layer = embedding(model)
    rows, columns = layer.base_weight().shape
    assert sum(p.numel() for n, p in layer.named_parameters() if "dsee_" in n) == 2 * (rows + columns) + 9
    head = sum(p.numel() for n, p in model.named_parameters() if "modules_to_save" in n)
    numbers = 2 * (rows + columns) + 9 + 9 + head
    assert (tmp_path / "adapter_model.safetensors").stat().st_size <= 4 * numbers + 4096


def test_the_padding_row_stays_as_it_is():
    model = on_words(n_sparse=0, init_weights=True)
    pad = embedding(model).get_base_layer().padding_idx
    assert pad is not None
    optimizer = torch.optim.SGD(embedding(model).dsee_U.parameters(), lr=1.0)
    embedding(model).dsee_V["default"].weight.data.normal_()
    inputs = batch(labels=True)
    inputs["input_ids"][1, 5:] = pad
    model(**inputs).loss.backward()
    optimizer.step()
    up = embedding(model).dsee_U["default"].weight
    assert not up[pad].any()
    assert up[inputs["input_ids"][0]].any(dim=1).all()


def test_a_support_by_gradients_looks_at_the_sum_over_tokens():
    model = on_words(n_sparse=11, support="gradient", init_weights=True)
    inputs = batch(labels=True)
    found = dsee.choose_support(model, calibration=[inputs])[WORDS]
    plain = copy.deepcopy(model.get_base_model())
    weight = plain.bert.embeddings.word_embeddings.get_base_layer().weight.requires_grad_()
    plain.eval()(**inputs).loss.backward()
    ranked = weight.grad.abs().flatten()
    assert torch.equal(found, ranked.topk(11).indices.sort().values)


@pytest.mark.parametrize("policy", ["dense", "masked"])
def test_it_is_merged_beside_pruned_layers(policy):
    model = scrambled(adapted(tiny_bert(), target_modules=["query", "word_embeddings"]))
    dsee.prune(model, dsee.Weights(0.5, score="weight"))
    before = embedding(model).base_weight() + embedding(model).get_delta_weight("default")
    with pytest.warns(UserWarning, match="zero"):
        merged = dsee.merge(model, policy)
    assert torch.equal(merged.bert.embeddings.word_embeddings.weight, before)


def test_it_is_kept_through_cuts_and_files(tmp_path):
    model = scrambled(adapted(tiny_bert(), target_modules=["query", "value", "word_embeddings"]))
    dsee.prune(model, dsee.Heads(0.5, score="weight"), dsee.Neurons(0.25, score="weight"))
    expected = logits(model)
    dsee.save(model, tmp_path / "small")
    loaded = dsee.load(tmp_path / "small").eval()
    assert torch.equal(logits(loaded), expected)
    torch.testing.assert_close(logits(dsee.merge(loaded)), expected, rtol=1e-4, atol=1e-5)


def test_a_lora_of_it_is_exact_and_comes_back(tmp_path):
    model = scrambled(adapted(tiny_bert(), target_modules=["query", "word_embeddings"]))
    expected = logits(model)
    dsee.export_lora(model, tmp_path / "lora")
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(tiny_bert(), tmp_path / "lora").eval()
    assert type(theirs.base_model).__name__ == "LoraModel"
    torch.testing.assert_close(logits(theirs), expected, rtol=1e-5, atol=1e-5)
    ours = dsee.import_lora(tiny_bert(), tmp_path / "lora", n_sparse=3).eval()
    torch.testing.assert_close(logits(ours), expected, rtol=1e-5, atol=1e-5)
    assert embedding(ours).n_sparse_of("default") == 3


def test_flops_count_what_is_multiplied_and_not_what_is_looked_up():
    plain, model = dsee.flops(tiny_bert(), 2, 5), on_words(r=2, n_sparse=9)
    found = dsee.flops(model, 2, 5)
    assert found.update == 2 * 10 * (2 * width(model) + 9)
    assert found.total - found.update == plain.total
    model.merge_adapter()
    assert dsee.flops(model, 2, 5).update == 0


def test_dropout_is_not_for_token_numbers():
    model = scrambled(on_words(dropout=0.5))
    ids = batch()["input_ids"]
    calm = embedding(model)(ids)
    assert torch.equal(embedding(model).train()(ids), calm)


@pytest.mark.parametrize(
    "tied",
    [
        lambda: adapted_gpt2(target_modules=["wte"]),
        lambda: adapted(
            T5ForConditionalGeneration(T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=20)),
            target_modules=["shared"],
            task_type="SEQ_2_SEQ_LM",
        ),
    ],
    ids=["gpt2", "t5"],
)
# PEFT's own word on them, before ours
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
def test_one_that_is_tied_is_refused_by_name(tied):
    with pytest.raises(dsee.InputError, match=r"its weight is also that of .*untie them"):
        tied()


def test_one_that_rescales_itself_is_refused():
    base = tiny_bert()
    base.bert.embeddings.word_embeddings.max_norm = 1.0
    with pytest.raises(dsee.InputError, match=r"max_norm=1.0"):
        adapted(base, target_modules=["word_embeddings"])


def test_all_linear_leaves_embeddings_alone():
    assert not any(
        isinstance(m, DseeEmbedding)
        for m in adapted(tiny_gpt2(), target_modules="all-linear", task_type=None).modules()
    )


@pytest.mark.parametrize("base", [True, False], ids=["with its base", "alone"])
@pytest.mark.parametrize("name", sorted(WITH_WORDS))
def test_files_hold_the_update_and_not_the_frozen_embedding(name, base, tmp_path):
    family = WITH_WORDS[name]
    model = family.adapted()
    expected = family.logits(model)
    dsee.save(model, tmp_path / "update", base=base)
    folder = tmp_path / "update" / "adapter"
    assert not [key for key in load_file(next(folder.rglob("adapter_model.safetensors"))) if "base_layer" in key]
    loaded = dsee.load(tmp_path / "update", **({} if base else {"base": family.base()}))
    assert torch.equal(family.logits(loaded.eval()), expected)
    dsee.export_lora(model, tmp_path / "lora")
    assert not [key for key in load_file(tmp_path / "lora" / "adapter_model.safetensors") if "base_layer" in key]
    again = dsee.import_lora(family.base(), tmp_path / "lora", n_sparse=2).eval()
    torch.testing.assert_close(family.logits(again), expected, rtol=1e-4, atol=1e-5)


def test_an_update_held_to_masks_has_none_on_its_embedding():
    model = scrambled(adapted(tiny_bert(), target_modules=["query", "word_embeddings"], masked=True))
    dsee.prune(model, dsee.Weights(0.5, score="weight"))
    inputs = batch(labels=True)
    model(**inputs).loss.backward()
    assert embedding(model).dsee_U["default"].weight.grad.any()
    expected = logits(model)
    torch.testing.assert_close(logits(dsee.merge(model)), expected, rtol=1e-4, atol=1e-5)
