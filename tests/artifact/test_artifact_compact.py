"""Compact folders: the same model in fewer bytes, read by dsee.load and the Auto classes, refused by plain ones."""

import json
import shutil

import pytest
import torch
from artifact_tools import bytes_of, edit_config, rehash, run_python
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import dsee
from conftest import adapted, logits, tiny_bert
from cut_families import answer, build
from dsee.artifact import read_manifest
from dsee.artifact.compact import INDEX, read_state, shapes_of
from dsee.errors import ArtifactError
from dsee.measure import folder_bytes
from dsee.pruning.targets import mask_targets
from dsee.update.side import SideBranch
from update.models import scrambled

RULES = {
    "weights": dsee.Weights(0.5, score="weight"),
    "blocks": dsee.Blocks(0.5, score="weight"),
    "2:4": dsee.NofM(2, 4, score="weight"),
}
KINDS = {"weights": "bitmask", "blocks": "blocks", "2:4": "2:4"}


def masks_of(model):
    return {target.name: target.mask for target in mask_targets(model) if target.mask is not None}


def assert_same(loaded, model, name="bert"):
    assert torch.equal(answer(loaded, name), answer(model, name))
    first, second = masks_of(loaded), masks_of(model)
    assert list(first) == list(second)
    assert all(torch.equal(first[path], second[path]) for path in first)
    assert dsee.history(loaded) == dsee.history(model)


def pruned(name="bert", rule="weights", **config):
    model = build(name)
    dsee.prune(model, RULES[rule])
    return model


