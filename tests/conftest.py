"""Tiny models built in process: no network, no files outside the test's own folder."""

from __future__ import annotations

import os
import shutil
import types

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from peft import get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import dsee

VOCABULARY, POSITIONS, LABELS = 100, 80, 3
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}


def tiny_bert(seed: int = 0, **changes):
    torch.manual_seed(seed)
    config = BertConfig(
        **(SIZES | {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "num_labels": LABELS} | changes)
    )
    return _lively(BertForSequenceClassification(config))


def tiny_roberta(seed: int = 0):
    torch.manual_seed(seed)
    config = RobertaConfig(
        **SIZES, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS + 2, num_labels=LABELS, pad_token_id=1
    )
    return _lively(RobertaForSequenceClassification(config))


def tiny_electra(seed: int = 0):
    torch.manual_seed(seed)
    config = ElectraConfig(
        **SIZES, embedding_size=16, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, num_labels=LABELS
    )
    return _lively(ElectraForSequenceClassification(config))


def tiny_distilbert(seed: int = 0):
    torch.manual_seed(seed)
    config = DistilBertConfig(
        dim=32,
        n_layers=3,
        n_heads=4,
        hidden_dim=40,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        num_labels=LABELS,
    )
    return _lively(DistilBertForSequenceClassification(config))


FAMILIES = {"bert": tiny_bert, "roberta": tiny_roberta, "electra": tiny_electra, "distilbert": tiny_distilbert}


def _lively(model):
    """Weights at 0.02 make logits that differ by less than rounding; at 0.2 with biases every part matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name and "layer_norm" not in name and "embeddings" not in name:
                parameter.normal_(std=0.2)
    return model.eval()


def batch(size: int = 4, length: int = 10, labels: bool = False, seed: int = 0):
    """Random tokens, the second sentence padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (size, length), generator=generator)
    mask = torch.ones_like(ids)
    if size > 1:
        mask[1, length // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if labels:
        inputs["labels"] = torch.randint(0, LABELS, (size,), generator=generator)
    return inputs


def logits(model, inputs=None):
    with torch.no_grad():
        return model(**(inputs or batch())).logits


def adapted(base, **config):
    """The base with a random, non-zero update on query and value (or what ``config`` says)."""
    settings = {"task_type": "SEQ_CLS", "r": 4, "n_sparse": 9, "init_weights": False} | config
    torch.manual_seed(1)
    return get_peft_model(base, dsee.DseeConfig(**settings)).eval()


def training_rows():
    """Twelve sentences as a Trainer wants them."""
    inputs = batch(size=12, labels=True)
    return [{name: tensor[i] for name, tensor in inputs.items()} for i in range(12)]


def training_arguments(folder, **changes):
    """A short, silent run on the CPU with a checkpoint every two steps."""
    from transformers import TrainingArguments

    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return TrainingArguments(**(settings | changes))


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    """Builds a tiny model of each family in turn."""
    return FAMILIES[request.param]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Tables read by a test are cached in a folder of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny products gain nothing from threads, and the workers share two cores."""
    torch.set_num_threads(1)


WORDS = [
    *["good", "fine", "bright", "warm"],
    *["bad", "dull", "grey", "cold"],
    *["film", "plot", "scene", "actor", "the", "a", "is", "was", "very", "not", "and", "it"],
]


def tiny_tokenizer():
    """A word-level tokenizer in BERT's manner."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=64, **names)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A pre-trained model as a user has it: a folder with configuration, weights and tokenizer."""
    return save_pretrained_bert(tmp_path_factory.mktemp("pretrained") / "tiny-bert")


def save_pretrained_bert(folder, steps=12):
    """A tiny BERT that has read some sentences: pre-training in small, so that a small update has something to use."""
    torch.manual_seed(0)
    config = BertConfig(**SIZES, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, num_labels=2)
    model, tokenizer = BertForSequenceClassification(config), tiny_tokenizer()
    rows = sentences(256, seed=9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        part = rows[step * 32 % 256 :][:32]
        encoded = tokenizer([text for text, _ in part], padding=True, return_tensors="pt")
        target = torch.tensor([int(label == "positive") for _, label in part])
        model(**encoded, labels=target).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0):
    """Sentences whose one judging word decides their label, so that a tiny model can learn them."""
    import random

    draw = random.Random(seed)
    rows = []
    for i in range(count):
        label = i % 2
        judge = draw.choice(WORDS[4:8] if label == 0 else WORDS[:4])
        filler = [draw.choice(WORDS[8:]) for _ in range(draw.randint(2, 7))]
        filler.insert(draw.randrange(len(filler)), judge)
        rows.append((" ".join(filler), "negative" if label == 0 else "positive"))
    return rows


def write_csv(path, rows, header=("text", "label")):
    import csv

    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, model_folder):
    """Folder, recipe, result and progress of a finished run; do not change it, copy it."""
    from chain import Recorder, prepare
    from dsee.training import load_recipe, run

    folder = tmp_path_factory.mktemp("finished")
    path = prepare(folder, model_folder)
    recorder = Recorder()
    result = run(load_recipe(path), base=folder, progress=recorder)
    return types.SimpleNamespace(folder=folder, recipe=path, result=result, progress=recorder)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run that a test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    return folder


@pytest.fixture(scope="session")
def results(finished):
    """The folder of a finished run."""
    return finished.folder / "out"


@pytest.fixture
def dsee_command(monkeypatch, capsys):
    """Run the command in this process; return exit code, standard output and standard error."""
    import sys

    from dsee.cli import app

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dsee", *map(str, arguments)])
        code = 0
        try:
            app.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
