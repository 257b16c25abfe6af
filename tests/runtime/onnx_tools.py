"""What the tests of this folder share: exports, made once each because one takes seconds."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import dsee
from conftest import FAMILIES
from dsee.artifact.manifest import read_manifest, write_manifest
from dsee.pruning.plan import LayerPlan
from dsee.surgery.cut import cut

#: Layers that differ in heads and in neurons.
UNEVEN = [LayerPlan((1,), tuple(range(5))), LayerPlan((0, 2, 3), (1,)), LayerPlan((), tuple(range(3, 30)))]
NAMES = {0: "sad", 1: "plain", 2: "glad"}
WORDS = ["a", "quietly", "moving", "film", "two", "hours", "i", "will", "never", "get", "back", "good", "bad"]
#: The tokenizer's own limit, below the model's 80 positions.
LONGEST = 20


def unevenly_cut(model):
    cut(model, UNEVEN)
    return model


def named(model):
    model.config.id2label = NAMES
    model.config.label2id = {name: index for index, name in NAMES.items()}
    return model


def tokenizer():
    """Words of the card's example; the padding id is not 0, so that a forgotten one shows."""
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3} | {word: i for i, word in enumerate(WORDS, 5)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    # the second sentence of a pair is marked, as BERT's is
    words.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A [SEP] $B:1", special_tokens=[("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        model_max_length=LONGEST,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@dataclass(frozen=True)
class Export:
    """An exported model. ``before`` and ``after`` say which of its modules were in train mode around the export."""

    model: torch.nn.Module
    folder: Path
    before: dict[str, bool]
    after: dict[str, bool]


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="dsee-onnx-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def exported(name: str, quantize: str | None = None) -> Export:
    """The tiny, unevenly cut model of a family, exported; its head in train mode, the rest not."""
    return _exported(name, quantize)


@functools.cache
def _exported(name: str, quantize: str | None) -> Export:
    model = named(unevenly_cut(FAMILIES[name]()))
    model.classifier.train()
    before = modes(model)
    folder = dsee.export_onnx(model, _root() / f"{name}-{quantize}", tokenizer=tokenizer(), quantize=quantize)
    after = modes(model)
    return Export(model.eval(), folder, before, after)


def copied(export: Export, folder: Path) -> Path:
    return Path(shutil.copytree(export.folder, folder))


def trace_from(monkeypatch, folder: Path) -> None:
    """Let the next exports take a graph that was traced before: tracing takes seconds, copying does not."""
    monkeypatch.setattr(
        "dsee.runtime.onnx_export.trace", lambda model, path, *_: shutil.copyfile(folder / "model.onnx", path)
    )


def rehash(folder: Path) -> Path:
    write_manifest(folder, read_manifest(folder))
    return folder


def run_python(code: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def described(folder: Path) -> dict:
    return json.loads((folder / "labels.json").read_text())
