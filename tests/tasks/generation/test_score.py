"""Every figure is the library's own, called the plain way."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee.errors import InputError, MissingExtraError
from dsee.tasks.generation import METRICS, score_texts
from dsee.tasks.generation.score import chosen_metrics, tokens

pytest.importorskip("sacrebleu", reason="the nlg extra is not installed")
pytest.importorskip("nltk", reason="the nlg extra is not installed")
pytest.importorskip("rouge_score", reason="the nlg extra is not installed")
pytest.importorskip("pycocoevalcap", reason="the nlg extra is not installed")

TEXTS = ["The Mill serves French food .", "Cotto is a cheap pub near the river.", "It is family-friendly, isn't it?"]
REFERENCES = [
    ["The Mill serves good French food .", "French food is served at The Mill ."],
    ["Cotto is a cheap pub by the river."],
    ["It is family friendly , is it not ?", "Is it family-friendly?", "A family-friendly place, it is."],
]
WORDS = ["the", "mill", "serves", "french", "food", "."]
WORDNET = Path(__file__).parents[4] / "shared" / "data" / "nltk_data"


def test_bleu_is_sacrebleus():
    import sacrebleu

    # by segment sacrebleu takes as many references as there are, so it has to be the corpus with gaps
    streams = [[r[i] if i < len(r) else None for r in REFERENCES] for i in range(3)]
    assert score_texts(TEXTS, REFERENCES, ["bleu"])["bleu"] == sacrebleu.corpus_bleu(TEXTS, streams).score
    assert score_texts(TEXTS[1:2], REFERENCES[1:2], ["bleu"])["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(TEXTS[1:2], [REFERENCES[1]]).score
    )


def test_ter_is_sacrebleus_and_less_is_better():
    import sacrebleu

    streams = [[r[i] if i < len(r) else None for r in REFERENCES] for i in range(3)]
    assert score_texts(TEXTS, REFERENCES, ["ter"])["ter"] == sacrebleu.corpus_ter(TEXTS, streams).score
    assert not METRICS["ter"]
    assert score_texts([r[0] for r in REFERENCES], REFERENCES, ["ter"])["ter"] == 0


def test_nist_is_nltks():
    from nltk.translate.nist_score import corpus_nist

    expected = corpus_nist([[tokens(r) for r in these] for these in REFERENCES], [tokens(text) for text in TEXTS])
    assert score_texts(TEXTS, REFERENCES, ["nist"])["nist"] == pytest.approx(expected, rel=1e-12)


def test_nist_of_texts_shorter_than_its_ngrams():
    assert score_texts(["food"], [["food is good"]], ["nist"])["nist"] > 0
    assert score_texts([""], [["food is good"]], ["nist"])["nist"] == 0


def test_rouge_l_is_rouge_scores_best_reference():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    best = [
        max(scorer.score(r, text)["rougeL"].fmeasure for r in these)
        for text, these in zip(TEXTS, REFERENCES, strict=True)
    ]
    assert score_texts(TEXTS, REFERENCES, ["rouge_l"])["rouge_l"] == pytest.approx(100 * sum(best) / 3)


def test_cider_is_pycocoevalcaps_on_our_tokens():
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=4, sigma=6.0)
    for text, these in zip(TEXTS, REFERENCES, strict=True):
        scorer += (" ".join(tokens(text)), [" ".join(tokens(r)) for r in these])
    assert score_texts(TEXTS, REFERENCES, ["cider"])["cider"] == pytest.approx(float(scorer.compute_score()[0]))


@pytest.mark.slow
@pytest.mark.skipif(not WORDNET.is_dir(), reason="WordNet is not beside this checkout")
def test_meteor_is_nltks(monkeypatch):
    import nltk
    from nltk.translate.meteor_score import meteor_score

    monkeypatch.setattr(nltk.data, "path", [str(WORDNET)])
    expected = [
        meteor_score([tokens(r) for r in these], tokens(text)) for text, these in zip(TEXTS, REFERENCES, strict=True)
    ]
    assert score_texts(TEXTS, REFERENCES, ["meteor"])["meteor"] == pytest.approx(100 * sum(expected) / 3)
    # a synonym counts, which no other metric here knows
    assert (
        score_texts(["a big auto"], [["a big car"]], ["meteor"])["meteor"]
        > score_texts(["a big dog"], [["a big car"]], ["meteor"])["meteor"]
    )


def test_meteor_without_wordnet_is_said_not_raised(monkeypatch):
    from dsee.tasks.generation import score

    monkeypatch.setattr(score, "_wordnet", lambda: False)
    names, missing = chosen_metrics(None)
    assert "meteor" not in names
    assert "nltk.downloader wordnet" in missing["meteor"]
    with pytest.raises(InputError, match="NLTK_DATA"):
        chosen_metrics(["meteor"])


def test_looking_for_wordnet_where_there_is_none(monkeypatch):
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    assert "meteor" in chosen_metrics(None)[1]


def test_a_missing_package_is_named(monkeypatch):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else there(name))
    with pytest.raises(MissingExtraError, match=r"sacrebleu.*dsee\[nlg\]"):
        chosen_metrics(["bleu"])
    names, missing = chosen_metrics(None)
    assert names == ["rouge_l"]
    assert "pip install" in missing["bleu"]


@pytest.mark.parametrize(
    ("texts", "references", "metrics", "said"),
    [
        ([], [], ["bleu"], "0 texts"),
        (["a"], [["a"], ["b"]], ["bleu"], "references for 2"),
        (["a"], [[]], ["bleu"], "text 1 has no list"),
        (["a"], ["a"], ["bleu"], "text 1 has no list"),
        (["a"], [["a"]], ["blue"], "Did you mean 'bleu'"),
    ],
)
def test_wrong_input_is_one_clear_error(texts, references, metrics, said):
    with pytest.raises(InputError, match=said):
        score_texts(texts, references, metrics)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1), min_size=1, max_size=4))
def test_more_references_never_lower_rouge(written):
    texts = [" ".join(words) for words in written]
    one = [["french food ."] for _ in texts]
    two = [[*these, "the mill serves ."] for these in one]
    found = [score_texts(texts, references, ["rouge_l"])["rouge_l"] for references in (one, two)]
    assert 0 <= found[0] <= found[1] <= 100 + 1e-9


def test_the_tokens_are_those_of_mteval():
    expected = ["the", "pub", ",", '"', "cotto", '"', ",", "isn't", "cheap", ":", "3,50", "-", "25", "."]
    assert tokens('The pub, "Cotto", isn\'t cheap: 3,50-25.') == expected
