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

#: Marks the second sentence of a pair, for the models that know the difference.
TYPES = "token_type_ids"

Inputs = dict[str, NDArray[np.int64]]


class OnnxModel:
    """A folder that :func:`dsee.export_onnx` wrote.

    Attributes:
        labels: class names by index.
        precision: "fp32" or "int8".
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
        for name in (MODEL, LABELS):
            if name not in manifest.files:
                raise ArtifactError(f"{self.folder / name} is missing from the export. Export the model again.")
        try:
            self.session = onnxruntime.InferenceSession(
                str(self.folder / MODEL), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # onnxruntime's exceptions have no base of their own
            raise ArtifactError(f"{self.folder / MODEL} is no ONNX model that runs here ({error}).") from error
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        try:
            described = json.loads((self.folder / LABELS).read_text(encoding="utf-8"))
            self.labels: list[str] = described["labels"]
            self.vocab_size: int = described["vocab_size"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{self.folder / LABELS} does not describe the labels ({error!r}).") from error
        self._tokenizer: Any = None
        self.precision = str(manifest.facts.get("precision", "fp32"))

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
            inputs: ``input_ids`` and ``attention_mask``, (batch, sequence) int64 each; ``token_type_ids`` for pairs.
        """
        if TYPES in self.inputs and TYPES not in inputs:
            inputs = inputs | {TYPES: np.zeros_like(inputs["input_ids"])}
        logits: NDArray[np.float32] = self.session.run(None, {name: inputs[name] for name in self.inputs})[0]
        return logits

    def encode(self, texts: list[str], pairs: list[str] | None = None) -> Inputs:
        """Tokenize sentences into one padded batch.

        Args:
            texts: the sentences.
            pairs: second sentences, if the task has pairs.

        Raises:
            InputError: the folder was exported without a tokenizer, or there are not as many pairs as texts.
            ArtifactError: its tokenizer is damaged.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"{len(texts)} texts and {len(pairs)} pairs: each text needs one second sentence.")
        if self._tokenizer is None:
            path = self.folder / TOKENIZER
            if not path.is_file():
                raise InputError(f"{self.folder} was exported without a tokenizer. Export again with tokenizer=.")
            from tokenizers import Tokenizer

            try:
                self._tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:
                # tokenizers raises nothing more precise
                raise ArtifactError(f"{path} is no tokenizer ({error}).") from error
        batch = self._tokenizer.encode_batch(texts if pairs is None else list(zip(texts, pairs, strict=True)))
        encoded = {
            "input_ids": np.array([e.ids for e in batch], dtype=np.int64),
            "attention_mask": np.array([e.attention_mask for e in batch], dtype=np.int64),
            TYPES: np.array([e.type_ids for e in batch], dtype=np.int64),
        }
        return {name: encoded[name] for name in self.inputs}

    def logits(self, texts: list[str], pairs: list[str] | None = None) -> NDArray[np.float32]:
        """Return logits for sentences, (texts, labels).

        Args:
            texts: the sentences.
            pairs: second sentences, if the task has pairs.
        """
        if not texts:
            return np.zeros((0, self.session.get_outputs()[0].shape[-1]), dtype=np.float32)
        return self.run(self.encode(texts, pairs))
