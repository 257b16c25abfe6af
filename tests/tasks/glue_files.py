"""Small files with GLUE's names and columns."""

import json

from dsee.tasks import GLUE


def rows(task, count, labelled=True):
    """Texts that name their number, with labels that take turns."""
    found = []
    for i in range(count):
        row = {task.text: f"good film {i}", "idx": i}
        if task.pair:
            row[task.pair] = f"bad plot {i}"
        row["label"] = -1
        if labelled:
            row["label"] = i % len(task.labels) if task.labels else 5.0 * (i % 7) / 6
        found.append(row)
    return found


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_glue(folder, name, train=40, validation=8, test=6):
    task = GLUE[name]
    write_jsonl(folder / "train.jsonl", rows(task, train))
    for ending, _ in task.parts:
        write_jsonl(folder / f"validation{ending}.jsonl", rows(task, validation))
        write_jsonl(folder / f"test{ending}.jsonl", rows(task, test, labelled=False))
