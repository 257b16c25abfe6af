"""Writing in batches: the same texts whatever the batch, and transformers' own search."""

import pytest
import torch

from dsee.errors import InputError
from dsee.tasks.generation import DecodingSpec, EncodedText, Example, GenerationSpec, write_texts
from dsee.tasks.generation.ask import Asking, asking, stored_asking
from dsee.tasks.generation.write import NoRepeatInAnswer
from writing_tools import GOOD_CHAT, MODELS, lively, rows, tokenizer

WORDS = tokenizer()
PROMPTS = [WORDS(text)["input_ids"] for text in ("name : mill", "name", "food : french | name : eagle", "a b c")]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_changes_no_text(family, beams):
    model = lively(MODELS[family]())
    alone, together = (
        write_texts(model, WORDS, PROMPTS, DecodingSpec(beams=beams, max_new_tokens=8, batch_size=size))
        for size in (1, 4)
    )
    assert alone == together
    assert len(set(alone)) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_it_is_transformers_own_search(beams):
    model = lively(MODELS["gpt2"]())
    given = {"length_penalty": 0.8} if beams > 1 else {}
    with torch.no_grad():
        found = model.generate(
            torch.tensor([PROMPTS[0]]), max_new_tokens=8, num_beams=beams, do_sample=False, pad_token_id=0, **given
        )
    expected = WORDS.decode(found[0, len(PROMPTS[0]) :], skip_special_tokens=True).strip()
    decoding = DecodingSpec(beams=beams, max_new_tokens=8, no_repeat_ngram=0)
    assert write_texts(model, WORDS, PROMPTS[:1], decoding) == [expected]


def test_no_ngram_twice_in_the_answer_but_the_prompts_may_come_again():
    scores = torch.zeros(1, 10)
    rule = NoRepeatInAnswer(2, prompt=3)
    # 4 5 stands in the prompt alone: allowed. 7 8 has been written: 8 after 7 is not
    assert not torch.isinf(rule(torch.tensor([[4, 5, 6, 4]]), scores)).any()
    assert torch.isinf(rule(torch.tensor([[4, 5, 6, 7, 8, 7]]), scores)).nonzero().tolist() == [[0, 8]]


def test_texts_are_free_of_repeated_ngrams():
    model = lively(MODELS["gpt2"]())
    for text in write_texts(model, WORDS, PROMPTS, DecodingSpec(beams=2, max_new_tokens=20, no_repeat_ngram=2)):
        ids = WORDS(text)["input_ids"]
        assert len(ids) < 2 or text


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="64 positions"):
        write_texts(MODELS["gpt2"](), WORDS, [[1] * 60], DecodingSpec(max_new_tokens=5))


def test_the_models_mode_is_kept():
    model = MODELS["gpt2"]().train()
    write_texts(model, WORDS, PROMPTS[:1], DecodingSpec(beams=1, max_new_tokens=2))
    assert model.training


@pytest.mark.parametrize(("kind", "chat"), [("data-to-text", None), ("instruction", None), ("instruction", GOOD_CHAT)])
@pytest.mark.parametrize("separator", [None, "\n"])
def test_a_stored_way_of_asking_gives_the_prompts_of_training(kind, chat, separator):
    words, spec = tokenizer(chat), GenerationSpec(separator=separator)
    made = [Example(row["source"], row["target"], (), "rows") for row in rows(4)]
    stored = stored_asking({"writing": asking(words, spec, kind).model_dump(mode="json")}, "folder")
    assert stored.prompts(words, [e.prompt for e in made]) == EncodedText(made, words, 64, spec, kind).prompts


def test_a_way_of_asking_that_makes_no_sense_is_an_artifacts_error():
    from dsee.errors import ArtifactError

    assert stored_asking({}, "folder") is None
    with pytest.raises(ArtifactError, match=r"folder: .*facts\.writing"):
        stored_asking({"writing": {"decoding": {"beams": 0}}}, "folder")
    assert Asking(before="<", after=">").prompts(WORDS, ["a"]) == [WORDS("<a>")["input_ids"]]
