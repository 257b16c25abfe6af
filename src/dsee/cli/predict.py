"""``dsee predict``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dsee.errors import InputError


def predict(
    folder: Annotated[
        Path, typer.Argument(help="An artifact, an ONNX folder, or the folder of a run.", metavar="FOLDER")
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Sentences to classify, or prompts.", metavar="[TEXT]...")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", help="Text file, one sentence a line; or a CSV, TSV, JSON Lines or Parquet table."
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="Column of the table that holds the sentences.")] = "text",
    pair_column: Annotated[
        str | None, typer.Option(help="Column of the table that holds the second sentences, for tasks on pairs.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sentences at a time.", min=1)] = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, with all probabilities or the whole text.")
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest text of a model that writes, in tokens.", min=1)
    ] = None,
) -> None:
    """Classify sentences, or write after prompts.

    Prints label, probability and sentence, separated by tabs. A model that writes is asked as it was trained, with its
    beams; it prints one text a line, line breaks inside it as blanks.

    Where several labels may hold at once, prints all that are more likely than not, "-" if none is; of a regression the
    number.

    An ONNX folder is run by onnxruntime alone: neither torch nor transformers is loaded.
    """
    from dsee.cli.folders import artifact_in
    from dsee.runtime.answers import answer

    sentences = _sentences(texts or [], file, column)
    pairs = None if pair_column is None else _pairs(file, pair_column)
    where = artifact_in(folder)
    model = _model(where)
    if model.generates:
        if pairs is not None:
            raise InputError("--pair-column: this model writes texts and knows no pairs.")
        from dsee.cli.answers import print_texts

        print_texts(where, model, sentences, batch_size=batch_size, longest=max_new_tokens, as_json=as_json)
        return
    if max_new_tokens is not None:
        raise InputError("--max-new-tokens: this model chooses a label and writes nothing.")
    for start in range(0, len(sentences), batch_size):
        chunk = sentences[start : start + batch_size]
        second = pairs and pairs[start : start + batch_size]
        for text, row in zip(chunk, model.logits(chunk, second), strict=True):
            found = answer(model.kind, model.labels, row)
            if as_json:
                said = {"text": text, "label": found.label, "scores": found.scores}
                typer.echo(json.dumps(said, ensure_ascii=False))
            else:
                typer.echo(f"{found.label or '-'}\t{found.score:.4f}\t{text}")


def _sentences(texts: list[str], file: Path | None, column: str) -> list[str]:
    if file is not None and texts:
        raise InputError("predict: give sentences or --file, not both.")
    if file is not None:
        texts = list(_from_file(file, column))
    if not texts:
        raise InputError("predict: nothing to classify. Give sentences, or --file.")
    return texts


def _pairs(file: Path | None, column: str) -> list[str]:
    from dsee.tasks.table import SUFFIXES

    if file is None or file.suffix.lower() not in SUFFIXES:
        raise InputError("predict: --pair-column names a column of a table; give one with --file.")
    return list(_from_file(file, column, "--pair-column"))


def _from_file(path: Path, column: str, option: str = "--column") -> Iterator[str]:
    from dsee.tasks.places import existing_file
    from dsee.tasks.table import SUFFIXES, check_utf8, read_table, require_column

    path = existing_file(str(path), Path())
    if path.suffix.lower() in SUFFIXES:
        table = read_table(path)
        require_column(table, column, path, option)
        yield from (str(value) for value in table[column])
        return
    check_utf8(path)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            raise InputError(f"{path}, line {number} is blank, so answers would no longer match lines. Remove it.")
        yield line


def _model(folder: Path) -> Any:
    """The opened folder, with torch only if it takes torch."""
    from dsee.runtime.opened import is_onnx, open_model

    if not is_onnx(folder):
        from dsee.cli.terminal import quiet_libraries

        quiet_libraries()
    return open_model(folder)
