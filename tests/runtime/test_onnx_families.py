"""Every mapped family as ONNX: the model's logits, its labels or words after quantising, and the same text."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from onnx_tools import run_python, tokenizer
from test_onnx_card import BLOCKED
from tokenizers.processors import TemplateProcessing

import dsee
from behaviours.families import ALL, LABELS, Family, _bert_like
from dsee.artifact.manifest import read_manifest
from dsee.runtime import OnnxModel
from dsee.runtime.generation import Rereading, greedy
from dsee.runtime.opened import open_model
from dsee.tasks.generation import DecodingSpec, write_texts

SHAPES = [(1, 1), (1, 9), (4, 12), (5, 33)]
PROMPTS = ["good film", "two hours i will never get back", "a"]
#: DeBERTa-v3 has its v2's model type, but normalises its table of positions and shares fewer projections.
V3 = _bert_like(
    hf.DebertaV2Config,
    relative_attention=True,
    pos_att_type=["p2c", "c2p"],
    share_att_key=True,
    position_buckets=8,
    norm_rel_ebd="layer_norm",
    position_biased_input=False,
    type_vocab_size=0,
)
#: Decoders that classify look for the last real token by its padding.
CLASSIFIERS = {
    "gpt2-classifier": ("gpt2", hf.GPT2ForSequenceClassification),
    "llama-classifier": ("llama", hf.LlamaForSequenceClassification),
    "t5-classifier": ("t5", hf.T5ForSequenceClassification),
}


def families() -> dict[str, Family]:
    found = dict(ALL) | {"deberta-v3": replace(ALL["deberta-v2"], config=V3)}
    for name, (family, model) in CLASSIFIERS.items():
        found[name] = replace(ALL[family], model=model, config=classifying(ALL[family].config), task="SEQ_CLS")
    return found


def classifying(config):
    def changed():
        made = config()
        made.num_labels, made.pad_token_id, made.eos_token_id = LABELS, 3, 2
        return made

    return changed


@dataclass
class Exported:
    family: Family
    model: Any
    torch: Any
    fp32: Any
    int8: Any


def export(name: str, root, quantize=(None, "int8")) -> Exported:
    """A cut model of a family, saved and exported."""
    family = families()[name]
    model = family.base()
    rules = [dsee.Neurons(0.4, score="random")]
    if not name.startswith("t5"):
        rules.append(dsee.Heads(0.5, score="random"))
    dsee.prune(model, *rules)
    if model.can_generate():
        model.generation_config.eos_token_id = 9
    words = tokenizer()
    if name == "t5-classifier":
        # which reads the last end token, as T5's own tokenizer writes it
        end = (words.convert_ids_to_tokens(model.config.eos_token_id), model.config.eos_token_id)
        words.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    saved = dsee.save(model, root / "model", tokenizer=words)
    folders = {q: dsee.export_onnx(model, root / f"onnx-{q}", tokenizer=words, quantize=q) for q in quantize}
    opened = {q: OnnxModel(folder) for q, folder in folders.items()}
    with_torch = open_model(saved)
    # in a folder of some families, Qwen2's for one, transformers makes their own tokenizer out of any other's file
    with_torch._tokenizer = words
    return Exported(family, model.eval(), with_torch, opened[None], opened.get("int8"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return export("gpt2", tmp_path_factory.mktemp("gpt2"), quantize=(None,))


def batch(found: Exported, size: int, length: int) -> dict[str, torch.Tensor]:
    inputs = found.family.batch(size=size, length=length)
    if found.model.config.is_encoder_decoder:
        inputs["input_ids"][:, -1] = found.model.config.eos_token_id
        inputs["attention_mask"][:] = 1
    return {name: tensor for name, tensor in inputs.items() if name in found.fp32.inputs}


def both(found: Exported, which: OnnxModel, size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of torch and of ONNX where tokens are real."""
    inputs = batch(found, size, length)
    with torch.no_grad():
        wanted = found.model(**inputs).logits.numpy()
    given = which.run({name: tensor.numpy() for name, tensor in inputs.items()})
    assert given.shape == wanted.shape
    if wanted.ndim == 3 and "decoder_input_ids" not in inputs:
        real = inputs["attention_mask"].bool().numpy()
        return wanted[real], given[real]
    return wanted, given


def check_fp32(found: Exported) -> None:
    for shape in SHAPES:
        wanted, given = both(found, found.fp32, *shape)
        assert abs(given - wanted).max() <= 2e-5 * abs(wanted).max(), shape


