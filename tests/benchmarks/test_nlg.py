"""The data-to-text benchmark's own machinery: its recipes are recipes, and its tables say what was run."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import nlg
from dsee.training.recipe_file import parse_recipe
from nlg_table import tables


def row(cell, bleu):
    found = {
        state: {"bleu": score, "ter": 50.0, "loss": 2.0, "perplexity": 7.4, "encoder_flops": flops}
        for state, score, flops in (("tuned", bleu, 100), ("pruned", bleu - 9, 75), ("recovered", bleu - 1, 75))
    }
    texts = {state: [{"prompt": "name : x", "text": f"{state} text"}] for state in found}
    return {
        "cell": asdict(cell),
        "figures": found,
        "zeros": 0.2 if "weights" in cell.prune else 0.0,
        "trainable": 1234,
        "texts": texts,
        "missing": {"meteor": "no WordNet"},
        "references": 700,
    }


@pytest.mark.parametrize("cell", nlg.CELLS, ids=lambda cell: cell.name)
def test_every_cell_is_a_valid_recipe(cell):
    data = {part: f"{part}.parquet" for part in ("train", "validation", "test")}
    recipe = parse_recipe(nlg.recipe_of(cell, data), cell.name)
    assert recipe.task == "data-to-text"
    assert (recipe.gguf_file is None) == (cell.model == "gpt2-mini")


def test_cells_of_one_model_share_what_is_tuned_and_nothing_else():
    assert len({cell.name for cell in nlg.CELLS}) == len(nlg.CELLS)
    for model in ("gpt2-mini", "smollm2-135m"):
        assert len({cell.base for cell in nlg.CELLS if cell.model == model}) == 1
    assert len({cell.base for cell in nlg.CELLS}) == 2


def test_a_stored_row_is_its_cell_again_and_the_table_says_the_slice():
    rows = [json.loads(json.dumps(row(cell, 20.0 + i))) for i, cell in enumerate(nlg.CELLS[:2])]
    assert [r["cell"] for r in rows] == [asdict(cell) for cell in nlg.CELLS[:2]]
    text = tables(rows)
    assert "2400 of 42,061 training rows" in text
    assert "100 of 630 test sources" in text
    assert "first 48 of them in the file's order, against 700 references" in text
    assert "| nothing | tuned | 20.0 | 50.0 | 7.4 | 100% | 0% |" in text
    assert "| 20% of the layers' weights | recovered and merged | 19.0 |" in text
    assert "| 25% of the layers' FLOPs | pruned, before recovery | 12.0 | 50.0 | 7.4 | 75% | 0% |" in text
    assert "METEOR: no WordNet" in text
    assert tables([]) == "Nothing has been run yet."


def test_steps_of_recovery_are_said_and_rows_from_before_they_were_there_are_read():
    cell = nlg.CELLS[-1]
    stored = json.loads(json.dumps(row(cell, 20.0)))
    assert "recovering: 100 steps at half that" in tables([stored])
    old = json.loads(json.dumps(row(nlg.CELLS[0], 20.0)))
    del old["cell"]["recover_steps"]
    assert nlg.Cell(**old["cell"]) == nlg.CELLS[0]
    assert "recovering: 1 epoch(s) at half that" in tables([old])
