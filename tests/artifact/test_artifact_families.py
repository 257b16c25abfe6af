"""Cut models of every other family come back from disk and go on writing."""

import json

import pytest
import torch
from artifact_tools import UNEVEN, bytes_of, run_python
from transformers import AutoConfig

import dsee
from conftest import adapted
from cut_families import DECODERS, HEADED, LINEARS, NAMES, T5S, answer, build, inputs, task_type
from dsee.architectures import structure
from dsee.pruning import LayerPlan
from dsee.surgery import cut


def unevenly_cut(name, model=None):
    model = model or build(name)
    cut(model, UNEVEN if name in HEADED else [LayerPlan(neurons=layer.neurons) for layer in UNEVEN])
    return model


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name, tmp_path):
    model = unevenly_cut(name)
    first = dsee.save(model, tmp_path / "first")
    loaded = dsee.load(first)
    assert type(loaded).__name__ == type(model).__name__
    assert structure(loaded) == structure(model)
    assert torch.equal(answer(loaded, name), answer(model, name))
    assert bytes_of(first) == bytes_of(dsee.save(loaded, tmp_path / "second"))


@pytest.mark.parametrize("name", [*DECODERS, *T5S])
def test_a_loaded_model_generates_the_same(name, tmp_path):
    model = unevenly_cut(name)
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    given = {key: inputs(name, 2, 6)[key][:1] for key in ("input_ids", "attention_mask")}
    written = [each.generate(**given, max_new_tokens=8, min_new_tokens=8, do_sample=False) for each in (model, loaded)]
    assert torch.equal(*written)


@pytest.mark.parametrize("name", NAMES)
def test_an_update_beside_a_cut_base(name, tmp_path):
    base = unevenly_cut(name)
    model = adapted(base, target_modules=LINEARS, task_type=task_type(name), support="random")
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert torch.equal(answer(loaded, name), answer(model, name))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_classifier_on_a_decoder(name, tmp_path):
    model = unevenly_cut(name, build(name, task="SEQ_CLS"))
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    given = inputs("bert")
    with torch.no_grad():
        assert torch.equal(loaded(**given).logits, model(**given).logits)


def test_tied_embeddings_stay_tied(tmp_path):
    loaded = dsee.load(dsee.save(unevenly_cut("llama"), tmp_path / "out"))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


PLAIN = """
import json, sys
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
said = {}
for folder in sys.argv[1:]:
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        try:
            auto.from_pretrained(folder)
        except ValueError as error:
            said.setdefault(folder, []).append(str(error))
assert "dsee" not in sys.modules
print("\\n" + json.dumps(said))
"""


def test_without_dsee_they_stop_at_their_type(tmp_path):
    folders = [dsee.save(unevenly_cut(name), tmp_path / name) for name in ("gpt2", "qwen3", "t5", "deberta-v3")]
    said = json.loads(run_python("-c", PLAIN, *map(str, folders)).splitlines()[-1])
    for folder in folders:
        model_type = AutoConfig.from_pretrained(folder).model_type
        assert len(said[str(folder)]) == 3
        assert all(model_type in message for message in said[str(folder)])
        assert model_type.startswith("dsee_")


def test_a_t5_whose_configuration_claims_fewer_heads_is_refused(tmp_path):
    from artifact_tools import edit_config

    out = dsee.save(unevenly_cut("t5"), tmp_path / "out")
    edit_config(out, dsee_structure={"heads": [3, 4, 4], "neurons": [35, 39, 13]})
    with pytest.raises(dsee.ArtifactError, match="heads of this family cannot be cut"):
        dsee.load(out)


STOCK = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
torch.set_num_threads(1)
said = {}
for folder in sys.argv[1:]:
    auto = AutoModelForSeq2SeqLM if "t5" in folder else AutoModelForCausalLM
    model = auto.from_pretrained(folder).eval()
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, **({"decoder_input_ids": ids} if "t5" in folder else {})).logits
    said[folder] = [type(model).__module__, logits.tolist(), model.generate(input_ids=ids, max_new_tokens=5).tolist()]
assert "dsee" not in sys.modules
print("\\n" + json.dumps(said))
"""
UNIFORM = ("llama", "qwen2", "qwen3", "mistral", "t5", "t5 gated")


def uniformly_cut(name, heads=2):
    model = build(name)
    cut(model, [LayerPlan((0, 1, 3)[:heads] if name in HEADED else (), tuple(range(8)))] * 3)
    return model


def test_a_uniform_cut_is_a_stock_checkpoint(tmp_path):
    models = {name: uniformly_cut(name) for name in UNIFORM}
    folders = {name: dsee.save(model, tmp_path / name) for name, model in models.items()}
    said = json.loads(run_python("-c", STOCK, *map(str, folders.values())).splitlines()[-1])
    for name, model in models.items():
        ids = torch.arange(5, 11)[None]
        with torch.no_grad():
            logits = model(input_ids=ids, **({"decoder_input_ids": ids} if name in T5S else {})).logits
        module, stock, written = said[str(folders[name])]
        assert module.startswith("transformers.")
        assert torch.equal(torch.tensor(stock), logits)
        assert written == model.generate(input_ids=ids, max_new_tokens=5).tolist()


@pytest.mark.parametrize("name", UNIFORM)
def test_a_stock_checkpoint_is_an_artifact_like_others(name, tmp_path):
    model = uniformly_cut(name)
    first = dsee.save(model, tmp_path / "first")
    loaded = dsee.load(first)
    assert structure(loaded) == structure(model)
    assert torch.equal(answer(loaded, name), answer(model, name))
    assert bytes_of(first) == bytes_of(dsee.save(loaded, tmp_path / "second"))
    dsee.prune(loaded, dsee.Neurons(explicit={0: [0]}))
    again = dsee.load(dsee.save(loaded, tmp_path / "third"))
    assert again.config.model_type.startswith("dsee_")
    assert torch.equal(answer(again, name), answer(loaded, name))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_uniform_cut_that_no_stock_class_can_hold_has_a_type_of_its_own(name, tmp_path):
    # three of four times two heads on a width of 32: more than Llama's configuration accepts
    model = uniformly_cut(name, heads=1)
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert loaded.config.model_type == "dsee_" + model.config.model_type
    assert torch.equal(answer(loaded, name), answer(model, name))


def test_an_uneven_model_that_becomes_uniform_becomes_stock(tmp_path):
    model = build("qwen3")
    cut(model, [LayerPlan(neurons=(0,)), LayerPlan(), LayerPlan()])
    loaded = dsee.load(dsee.save(model, tmp_path / "uneven"))
    assert loaded.config.model_type == "dsee_qwen3"
    dsee.prune(loaded, dsee.Neurons(explicit=[[], [0], [0]]))
    again = dsee.load(dsee.save(loaded, tmp_path / "uniform"))
    assert again.config.model_type == "qwen3"
    assert torch.equal(answer(again, "qwen3"), answer(loaded, "qwen3"))


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("gpt2", "AutoModelForCausalLM"),
        ("t5", "AutoModelForSeq2SeqLM"),
        ("deberta-v3", "AutoModelForSequenceClassification"),
    ],
)
def test_the_card_names_the_auto_class(name, auto, tmp_path):
    model = build(name)
    dsee.prune(model, dsee.Neurons(explicit=[[0], [], [3]]))
    said = (dsee.save(model, tmp_path / "out") / "README.md").read_text()
    assert f"transformers.{auto}.from_pretrained" in said
    assert "neurons as named" in said
