"""What ``dsee predict`` prints for a model that writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

#: As many as a model may write that does not say how long its texts are.
LONGEST = 64


def print_texts(
    folder: Path, model: Any, prompts: list[str], *, batch_size: int, longest: int | None, as_json: bool
) -> None:
    """Print a text for each prompt, one a line.

    Args:
        folder: where the model came from.
        model: an opened model that generates.
        prompts: the prompts.
        batch_size: prompts at a time.
        longest: most new tokens; None for what the model was tested with.
        as_json: print prompt and text as an object; else line breaks inside a text become blanks.
    """
    write = _writer(folder, model, longest)
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        for prompt, text in zip(chunk, write(chunk), strict=True):
            if as_json:
                typer.echo(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
            else:
                typer.echo(" ".join(text.split()))


def _writer(folder: Path, model: Any, longest: int | None) -> Callable[[list[str]], list[str]]:
    """A model of ours is asked as it was trained; of others nothing is known, so they go on from the plain prompt."""
    from dsee.artifact.manifest import NAME, read_manifest
    from dsee.runtime.onnx_model import OnnxModel

    if isinstance(model, OnnxModel):
        if model.asked is not None:
            return lambda chunk: model.write(chunk, longest)
    elif (folder / NAME).is_file():
        from dsee.tasks.generation.ask import stored_asking
        from dsee.tasks.generation.write import write_texts

        asked = stored_asking(read_manifest(folder).facts, folder)
        if asked is not None:
            decoding = asked.decoding.model_copy(update={"max_new_tokens": longest} if longest else {})
            return lambda chunk: write_texts(
                model.model, model.tokenizer, asked.prompts(model.tokenizer, chunk), decoding
            )
    return lambda chunk: [model.decode(tokens) for tokens in model.generate(chunk, longest or LONGEST)]
