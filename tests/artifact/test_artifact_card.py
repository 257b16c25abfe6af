"""The card inside an artifact tells the truth about that artifact."""

import pytest
from artifact_tools import unevenly_cut

import dsee
from conftest import adapted, tiny_bert


def _card(model, folder):
    return (dsee.save(model, folder) / "README.md").read_text()


def test_a_cut_model_says_which_type_a_plain_auto_class_would_stop_at(tmp_path):
    card = _card(unevenly_cut(tiny_bert()), tmp_path / "out")
    assert "stops at model_type 'dsee_bert'" in card
    assert "AutoModelForSequenceClassification" in card


def test_a_stock_model_announces_no_stop_that_never_comes(tmp_path):
    assert "stops at" not in _card(tiny_bert(), tmp_path / "out")


def test_an_adapted_model_offers_no_loader_that_drops_the_update(tmp_path):
    assert ".from_pretrained(" not in _card(adapted(unevenly_cut(tiny_bert())), tmp_path / "out")


def test_the_steps_and_the_layers_are_listed(tmp_path):
    model = adapted(tiny_bert())
    dsee.prune(model, dsee.Heads(1), dsee.Neurons(8))
    card = _card(dsee.merge(model), tmp_path / "out")
    assert "1. prune: heads 12 -> 9, neurons 120 -> 96" in card
    assert "2. merge: policy masked" in card
    for layer in range(3):
        assert f"| {layer} | 3 | 32 |" in card


def test_the_card_of_a_saved_model_shows_how_to_load_it(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        card = _card(unevenly_cut(tiny_bert()), tmp_path / "this-folder")
        code = card.split("```python\n")[1].split("```")[0]
        names = {}
        exec(compile(code, "card", "exec"), names)
    assert type(names["model"]).__name__ == "BertForSequenceClassification"
