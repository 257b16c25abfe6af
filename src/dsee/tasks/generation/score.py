"""BLEU, NIST, METEOR, ROUGE-L, CIDEr and TER, each by the library that is known for it.

One tokenisation for all that need tokens from us (NIST, METEOR, CIDEr): sacrebleu's "13a", that of mteval-v13a, on
lower-cased text. BLEU and TER are sacrebleu's own with its defaults, ROUGE-L is rouge-score's own. pycocoevalcap
tokenises with Java; its CIDEr is called with the same 13a tokens instead, so the figure is that of its formula, but
not to the digit that of a run with its tokenizer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from dsee.errors import InputError, MissingExtraError, listed, nearest

References = Sequence[Sequence[str]]

#: Metrics in the order of a table -> whether more is better.
METRICS = {"bleu": True, "nist": True, "meteor": True, "rouge_l": True, "cider": True, "ter": False}
_PACKAGES = {
    "bleu": ("sacrebleu",),
    "ter": ("sacrebleu",),
    "nist": ("nltk", "sacrebleu"),
    "meteor": ("nltk", "sacrebleu"),
    "rouge_l": ("rouge_score",),
    "cider": ("pycocoevalcap", "sacrebleu"),
}
_WORDNET = (
    "METEOR needs WordNet, which nltk does not bring along. Fetch it with: python -m nltk.downloader wordnet "
    "(a folder of your own: set NLTK_DATA to it)"
)


def chosen_metrics(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return what texts can be scored by, and what not and why.

    Args:
        names: metrics that are asked for; None asks for all that can be had here.

    Raises:
        MissingExtraError: one that is asked for by name needs a package that is not installed.
        InputError: it does not exist, or needs WordNet, which is not there.
    """
    missing: dict[str, str] = {}
    for name in METRICS if names is None else names:
        if name not in METRICS:
            raise InputError(f"There is no metric {name!r}.{nearest(name, METRICS)} There are {listed(METRICS)}.")
        absent = [package for package in _PACKAGES[name] if importlib.util.find_spec(package) is None]
        if absent:
            if names is not None:
                raise MissingExtraError(f"The metric {name} ({', '.join(absent)})", "nlg")
            missing[name] = f"the package {absent[0]} is not installed: pip install 'dsee[nlg]'"
        elif name == "meteor" and not _wordnet():
            if names is not None:
                raise InputError(f"{_WORDNET}.")
            missing[name] = _WORDNET
    wanted = METRICS if names is None else names
    return [name for name in METRICS if name in wanted and name not in missing], missing


def score_texts(texts: Sequence[str], references: References, metrics: Sequence[str]) -> dict[str, float]:
    """Score texts against their references.

    Args:
        texts: what a model wrote.
        references: for each text those that count as right, at least one.
        metrics: names out of :data:`METRICS`.

    Returns:
        metric -> figure: BLEU, METEOR, ROUGE-L and TER in percent, NIST and CIDEr as their libraries give them.

    Raises:
        InputError: no texts, other numbers of texts and references, a text without any, or an unknown metric.
        MissingExtraError: a metric's package is not installed.
    """
    if not texts or len(texts) != len(references):
        raise InputError(f"score: {len(texts)} texts and references for {len(references)}; one list for each text.")
    for number, these in enumerate(references):
        if not these or isinstance(these, str):
            raise InputError(f"score: text {number + 1} has no list of references.")
    names, _ = chosen_metrics(list(metrics))
    return {name: _SCORERS[name](texts, references) for name in names}


def _streams(references: References) -> list[list[str | None]]:
    """References by rank, None where a text has fewer, as sacrebleu wants them."""
    most = max(len(these) for these in references)
    return [[these[i] if i < len(these) else None for these in references] for i in range(most)]


def _bleu(texts: Sequence[str], references: References) -> float:
    from sacrebleu.metrics import BLEU

    # force: E2E's texts are tokenised, of which it would warn
    return float(BLEU(force=True).corpus_score(list(texts), _streams(references)).score)


def _ter(texts: Sequence[str], references: References) -> float:
    from sacrebleu.metrics import TER

    return float(TER().corpus_score(list(texts), _streams(references)).score)


def tokens(text: str) -> list[str]:
    """Return the lower-cased tokens of mteval-v13a.

    Args:
        text: any text.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return str(Tokenizer13a()(text.lower())).split()


def _nist(texts: Sequence[str], references: References) -> float:
    from nltk.translate.nist_score import corpus_nist

    written = [tokens(text) for text in texts]
    # nltk divides by the number of n-grams; without any of an order there is nothing to divide by
    order = min(5, max(map(len, written)))
    if order == 0:
        return 0.0
    return float(corpus_nist([[tokens(r) for r in these] for these in references], written, n=order))


def _meteor(texts: Sequence[str], references: References) -> float:
    from nltk.translate.meteor_score import meteor_score

    found = [
        meteor_score([tokens(r) for r in these], tokens(text)) for text, these in zip(texts, references, strict=True)
    ]
    return 100.0 * float(sum(found)) / len(found)


def _rouge_l(texts: Sequence[str], references: References) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    found = [
        scorer.score_multi(list(these), text)["rougeL"].fmeasure for text, these in zip(texts, references, strict=True)
    ]
    return 100.0 * float(sum(found)) / len(found)


def _cider(texts: Sequence[str], references: References) -> float:
    from pycocoevalcap.cider.cider import Cider

    right = {i: [" ".join(tokens(r)) for r in these] for i, these in enumerate(references)}
    written = {i: [" ".join(tokens(text))] for i, text in enumerate(texts)}
    return float(Cider().compute_score(right, written)[0])


def _wordnet() -> bool:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


_SCORERS: dict[str, Callable[[Any, Any], float]] = {
    "bleu": _bleu,
    "nist": _nist,
    "meteor": _meteor,
    "rouge_l": _rouge_l,
    "cider": _cider,
    "ter": _ter,
}