def index(folder):
    return json.loads((folder / INDEX).read_text())


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_same_model_masks_and_bytes_come_back(tmp_path, name, rule):
    model = pruned(name, rule)
    out = dsee.save(model, tmp_path / "out", compact=True)
    assert {facts["kind"] for facts in index(out)["tensors"].values()} == {KINDS[rule]}
    loaded = dsee.load(out)
    assert_same(loaded, model, name)
    assert type(loaded).__module__.startswith("transformers."), "to be compact is a matter of files"
    assert bytes_of(dsee.save(loaded, tmp_path / "again", compact=True)) == bytes_of(out)
    plain = dsee.save(model, tmp_path / "plain")
    assert bytes_of(dsee.save(loaded, tmp_path / "plain again")) == bytes_of(plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back(tmp_path, dtype):
    model = pruned().to(dtype)
    loaded = dsee.load(dsee.save(model, tmp_path / "out", compact=True))
    assert loaded.dtype == dtype
    assert_same(loaded, model)
    assert dsee.load(tmp_path / "out", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_arguments_reach_the_loader(tmp_path, compact, cut):
    model = pruned()
    if cut:
        dsee.prune(model, dsee.Heads(1, score="weight"))
    out = dsee.save(model, tmp_path / "out", compact=compact)
    wanted = {"dtype": torch.bfloat16, "attn_implementation": "eager", "output_hidden_states": True}
    for loaded in (dsee.load(out, **wanted), AutoModelForSequenceClassification.from_pretrained(out, **wanted)):
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        assert loaded.config._attn_implementation == "eager"
        assert loaded(torch.tensor([[5, 6]])).hidden_states is not None


@pytest.mark.parametrize("rule", sorted(RULES))
def test_cut_models_and_updates_beside_their_base_come_back(tmp_path, rule):
    model = scrambled(adapted(tiny_bert()))
    dsee.prune(model, dsee.Heads(1), dsee.Neurons(4), RULES[rule])
    loaded = dsee.load(dsee.save(model, tmp_path / "adapted", compact=True))
    assert_same(loaded, model)
    with pytest.warns(UserWarning, match="every zero kept"):
        merged = dsee.merge(model, policy="masked")
    loaded = dsee.load(dsee.save(merged, tmp_path / "merged", compact=True))
    assert_same(loaded, merged)
    assert loaded.config.model_type == "dsee_bert"


# merging says what it dropped of the update at the zeros; other tests look at that
@pytest.mark.filterwarnings("ignore:merge. every zero kept")
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_branches_of_a_split_merge_come_back(tmp_path, name, cut, compact):
    task = "SEQ_CLS" if name == "bert" else "CAUSAL_LM"
    targets = ["query", "intermediate.dense"] if name == "bert" else ["c_attn", "c_fc"]
    model = adapted(build(name), n_sparse=150, support="random", task_type=task, target_modules=targets)
    dsee.prune(scrambled(model), *([dsee.Neurons(4, score="weight")] if cut else []), RULES["weights"])
    merged = dsee.merge(model, policy="split")
    out = dsee.save(merged, tmp_path / "out", compact=compact)
    loaded = dsee.load(out)
    assert_same(loaded, merged, name)
    assert bytes_of(dsee.save(loaded, tmp_path / "again", compact=compact)) == bytes_of(out)
    auto = AutoModelForSequenceClassification if name == "bert" else AutoModelForCausalLM
    assert torch.equal(answer(auto.from_pretrained(out).eval(), name), answer(merged, name))
    assert read_manifest(out).format == 2
    body = AutoModel.from_pretrained(out)
    assert sum("side_up" in key for key in body.state_dict()) == sum("side_up" in key for key in merged.state_dict())
    assert any(isinstance(module, SideBranch) for module in body.modules())


def test_it_is_about_half_of_the_dense_bytes_and_never_more(tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    for ratio, most in [(0.5, 0.54), (0.9, 0.14)]:
        model = tiny_bert(**sizes)
        names = [target.name for target in mask_targets(model)]
        whole = sum(target.weight.numel() * 4 for target in mask_targets(model))
        dense = dsee.save(model, tmp_path / "dense")
        rest = (dense / "model.safetensors").stat().st_size - whole
        dsee.prune(model, dsee.Weights(ratio, score="weight"))
        out = dsee.save(model, tmp_path / "out", compact=True)
        assert len(names) == len(index(out)["tensors"]) == 12
        stored = sum((out / name).stat().st_size for name in ("compact.safetensors", INDEX))
        assert (stored - rest) / whole <= most


@pytest.mark.parametrize("ratio", [0.01, 0.03, 0.06, 0.2, 0.5])
def test_it_is_never_more_than_the_plain_folder(tmp_path, ratio):
    model = pruned()
    for target in mask_targets(model):
        dsee.pruning.set_mask(target.linear, None)
        target.linear.weight.data.normal_()
    dsee.prune(model, dsee.Weights(ratio, score="weight"))
    out, plain = dsee.save(model, tmp_path / "out", compact=True), dsee.save(model, tmp_path / "plain")
    assert_same(dsee.load(out), model)
    # a line more in the manifest and the configuration, and another card
    assert folder_bytes(out) <= folder_bytes(plain) + 400


def test_a_model_without_zeros_stays_a_stock_checkpoint(tmp_path):
    out = dsee.save(tiny_bert(), tmp_path / "out", compact=True)
    assert bytes_of(out) == bytes_of(dsee.save(tiny_bert(), tmp_path / "plain"))
    assert read_manifest(out).format == 1


def test_zeros_without_a_mask_are_encoded_and_make_no_mask(tmp_path):
    model = tiny_bert()
    query = model.bert.encoder.layer[0].attention.self.query
    query.weight.data[torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) < 0.6] = 0.0
    query.weight.data[0, 0] = -0.0
    out = dsee.save(model, tmp_path / "out", compact=True)
    assert len(index(out)["tensors"]) == 1
    loaded = dsee.load(out)
    assert not masks_of(loaded)
    assert torch.signbit(loaded.bert.encoder.layer[0].attention.self.query.weight[0, 0])


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_shards_and_device_maps(tmp_path, name, compact):
    model = pruned(name)
    out = dsee.save(model, tmp_path / "out", compact=compact, max_shard_size="20KB")
    files = sorted(path.name for path in out.glob("*.safetensors") if path.name != "masks.safetensors")
    assert len(files) > 2
    assert all("-of-" in file for file in files)
    assert_same(dsee.load(out), model, name)
    assert_same(dsee.load(out, device_map="auto"), model, name)
    auto = AutoModelForSequenceClassification if name == "bert" else AutoModelForCausalLM
    for placed in (None, "cpu", {"": "cpu"}, "auto"):
        assert torch.equal(answer(auto.from_pretrained(out, device_map=placed).eval(), name), answer(model, name))
    loaded, report = auto.from_pretrained(out, output_loading_info=True)
    assert torch.equal(answer(loaded.eval(), name), answer(model, name))
    assert not report["missing_keys"]
    (out / files[1]).unlink()
    with pytest.raises(ArtifactError, match=files[1]):
        dsee.load(out)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_cut_models_in_shards_are_placed_by_a_device_map(tmp_path, name, compact):
    model = build(name)
    dsee.prune(model, dsee.Heads(1, score="weight"), dsee.Neurons(8, score="weight"), RULES["blocks"])
    out = dsee.save(model, tmp_path / "out", compact=compact, max_shard_size="20KB")
    assert len(list(out.glob("*-of-*.safetensors"))) > 2
    auto = AutoModelForSequenceClassification if name == "bert" else AutoModelForCausalLM
    for placed in (None, "auto", {"": "cpu"}):
        loaded = auto.from_pretrained(out, device_map=placed).eval()
        assert type(loaded).__module__ == "dsee.artifact.auto"
        assert torch.equal(answer(loaded, name), answer(model, name))
    assert_same(dsee.load(out, device_map="auto"), model, name)


@pytest.mark.parametrize("cut", [False, True])
def test_the_body_alone_and_an_empty_model_of_its_configuration(tmp_path, cut):
    model = pruned()
    if cut:
        dsee.prune(model, dsee.Heads(1, score="weight"))
    out = dsee.save(model, tmp_path / "out", compact=True)
    body = AutoModel.from_pretrained(out).eval()
    for key, value in body.state_dict().items():
        assert torch.equal(value, model.state_dict()[f"bert.{key}"])
    empty = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(out))
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_generation_goes_on_with_its_settings(tmp_path):
    model = pruned("gpt2")
    model.generation_config.max_new_tokens = 3
    loaded = dsee.load(dsee.save(model, tmp_path / "out", compact=True))
    assert loaded.generation_config.max_new_tokens == 3
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.generate(ids, do_sample=False), model.generate(ids, do_sample=False))


