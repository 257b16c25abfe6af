"""After ``import dsee`` the Auto classes load cut models; without it they stop, and stock models load as ever."""

import json

import pytest
import torch
from artifact_tools import run_python, unevenly_cut
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

import dsee
from conftest import adapted, batch, logits, tiny_bert
from dsee.artifact import read_manifest

# a fresh process: what this one has imported must not help
PRELUDE = """
import json, sys, torch
torch.set_num_threads(1)
folder, ids, mask = sys.argv[1], *(torch.tensor(json.loads(text)) for text in sys.argv[2:4])
def answer(model):
    with torch.no_grad():
        output = model.eval()(input_ids=ids, attention_mask=mask)
    return {"class": type(model).__name__, "output": output[0].tolist()}
"""

WITH_DSEE = (
    """
import dsee
"""
    + PRELUDE
    + """
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
config = AutoConfig.from_pretrained(folder)
print("\\n" + json.dumps({
    "config": [config.model_type, config.dsee_structure],
    "AutoModel": answer(AutoModel.from_pretrained(folder)),
    "AutoModelForSequenceClassification": answer(AutoModelForSequenceClassification.from_pretrained(folder)),
    "AutoTokenizer": AutoTokenizer.from_pretrained(folder)(["good film", "bad"], padding=True)["input_ids"],
}))
"""
)

WITHOUT_DSEE = (
    PRELUDE
    + """
from transformers import AutoModel, AutoModelForSequenceClassification
result = {}
for name in ("stock", "merged"):
    model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/{name}")
    result[name] = answer(model) | {"module": type(model).__module__}
    result[name + " base"] = answer(AutoModel.from_pretrained(f"{folder}/{name}"))["class"]
for auto in (AutoModel, AutoModelForSequenceClassification):
    try:
        auto.from_pretrained(f"{folder}/cut")
    except Exception as error:
        result[auto.__name__] = [type(error).__name__, str(error)]
result["dsee"] = "dsee" in sys.modules
print("\\n" + json.dumps(result))
"""
)


def _ask(code, folder):
    inputs = batch()
    arguments = [json.dumps(inputs[name].tolist()) for name in ("input_ids", "attention_mask")]
    return json.loads(run_python("-c", code, str(folder), *arguments).splitlines()[-1])


def _tokenizer():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "good": 2, "bad": 3, "film": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    model = unevenly_cut(tiny_bert())
    folder = dsee.save(model, tmp_path_factory.mktemp("cut") / "out", tokenizer=_tokenizer())
    return model, _ask(WITH_DSEE, folder)


def test_auto_config_knows_the_type_and_the_layers(cut):
    model, said = cut
    assert said["config"] == ["dsee_" + model.config.model_type, model.config.dsee_structure]


def test_auto_model_for_a_task_gives_the_same_logits(cut):
    model, said = cut
    assert said["AutoModelForSequenceClassification"]["class"] == type(model).__name__
    assert torch.equal(torch.tensor(said["AutoModelForSequenceClassification"]["output"]), logits(model))


def test_auto_model_gives_the_same_hidden_states(cut):
    model, said = cut
    with torch.no_grad():
        hidden = model.base_model(**batch())[0]
    assert torch.equal(torch.tensor(said["AutoModel"]["output"]), hidden)


def test_auto_tokenizer_finds_the_tokenizer_saved_along(cut):
    assert cut[1]["AutoTokenizer"] == [[2, 4], [3, 1]]


def test_every_family_is_known_to_the_auto_classes(family, tmp_path):
    model = unevenly_cut(family())
    loaded = AutoModelForSequenceClassification.from_pretrained(dsee.save(model, tmp_path / "out"))
    assert torch.equal(logits(loaded), logits(model))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    merged = dsee.merge(adapted(tiny_bert(1)))
    dsee.save(tiny_bert(), folder / "stock")
    dsee.save(merged, folder / "merged")
    dsee.save(unevenly_cut(tiny_bert()), folder / "cut")
    return merged, folder, _ask(WITHOUT_DSEE, folder)


def test_the_process_without_dsee_had_none(plain):
    assert plain[2]["dsee"] is False


def test_an_uncut_model_keeps_its_type(plain):
    _, folder, _ = plain
    for name in ("stock", "merged"):
        assert json.loads((folder / name / "config.json").read_text())["model_type"] == "bert"
        assert read_manifest(folder / name).structure is None
        assert type(dsee.load(folder / name)).__module__.startswith("transformers.")


def test_an_uncut_model_loads_without_dsee(plain):
    _, _, said = plain
    assert said["stock"]["module"].startswith("transformers.")
    assert torch.equal(torch.tensor(said["stock"]["output"]), logits(tiny_bert()))
    assert said["stock base"] == "BertModel"


def test_a_merged_but_uncut_model_loads_without_dsee(plain):
    merged, _, said = plain
    assert torch.equal(torch.tensor(said["merged"]["output"]), logits(merged))
    assert said["merged base"] == "BertModel"


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
def test_a_cut_model_stops_without_dsee_and_the_error_names_its_type(plain, auto):
    kind, message = plain[2][auto]
    assert kind == "ValueError"
    assert "dsee_bert" in message
