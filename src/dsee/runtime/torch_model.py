"""Running a saved folder with torch, behind the same methods as :class:`dsee.runtime.OnnxModel`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsee.architectures._registry import plain_model
from dsee.architectures.inputs import TYPES, takes_token_types
from dsee.artifact.load import load
from dsee.artifact.manifest import NAME
from dsee.errors import InputError
from dsee.measure.sample import longest_input, sample_inputs
from dsee.runtime.answers import kind_of
from dsee.runtime.generation import until_end
from dsee.runtime.merged import load_merged
from dsee.runtime.plain import load_plain

#: One of them is there, whatever the tokenizer.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"),
    *("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model"),
)


class TorchModel:
    """A folder that :func:`dsee.save` or transformers wrote.

    Attributes:
        model: the model, in eval mode.
        labels: class names by index.
        generates: whether it writes text instead of choosing a label.
        kind: "classification", "multi-label" or "regression", of a model that does not write.
    """

    def __init__(self, folder: str | Path, *, merged: bool = False) -> None:
        """Check and load the folder.

        Args:
            folder: an artifact, or a plain transformers folder with safetensors.
            merged: merge an update that lies beside its base, as one would to deploy it.

        Raises:
            ArtifactError: the folder is damaged, or holds no model.
            InputError: it holds something else than a model that reads tokens.
        """
        self.folder = Path(folder)
        own = (self.folder / NAME).is_file()
        self.model: Any = (load_merged if merged else load)(self.folder) if own else load_plain(self.folder)
        inner = plain_model(self.model)
        reads = getattr(inner, "main_input_name", "input_ids")
        if reads != "input_ids":
            raise InputError(
                f"{folder} holds a {type(inner).__name__}, which reads {reads}; dsee runs models that read tokens "
                "(input_ids)."
            )
        names = getattr(inner.config, "id2label", None) or {}
        self.labels = [str(names[index]) for index in sorted(names)]
        self.generates = bool(inner.can_generate())
        self.kind = kind_of(inner.config)
        self._tokenizer: Any = None
        self._counter: Any = None
        self._prompter: Any = None

    @property
    def precision(self) -> str:
        """The dtype of the weights, "float32" for example."""
        kinds = {str(p.dtype).removeprefix("torch.") for p in self.model.parameters() if p.is_floating_point()}
        return "+".join(sorted(kinds))

    @property
    def tokenizer(self) -> Any:
        """The folder's tokenizer.

        Raises:
            InputError: there is none.
        """
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            missing = f"{self.folder} holds no tokenizer: save with dsee.save(..., tokenizer=tokenizer)."
            # without any file, transformers makes a tokenizer of the model's family that knows no word
            if not any((self.folder / name).is_file() for name in TOKENIZER_FILES):
                raise InputError(missing)
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.folder)
            except (OSError, ValueError) as error:
                raise InputError(missing) from error
        return self._tokenizer

    @property
    def max_length(self) -> int:
        """Longest input in tokens: the shorter limit of model and tokenizer."""
        return min(longest_input(self.model), int(self.tokenizer.model_max_length))

    def sample(self, batch: int, sequence: int) -> dict[str, torch.Tensor]:
        """Return random token ids and a full mask, (batch, sequence) each.

        Args:
            batch: sentences.
            sequence: tokens per sentence.

        Raises:
            InputError: the sequence is longer than the model's positions.
        """
        return sample_inputs(self.model, batch, sequence)

    def run(self, inputs: dict[str, torch.Tensor]) -> Any:
        """Return what the model returns.

        Args:
            inputs: as :meth:`sample` or a tokenizer makes them.
        """
        with torch.inference_mode():
            return self.model(**inputs)

    def logits(self, texts: list[str], pairs: list[str] | None = None) -> NDArray[np.float32]:
        """Return logits for sentences, (texts, labels).

        Args:
            texts: the sentences; what is longer than the model can take is cut off.
            pairs: second sentences, if the task has pairs.
        """
        encoded = self.tokenizer(
            texts, pairs, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        if not takes_token_types(plain_model(self.model).config):
            # no export knows of types where there are none
            encoded.pop(TYPES, None)
        found: NDArray[np.float32] = self.run(encoded.to(self.model.device)).logits.float().cpu().numpy()
        return found

    def count_tokens(self, texts: list[str], pairs: list[str | None] | None = None) -> list[int]:
        """Return how many tokens each text has, special ones included, before anything is cut off.

        Args:
            texts: the texts.
            pairs: second sentences, None where there is none.
        """
        if self._counter is None:
            # a tokenizer remembers how it was asked to cut and pad, so two threads must not share one
            self._counter = copy.deepcopy(self.tokenizer)
        rows = zip(texts, pairs or [None] * len(texts), strict=True)
        return [len(self._counter(text, pair, verbose=False)["input_ids"]) for text, pair in rows]

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end a text."""
        ends = plain_model(self.model).generation_config.eos_token_id
        return set() if ends is None else set(ends) if isinstance(ends, list) else {int(ends)}

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
        """Go on from prompts, always with the likeliest token.

        Args:
            prompts: the prompts.
            max_new_tokens: most new tokens for each.

        Returns:
            The new tokens of each prompt, up to and with the one that ends the text.
        """
        if self._prompter is None:
            self._prompter = copy.deepcopy(self.tokenizer)
            # a decoder goes on where the prompt ends, so what is filled up stands before it
            self._prompter.padding_side = "left"
            if self._prompter.pad_token is None:
                self._prompter.pad_token = self._prompter.eos_token or self._prompter.unk_token
        encoded = self._prompter(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
        inner = plain_model(self.model)
        with torch.inference_mode():
            found = self.model.generate(
                **encoded.to(self.model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self._prompter.pad_token_id,
            )
        start = 1 if inner.config.is_encoder_decoder else encoded["input_ids"].shape[1]
        return [until_end(row[start:].tolist(), self.end_tokens) for row in found]

    def go_on(self, inputs: dict[str, torch.Tensor], new: int) -> None:
        """Write exactly so many tokens after rows of full length, greedily; what they are is of no interest.

        Args:
            inputs: as :meth:`sample` makes them.
            new: how many.
        """
        rows = {name: tensor for name, tensor in inputs.items() if name != "decoder_input_ids"}
        pad = min(self.end_tokens, default=0)
        more: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": pad}
        with torch.inference_mode():
            self.model.generate(**rows, do_sample=False, num_beams=1, **more)

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, special ones left out.

        Args:
            tokens: token ids.
        """
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