def check_text(found: Exported) -> None:
    """The same words from torch with its cache, from ONNX in one batch, and from ONNX one by one."""
    assert found.fp32.generates
    assert found.fp32.end_tokens == found.torch.end_tokens == {9}
    assert found.fp32.count_tokens(PROMPTS) == found.torch.count_tokens(PROMPTS)
    wanted = found.torch.generate(PROMPTS, 8)
    assert found.fp32.generate(PROMPTS, 8) == wanted
    assert [found.fp32.generate([prompt], 8)[0] for prompt in PROMPTS] == wanted
    assert [found.fp32.decode(tokens) for tokens in wanted] == [found.torch.decode(tokens) for tokens in wanted]
    assert found.fp32.cached == (not found.model.config.is_encoder_decoder)
    if found.fp32.cached:
        check_beams(found)


def check_beams(found: Exported) -> None:
    """Beams, prompts of other lengths in one batch, the texts of torch; the cache and reading all again agree."""
    words = found.torch.tokenizer
    words.eos_token = words.convert_ids_to_tokens(9)
    ids = words(PROMPTS, add_special_tokens=False)["input_ids"]
    for beams, no_repeat in ((1, 2), (4, 0), (3, 2)):
        decoding = DecodingSpec(beams=beams, no_repeat_ngram=no_repeat, max_new_tokens=8, batch_size=2)
        assert found.fp32.write_after(ids, decoding) == write_texts(found.model, words, ids, decoding)
    again = Rereading(found.fp32.run, start=None, vocabulary=found.fp32.vocab_size)
    assert greedy(again, ids, 8, {9}) == found.fp32.generate(PROMPTS, 8)


def test_a_decoder_has_the_logits_of_its_model(gpt2):
    check_fp32(gpt2)


def test_a_decoder_writes_what_its_model_writes(gpt2):
    check_text(gpt2)


def test_a_decoders_folder_says_that_it_writes(gpt2):
    assert (gpt2.fp32.generates, gpt2.fp32.max_length) == (True, 20)
    assert read_manifest(gpt2.fp32.folder).structure == {"heads": [2, 2], "neurons": [29, 29]}


def test_a_decoders_card_runs_and_prints_the_next_tokens(gpt2):
    check_card(gpt2, ["a quietly moving film", "two hours I will never get back"])


def check_card(found: Exported, texts: list[str]) -> None:
    """The card's code prints the tokens that the model writes, the first ones without a cache; no torch, no dsee."""
    folder = found.fp32.folder
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert '["labels"]' not in code
    if found.fp32.cached:
        tokens, _, _ = run_python(BLOCKED + code, cwd=folder).partition("\n")
        # up to 20 tokens, which fit behind the prompt
        assert json.loads(tokens) == found.torch.generate(texts[:1], 20)[0]
        return
    printed = run_python(BLOCKED + code, cwd=folder).split()
    assert [int(token) for token in printed] == [tokens[0] for tokens in found.torch.generate(texts, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(families()))
def test_every_family_as_fp32_and_int8(name, tmp_path):
    found = export(name, tmp_path)
    check_fp32(found)
    if found.model.can_generate():
        check_text(found)
        check_card(found, ["a quietly moving film", "two hours I will never get back"])
    else:
        assert not found.fp32.generates
        texts = [*PROMPTS, "good " * 30]
        expected = found.torch.logits(texts)
        assert abs(found.fp32.logits(texts) - expected).max() <= 2e-5 * abs(expected).max()
    same, close = agreement(found)
    # random weights know nothing, so their choices are close calls that a trained model's are not
    assert same >= 0.7
    # T5 does not scale its scores, so random weights make its softmax a choice that rounding may flip
    assert close <= (0.7 if name == "t5-classifier" else 0.5)
    assert read_manifest(found.int8.folder).facts["precision"] == "int8"


def agreement(found: Exported) -> tuple[float, float]:
    """Share of labels or next tokens that int8 leaves as they are, and its largest error over the largest logit."""
    wanted, given = both(found, found.int8, 64, 16)
    wanted, given = (each.reshape(-1, each.shape[-1]) for each in (wanted, given))
    same = float((wanted.argmax(axis=1) == given.argmax(axis=1)).mean())
    return same, float(abs(given - wanted).max() / abs(wanted).max())
