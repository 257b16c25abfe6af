"""Running an exported folder with onnxruntime and tokenizers; neither torch nor transformers is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsee.artifact.manifest import verify
from dsee.errors import ArtifactError, InputError, MissingExtraError

MODEL, TOKENIZER, LABELS = "model.onnx", "tokenizer.json", "labels.json"

Inputs = dict[str, NDArray[np.int64]]


class OnnxModel:
    """A folder that :func:`dsee.export_onnx` wrote.

    Attributes:
        labels: class names by index; empty for a regression.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1) -> None:
        """Check and load the folder.

        Args:
            folder: the exported folder.
            threads: threads for ONNX Runtime.

        Raises:
            ArtifactError: the folder is damaged or not an export.
            MissingExtraError: onnxruntime is not installed.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("Running an ONNX model", "onnx") from error
        self.folder = Path(folder)
        manifest = verify(self.folder)
        if manifest.kind != "onnx":
            raise ArtifactError(
                f"{folder} is not an ONNX export but a {manifest.kind!r} artifact. Use dsee.load for it."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(self.folder / MODEL), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        described = json.loads((self.folder / LABELS).read_text(encoding="utf-8"))
        self.labels: list[str] = described["labels"]
        self.vocab_size: int = described["vocab_size"]
        self._tokenizer: Any = None

    def sample(self, batch: int, sequence: int) -> Inputs:
        """Return random token ids and a full mask, (batch, sequence) each.

        Args:
            batch: sentences.
            sequence: tokens per sentence.
        """
        ids = np.random.default_rng(0).integers(5, self.vocab_size, (batch, sequence), dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """Return logits, (batch, labels).

        Args:
            inputs: ``input_ids`` and ``attention_mask``, (batch, sequence) int64 each.
        """
        logits: NDArray[np.float32] = self.session.run(None, {name: inputs[name] for name in self.inputs})[0]
        return logits

    def encode(self, texts: list[str], pairs: list[str] | None = None) -> Inputs:
        """Tokenize sentences into one padded batch.

        Args:
            texts: the sentences.
            pairs: second sentences, if the task has pairs.

        Raises:
            InputError: the folder was exported without a tokenizer.
        """
        if self._tokenizer is None:
            path = self.folder / TOKENIZER
            if not path.is_file():
                raise InputError(f"{self.folder} was exported without a tokenizer. Export again with tokenizer=.")
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(path))
        batch = self._tokenizer.encode_batch(texts if pairs is None else list(zip(texts, pairs, strict=True)))
        encoded = {
            "input_ids": np.array([e.ids for e in batch], dtype=np.int64),
            "attention_mask": np.array([e.attention_mask for e in batch], dtype=np.int64),
            "token_type_ids": np.array([e.type_ids for e in batch], dtype=np.int64),
        }
        return {name: encoded[name] for name in self.inputs}

    def logits(self, texts: list[str], pairs: list[str] | None = None) -> NDArray[np.float32]:
        """Return logits for sentences, (texts, labels).

        Args:
            texts: the sentences.
            pairs: second sentences, if the task has pairs.
        """
        return self.run(self.encode(texts, pairs))
