"""The count equals PyTorch's for every other family: dense, cut, updated, and with other task heads."""

import pytest
import torch
import transformers
from flop_oracle import counted

import dsee
from conftest import VOCABULARY, adapted
from cut_families import CONFIGS, HEADED, LINEARS, NAMES, T5S, build, inputs, task_type


def cut(model, name):
    heads = [dsee.Heads(5, score="random", scope="global")] if name in HEADED else []
    dsee.prune(model, *heads, dsee.Neurons(50, score="random", scope="global"))
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "length"), [(4, 10), (2, 40)])
def test_dense_and_cut(name, size, length):
    model = build(name)
    dense = dsee.flops(model, size, length).total
    assert dense == counted(model, inputs=inputs(name, size, length))
    cut(model, name)
    assert dsee.flops(model, size, length).total == counted(model, inputs=inputs(name, size, length)) < dense


@pytest.mark.parametrize("name", NAMES)
def test_unmerged_and_merged(name):
    model = adapted(cut(build(name), name), n_sparse=0, target_modules=LINEARS, task_type=task_type(name))
    unmerged = dsee.flops(model, 4, 10)
    assert unmerged.total == counted(model, inputs=inputs(name))
    assert unmerged.update > 0
    assert dsee.flops(dsee.merge(model), 4, 10).total == unmerged.total - unmerged.update


SENTENCES = [
    ("deberta-v3", "AutoModel"),
    ("deberta-v2", "AutoModelForMaskedLM"),
    ("deberta-v2", "AutoModelForMultipleChoice"),
    ("deberta-v3", "AutoModelForQuestionAnswering"),
    ("gpt2", "AutoModel"),
    ("gpt2", "AutoModelForSequenceClassification"),
    ("gpt2", "AutoModelForTokenClassification"),
    ("llama", "AutoModelForSequenceClassification"),
    ("qwen3", "AutoModelForQuestionAnswering"),
    ("mistral", "AutoModel"),
    ("t5", "AutoModelForSequenceClassification"),
    ("t5 gated", "AutoModelForQuestionAnswering"),
    ("t5", "AutoModelForTextEncoding"),
]


@pytest.mark.parametrize(("name", "auto"), SENTENCES)
def test_task_heads(name, auto):
    config = CONFIGS[name]()
    config.num_labels = 2
    model = getattr(transformers, auto).from_config(config).eval()
    ids = torch.randint(5, VOCABULARY, (4, 10), generator=torch.Generator().manual_seed(0))
    if name in T5S:
        # T5's classifier reads the token that ends a sentence
        ids[:, -1] = 1
    if auto == "AutoModelForMultipleChoice":
        ids = ids.view(2, 2, 10)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert dsee.flops(model, 4, 10).total == counted(model, inputs=given)


def test_gpt2_with_two_heads():
    model = transformers.GPT2DoubleHeadsModel(CONFIGS["gpt2"]()).eval()
    ids = torch.randint(5, VOCABULARY, (2, 2, 10), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "mc_token_ids": torch.full((2, 2), 9)}
    assert dsee.flops(model, 4, 10).total == counted(model, inputs=given)


def test_shared_keys_and_values_by_hand():
    found = dsee.flops(build("llama"), 2, 10)
    query_and_output, key_and_value = 2 * 64 * 32, 2 * 32 * 32
    assert found.projections == 3 * 2 * 20 * (query_and_output + key_and_value)
    assert found.attention == 3 * 2 * 2 * 2 * 8 * 10**2 * 8
    assert found.feed_forward == 3 * 2 * 20 * 3 * 32 * 40
    # the head is tied to the embeddings, and computed all the same
    assert found.rest == 2 * 20 * 32 * VOCABULARY


@pytest.mark.parametrize("name", NAMES)
def test_every_family_can_be_timed(name):
    for model in (build(name), build(name, task="SEQ_CLS")):
        assert dsee.latency(model, batch=2, sequence=8, runs=1, warmup=0).p50_ms > 0