@pytest.mark.slow
def test_plain_transformers_stops_at_the_type(tmp_path):
    out = dsee.save(pruned(), tmp_path / "out", compact=True)
    code = """
import sys
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification
for one in (AutoModelForSequenceClassification, BertForSequenceClassification):
    try:
        one.from_pretrained(sys.argv[1])
    except Exception as error:
        print(type(error).__name__, str(error).replace("\\n", " ")[:200])
print("dsee" in sys.modules)
"""
    said = run_python("-c", code, str(out)).splitlines()[-3:]
    assert said[0].startswith("ValueError")
    assert "dsee_bert" in said[0]
    assert said[1].startswith("OSError")
    assert "model.safetensors" in said[1]
    assert said[2] == "False"


def test_a_family_that_transformers_does_not_know_is_refused(tmp_path):
    model = pruned()
    model.config.model_type = "mine"
    with pytest.raises(dsee.InputError, match="knows no model_type 'mine'"):
        dsee.save(model, tmp_path / "out", compact=True)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return dsee.save(pruned(), tmp_path_factory.mktemp("compact") / "out", compact=True)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def edit_index(folder, change):
    content = index(folder)
    change(content)
    (folder / INDEX).write_text(json.dumps(content))
    return rehash(folder)


def load_whole(folder):
    _, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    # transformers puts random numbers where a tensor is missing, and says so
    if report["missing_keys"]:
        raise OSError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), "format 2; this dsee reads up to 1.*pip install --upgrade dsee"),
        (lambda c: c.update(format=True), "is damaged"),
        (lambda c: c.update(files="x"), "is damaged"),
        (lambda c: c.update(files=["../compact.safetensors"]), "is damaged"),
        (lambda c: c.update(files=["nowhere.safetensors"]), "nowhere"),
        (lambda c: c.update(files=["config.json"]), "is damaged"),
        (lambda c: c.update(files=[]), "in none of its files"),
        (lambda c: c.update(tensors=[]), "is damaged"),
        (lambda c: c.update(more=1), "is damaged"),
        (lambda c: c["tensors"].update({"nowhere": c["tensors"][QUERY]}), "nowhere is in compact.json, but in none"),
        (lambda c: c["tensors"].pop(QUERY), "query"),
        (lambda c: c["tensors"][QUERY].update(shape=[2**30, 2**30]), "query.*damaged"),
        (lambda c: c["tensors"][QUERY].update(kind="blocks", block=[2**30, 2**30], shape=[2**30, 8]), "query"),
        (lambda c: c["tensors"][QUERY].update(shape=[16, 64]), "query.weight is damaged: it is stored as .16, 64."),
        (lambda c: c["tensors"][QUERY].update(kind="2:4"), "query.weight is damaged"),
        (lambda c: c["tensors"][QUERY].update(kind="nosuch"), "does not say how a matrix is stored"),
    ],
)
def test_an_index_that_lies_is_refused_by_both_loaders(folder, change, message):
    edit_index(folder, change)
    with pytest.raises(ArtifactError, match=message):
        dsee.load(folder)
    with pytest.raises((ArtifactError, OSError)):
        load_whole(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 200_000], ids=["0", "1", "2", "3", "4", "deep"])
