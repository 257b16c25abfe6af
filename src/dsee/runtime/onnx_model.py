"""Running an exported folder with onnxruntime and tokenizers; neither torch nor transformers is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsee.artifact.manifest import NAME, verify
from dsee.errors import ArtifactError, InputError, MissingExtraError
from dsee.runtime.asked import Decoding, stored_asked, write_texts
from dsee.runtime.generation import Rereading, Writer, greedy
from dsee.runtime.onnx_cache import POSITIONS, Remembering, fits, nothing_read, positions

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
        cached: whether its graph takes and gives keys and values, so that writing does not read everything again.
        asked: how it was asked when it was trained, of a model that ``dsee run`` taught to write; else None.
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
            # not there in folders of the first releases
            self._positions: int | None = writes.get("positions")
            layers = int(writes.get("cache", 0))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"{self.folder / LABELS} does not describe the labels ({error!r}).") from error
        self.cached = layers > 0
        if not fits(self.session, layers):
            raise ArtifactError(
                f"{self.folder / MODEL} does not take and give the keys and values of {layers} layers, of which "
                f"{self.folder / LABELS} speaks: the two are of different exports. Export the model again."
            )
        self.asked = stored_asked(manifest.facts, self.folder / NAME) if self.generates else None
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
        more: dict[str, Any] = {}
        if TYPES in self.inputs and TYPES not in inputs:
            more[TYPES] = np.zeros_like(inputs["input_ids"])
        if self.cached:
            more |= nothing_read(self.session, len(inputs["input_ids"])) | {POSITIONS: positions(inputs["input_ids"])}
        whole = more | inputs
        logits: NDArray[np.float32] = self.session.run(["logits"], {name: whole[name] for name in self.inputs})[0]
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
        whole = self._whole_tokenizer()
        return [len(whole.encode(*row)) for row in zip(texts, pairs or [None] * len(texts), strict=True)]

    def _whole_tokenizer(self) -> Any:
        """One of its own: the other one cuts and fills up."""
        if self._counter is None:
            self._counter = self._stored_tokenizer()
            self._counter.no_truncation()
            self._counter.no_padding()
        return self._counter

    def writer(self) -> Writer:
        """Return what goes on from rows of tokens: with a memory if the graph has one, else reading all again.

        Raises:
            InputError: the model does not write.
        """
        if not self.generates:
            raise InputError(f"{self.folder} holds a model that chooses a label and writes nothing.")
        if self.cached:
            return Remembering(self.session, vocabulary=self.vocab_size)
        return Rereading(self.run, start=self._start, vocabulary=self.vocab_size)

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
        """Go on from prompts, always with the likeliest token.

        Args:
            prompts: the prompts.
            max_new_tokens: most new tokens for each.

        Returns:
            The new tokens of each prompt, up to and with the one that ends the text.

        Raises:
            InputError: a prompt has no token, or with the text more than the model has positions; the model does not
                write, or its folder has no tokenizer.
        """
        ids = [encoding.ids for encoding in self._whole_tokenizer().encode_batch(prompts)]
        self._check_prompts(ids, max_new_tokens)
        return greedy(self.writer(), ids, max_new_tokens, self.end_tokens) if ids else []

    def write(self, texts: list[str], max_new_tokens: int | None = None) -> list[str]:
        """Write a text after each prompt, as the model was asked in training: :attr:`asked`, beams and all.

        Args:
            texts: prompts as a user has them.
            max_new_tokens: longest text; None for what the model was tested with.

        Raises:
            InputError: the folder does not say how; and what :meth:`generate` raises.
        """
        if self.asked is None:
            raise InputError(f"{self.folder} does not say how its model was asked in training. Use generate().")
        asked, whole = self.asked, [self.asked.before + text + self.asked.after for text in texts]
        ids = [e.ids for e in self._whole_tokenizer().encode_batch(whole, add_special_tokens=False)]
        decoding = replace(asked.decoding, max_new_tokens=max_new_tokens or asked.decoding.max_new_tokens)
        return self.write_after(ids, decoding)

    def write_after(
        self, prompts: list[list[int]], decoding: Decoding, progress: Callable[[int], None] | None = None
    ) -> list[str]:
        """Write a text after each prompt, the same that :func:`dsee.tasks.generation.write_texts` writes with torch.

        Args:
            prompts: token ids of each prompt, at least one each.
            decoding: how.
            progress: called with the number of texts written since the last call.

        Raises:
            InputError: what :meth:`generate` raises.
        """
        self._check_prompts(prompts, decoding.max_new_tokens)
        ends = self.end_tokens if self.asked is None or self.asked.ends is None else self.asked.ends
        self._whole_tokenizer()
        return write_texts(self.writer, self.decode, prompts, decoding, ends, progress)

    def _check_prompts(self, prompts: list[list[int]], new: int) -> None:
        for number, prompt in enumerate(prompts, 1):
            if not prompt:
                raise InputError(f"Prompt {number} has no token, so there is nothing to go on from.")
            # what an encoder reads and what is written have positions of their own
            if self._start is None and self._positions is not None and len(prompt) + new > self._positions:
                raise InputError(
                    f"Prompt {number} has {len(prompt)} tokens, with {new} new ones more than the {self._positions} "
                    "positions of this model. Shorten it, or write less."
                )

    def go_on(self, inputs: Inputs, new: int) -> None:
        """Write exactly so many tokens after rows of full length, greedily; what they are is of no interest.

        Args:
            inputs: as :meth:`sample` makes them.
            new: how many.
        """
        rows: list[list[int]] = inputs["input_ids"].tolist()
        self._check_prompts(rows, new)
        greedy(self.writer(), rows, new, set())

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, special ones left out.

        Args:
            tokens: token ids.
        """
        return str(self._whole_tokenizer().decode(tokens, skip_special_tokens=True))
