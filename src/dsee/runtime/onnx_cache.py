"""Writing with a graph that takes and gives keys and values, so that a step reads one token; no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsee.runtime import generation
from dsee.runtime.generation import filled_up

#: Names of the graph's inputs and outputs, those that the exporters of Hugging Face use too.
POSITIONS = "position_ids"
PAST, PRESENT = "past_key_values.", "present."


def cache_names(layers: int, prefix: str) -> list[str]:
    """Return the names of keys and values, in the order of the layers.

    Args:
        layers: how many there are.
        prefix: :data:`PAST` or :data:`PRESENT`.
    """
    return [f"{prefix}{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def fits(session: Any, layers: int) -> bool:
    """Whether a graph takes and gives keys and values of so many layers, of known heads and sizes.

    Args:
        session: of onnxruntime.
        layers: how many; 0 for a graph without a cache.
    """
    taken = [entry for entry in session.get_inputs() if entry.name.startswith(PAST)]
    given = [entry.name for entry in session.get_outputs() if entry.name.startswith(PRESENT)]
    shapes = [entry.shape for entry in taken]
    known = all(len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int) for shape in shapes)
    names = [entry.name for entry in taken]
    return known and names == cache_names(layers, PAST) and given == cache_names(layers, PRESENT)


def nothing_read(session: Any, batch: int) -> dict[str, NDArray[np.float32]]:
    """Return the keys and values of rows that hold nothing yet, (batch, heads, 0, dim) each.

    Args:
        session: of onnxruntime.
        batch: rows.
    """
    return {
        entry.name: np.zeros((batch, entry.shape[1], 0, entry.shape[3]), dtype=np.float32)
        for entry in session.get_inputs()
        if entry.name.startswith(PAST)
    }


def positions(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position of each token of rows that are filled up on the right, like ``ids``.

    Args:
        ids: (batch, tokens).
    """
    return np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape).copy()


class Remembering:
    """A writer that keeps what it has computed of each row.

    Prompts are read filled up on the right, so that no token is without anything to attend to; their keys and values
    are then moved to the end of their rows, where new ones follow without a gap, as a sliding window needs it.
    """

    def __init__(self, session: Any, *, vocabulary: int) -> None:
        """Set up.

        Args:
            session: of onnxruntime, with a graph that has a cache.
            vocabulary: how many tokens there are.
        """
        import onnxruntime

        self._session, self._vocabulary = session, vocabulary
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._names = [entry.name for entry in session.get_inputs() if entry.name.startswith(PAST)]
        self._outputs = ["logits", *(PRESENT + name.removeprefix(PAST) for name in self._names)]
        self._past: list[Any] = []
        self._mask = np.zeros((0, 0), dtype=np.int64)

    def start(self, prompts: list[list[int]]) -> NDArray[np.float32]:
        """Read prompts; return the logits behind them, (prompts, vocabulary).

        Args:
            prompts: token ids, at least one each.
        """
        width = max(map(len, prompts))
        size = max(1, generation.LOGITS // (4 * self._vocabulary * width))
        chunks = [self._read(prompts[at : at + size], width) for at in range(0, len(prompts), size)]
        self._past = [self._value(np.concatenate(parts)) for parts in zip(*(past for _, past in chunks), strict=True)]
        self._mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in prompts], dtype=np.int64)
        return np.concatenate([logits for logits, _ in chunks])

    def _read(self, prompts: list[list[int]], width: int) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Logits behind some prompts, and keys and values that end where their rows end."""
        inputs = filled_up(prompts)
        inputs |= {POSITIONS: positions(inputs["input_ids"])} | nothing_read(self._session, len(prompts))
        logits, *present = self._session.run(self._outputs, inputs)
        moved = []
        for part in present:
            whole = np.zeros((*part.shape[:2], width, part.shape[3]), dtype=part.dtype)
            for i, row in enumerate(prompts):
                whole[i, :, width - len(row) :] = part[i, :, : len(row)]
            moved.append(whole)
        return np.stack([row[len(prompt) - 1] for row, prompt in zip(logits, prompts, strict=True)]), moved

    def step(self, tokens: list[int], parents: list[int]) -> NDArray[np.float32]:
        """Go on with new rows; return the logits behind them, (rows, vocabulary).

        Args:
            tokens: the new token of each row.
            parents: the earlier row it goes on from.
        """
        if parents != list(range(len(self._mask))):
            # one at a time, so that two of all are never there
            for at, part in enumerate(self._past):
                self._past[at] = self._value(part.numpy()[parents])
            self._mask = self._mask[parents]
        self._mask = np.concatenate([self._mask, np.ones((len(tokens), 1), dtype=np.int64)], axis=1)
        arrays = {
            "input_ids": np.array(tokens, dtype=np.int64)[:, None],
            "attention_mask": self._mask,
            POSITIONS: self._mask.sum(axis=1, keepdims=True) - 1,
        }
        inputs = {name: self._value(array) for name, array in arrays.items()}
        inputs |= dict(zip(self._names, self._past, strict=True))
        logits, *self._past = self._session.run_with_ort_values(self._outputs, inputs)
        found: NDArray[np.float32] = logits.numpy()[:, -1]
        return found