def test_an_index_that_is_none_is_refused(folder, text):
    (folder / INDEX).write_text(text)
    with pytest.raises(ArtifactError, match=INDEX):
        dsee.load(rehash(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY + ".dsee_values"), "query.weight is damaged"),
        (lambda t: t.pop(QUERY + ".dsee_bits"), "query.weight is in compact.json, but in none"),
        (lambda t: t.update({QUERY + ".dsee_bits": t[QUERY + ".dsee_bits"][:5].clone()}), "query.weight is damaged"),
        (lambda t: t.update({QUERY + ".dsee_values": t[QUERY + ".dsee_values"][:5].clone()}), "bits ask for"),
        (lambda t: t.update({QUERY + ".dsee_values": torch.zeros(3, 3)}), "bits ask for"),
        (lambda t: t.pop("classifier.weight"), "classifier.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, change, message):
    tensors = load_file(folder / "compact.safetensors")
    change(tensors)
    save_file(tensors, folder / "compact.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=message):
        dsee.load(rehash(folder))


def test_a_few_bits_that_claim_to_be_a_huge_matrix_are_not_written_out(folder):
    tensors = load_file(folder / "compact.safetensors")
    tensors |= {"more.weight.dsee_bits": torch.zeros(1, dtype=torch.uint8), "more.weight.dsee_values": torch.zeros(0)}
    save_file(tensors, folder / "compact.safetensors", metadata={"format": "pt"})
    huge = {"kind": "blocks", "shape": [2**20, 2**20], "block": [2**20, 2**20], "transposed": False, "mask": False}
    edit_index(folder, lambda content: content["tensors"].update({"more.weight": huge}))
    with pytest.raises(ArtifactError, match="larger than all of the model's"):
        dsee.load(folder)


@pytest.mark.parametrize("flag", [False, None, 0])
def test_a_configuration_that_denies_it_is_refused(folder, flag):
    edit_config(folder, dsee_compact=flag)
    with pytest.raises(ArtifactError, match=r"config\.json: dsee_structure has to hold"):
        dsee.load(folder)


@pytest.mark.parametrize(
    "sides",
    [
        [],
        {"nowhere": [1, 1]},
        {"bert": [1, 1]},
        {QUERY: [1, 1]},
        {"bert.encoder.layer.0.attention.self.query": [2**40, 0]},
    ]
    + [{"bert.encoder.layer.0.attention.self.query": sizes} for sizes in ([1], "12", [-1, 0], [True, 1], [0, 2**40])],
    ids=str,
)
def test_branches_that_cannot_be_are_refused(folder, sides):
    edit_config(folder, dsee_sides=sides)
    with pytest.raises(ArtifactError, match=r"config\.json: dsee_sides"):
        dsee.load(folder)


@pytest.mark.parametrize("ratio", [0.5, 0.02])
def test_inspect_tells_the_zeros_and_counts_what_is_written_out(tmp_path, capsys, ratio):
    from dsee.cli.inspect import inspect

    model = tiny_bert()
    dsee.prune(model, dsee.Weights(ratio, score="weight", targets=["query"]), dsee.Weights(0.6, score="weight"))
    inspect(dsee.save(model, tmp_path / "out", compact=True))
    text = capsys.readouterr().out
    assert "zeros       60.0% of 19,968 weights in 18 matrices" in text
    assert f"parameters  {sum(p.numel() for p in model.parameters()):,}" in text


def test_headers_alone_tell_the_shapes(saved):
    state = read_state(saved, shapes_of(saved))
    assert shapes_of(saved) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert {n: tuple(t.shape) for n, t in tiny_bert().state_dict().items()}.items() <= shapes_of(saved).items()
    assert logits(dsee.load(saved)) is not None
