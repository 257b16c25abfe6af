"""Cut models of every other family come back from disk and go on writing."""

import json

import pytest
import torch
from artifact_tools import UNEVEN, bytes_of, run_python
from transformers import AutoConfig

import dsee
from conftest import adapted
from dsee.architectures import structure
from dsee.pruning import LayerPlan
from dsee.surgery import cut
from families import DECODERS, HEADED, LINEARS, NAMES, T5S, answer, build, inputs, task_type


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
