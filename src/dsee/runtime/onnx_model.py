"""Running an exported folder with onnxruntime and tokenizers; neither torch nor transformers is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsee.artifact.manifest import verify
from dsee.errors import ArtifactError, InputError, MissingExtraError
from dsee.runtime.generation import greedy

MODEL, TOKENIZER, LABELS = "model.onnx", "tokenizer.json", "labels.json"

#: Marks the second sentence of a pair, for the models that know the difference.
TYPES = "token_type_ids"

#: What a model has written so far, for the models that write from what an encoder has read.
DECODER = "decoder_input_ids"

Inputs = dict[str, NDArray[np.int64]]


class OnnxModel:
    """A folder that :func:`dsee.export_onnx` wrote.

    Attributes:
        labels: class names by index.
        precision: "fp32" or "int8".
        max_length: longest text in tokens.
        generates: whether it writes text instead of choosing a label.
        kind: "classification", "multi-label" or "regression", of a model that does not write.
        end_tokens: tokens that end what it writes.
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
            self.max_length: int = described["max_length"]
            # folders of the first releases are all classifiers
            writes: dict[str, Any] = described.get("generation", {})
            self.kind: str = described.get("kind", "classification")
            self.generates, self.end_tokens = bool(writes), set(writes.get("end", []))
            self._start: int | None = writes.get("start")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"{self.folder / LABELS} does not describe the labels ({error!r}).") from error
        self._tokenizer: Any = None
        self._counter: Any = None
        self.precision = str(manifest.facts.get("precision", "fp32"))

    def sample(self, batch: int, sequence: int) -> Inputs:
        """Return random token ids and a full mask, (batch, sequence) each.

        Args:
            batch: sentences.
            sequence: tokens per sentence.
        """
        ids = np.random.default_rng(0).integers(5, self.vocab_size, (batch, sequence), dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return inputs | ({DECODER: np.flip(ids, 1).copy()} if DECODER in self.inputs else {})

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """Return logits, (batch, labels), or (batch, tokens, vocabulary) of a model that generates.

        Args:
            inputs: ``input_ids`` and ``attention_mask``, (batch, sequence) int64 each; ``token_type_ids`` for pairs;
                ``decoder_input_ids``, (batch, tokens), for a model that writes from what an encoder has read.
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
            self._tokenizer = self._stored_tokenizer()
        batch = self._tokenizer.encode_batch(texts if pairs is None else list(zip(texts, pairs, strict=True)))
        encoded = {
            "input_ids": np.array([e.ids for e in batch], dtype=np.int64),
            "attention_mask": np.array([e.attention_mask for e in batch], dtype=np.int64),
            TYPES: np.array([e.type_ids for e in batch], dtype=np.int64),
        }
        return {name: encoded[name] for name in self.inputs if name in encoded}

    def _stored_tokenizer(self) -> Any:
        path = self.folder / TOKENIZER
        if not path.is_file():
            raise InputError(f"{self.folder} was exported without a tokenizer. Export again with tokenizer=.")
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:
            # tokenizers raises nothing more precise
            raise ArtifactError(f"{path} is no tokenizer ({error}).") from error

    def logits(self, texts: list[str], pairs: list[str] | None = None) -> NDArray[np.float32]:
        """Return logits for sentences, (texts, labels).

        Args:
            texts: the sentences.
            pairs: second sentences, if the task has pairs.
        """
        if not texts:
            return np.zeros((0, self.session.get_outputs()[0].shape[-1]), dtype=np.float32)
        return self.run(self.encode(texts, pairs))

    def count_tokens(self, texts: list[str], pairs: list[str | None] | None = None) -> list[int]:
        """Return how many tokens each text has, special ones included, before anything is cut off.

        Args:
            texts: the texts.
            pairs: second sentences, None where there is none.
        """
        if self._counter is None:
            # one of its own: the other one cuts and fills up
            self._counter = self._stored_tokenizer()
            self._counter.no_truncation()
            self._counter.no_padding()
        return [len(self._counter.encode(*row)) for row in zip(texts, pairs or [None] * len(texts), strict=True)]

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
        """Go on from prompts, always with the likeliest token; every step reads everything again.

        Args:
            prompts: the prompts.
            max_new_tokens: most new tokens for each.

        Returns:
            The new tokens of each prompt, up to and with the one that ends the text.
        """
        encoded = self.encode(prompts)
        rows = zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ids = [row[mask == 1].tolist() for row, mask in rows]
        return greedy(self.run, ids, max_new_tokens, self.end_tokens, start=self._start, vocabulary=self.vocab_size)

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, special ones left out.

        Args:
            tokens: token ids.
        """
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
