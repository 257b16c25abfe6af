"""Updates without their base: many tasks, one pruned base, and a fingerprint that knows a wrong one."""

import json
import shutil

import pytest
import torch
from artifact_tools import bytes_of, rehash

import dsee
from conftest import adapted, batch, logits, tiny_bert
from cut_families import answer, build, task_type
from dsee.artifact import read_manifest
from dsee.artifact.fingerprint import BASE
from dsee.errors import ArtifactError
from dsee.measure import folder_bytes
from dsee.pruning.targets import mask_targets
from update.models import scrambled

RULE = dsee.Weights(0.5, score="weight")
TASKS = ("reviews", "news", "mail")


def tuned(base, seed=3, **config):
    return scrambled(adapted(base, support="random", **config), seed=seed)


def pruned_base(**changes):
    base = tiny_bert(**changes)
    dsee.prune(base, RULE)
    return base


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One update for each task, all tuned on the same pruned base, and its logits."""
    place, expected = tmp_path_factory.mktemp("tasks"), {}
    for seed, task in enumerate(TASKS):
        # one of them keeps to the mask
        model = tuned(pruned_base(), seed, masked=task == "news")
        expected[task] = logits(model)
        dsee.save(model, place / task, base=False)
    return place, expected


def test_it_ships_update_mask_and_fingerprint_and_no_base(tmp_path, capsys):
    model = tuned(pruned_base())
    out, whole = dsee.save(model, tmp_path / "out", base=False), dsee.save(model, tmp_path / "whole")
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    adapter = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert names == {"README.md", "dsee.json", "masks.safetensors", BASE} | adapter
    manifest = read_manifest(out)
    assert (manifest.kind, manifest.format) == ("update", 2)
    assert folder_bytes(out) < 0.6 * folder_bytes(whole)
    assert 'dsee.load("this-folder", base=base)' in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_original_base_is_pruned_on_loading(tmp_path, name):
    targets = {"gpt2": ["c_attn"], "llama": ["q_proj"]}.get(name, ["query"])
    model = tuned(build(name), task_type=task_type(name), target_modules=targets)
    dsee.prune(model, dsee.NofM(2, 4, score="weight"))
    out = dsee.save(model, tmp_path / "out", base=False)
    loaded = dsee.load(out, base=build(name))
    assert torch.equal(answer(loaded, name), answer(model, name))
    for one, other in zip(mask_targets(loaded), mask_targets(model), strict=True):
        assert torch.equal(one.mask, other.mask)
    assert dsee.history(loaded) == dsee.history(model)
    assert bytes_of(dsee.save(loaded, tmp_path / "again", base=False)) == bytes_of(out)


@pytest.mark.parametrize("compact", [False, True])
def test_a_base_from_a_folder_of_its_own_takes_them_all(folders, tmp_path, compact):
    place, expected = folders
    model = dsee.load(dsee.save(pruned_base(), tmp_path / "base", compact=compact))
    for task in TASKS:
        model = dsee.load(place / task, base=model, adapter=task)
        assert model.active_adapters == [task]
        torch.testing.assert_close(logits(model), expected[task], rtol=0, atol=0)
    # each request by its own task
    for task in reversed(TASKS):
        model.set_adapter(task)
        assert torch.equal(logits(model), expected[task])
    # and all of them in one batch
    names = [TASKS[0], TASKS[1], "__base__", TASKS[2]]
    with torch.no_grad():
        mixed = model(**batch(), adapter_names=names).logits
    for row, name in enumerate(names):
        if name != "__base__":
            torch.testing.assert_close(mixed[row], expected[name][row], rtol=0, atol=1e-5)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(mixed[2], model(**batch()).logits[2], rtol=0, atol=1e-5)


def test_merging_one_after_the_other_leaves_no_trace(folders):
    place, expected = folders
    base = pruned_base()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = base
    for task in TASKS:
        model = dsee.load(place / task, base=model, adapter=task)
    for _ in range(3):
        for task in TASKS:
            model.set_adapter(task)
            model.merge_adapter()
            torch.testing.assert_close(logits(model), expected[task], rtol=0, atol=1e-4)
            for target in mask_targets(model) if task == "news" else []:
                assert not target.weight[~target.mask].any()
            model.unmerge_adapter()
            assert torch.equal(logits(model), expected[task])
    inner = model.get_base_model()
    assert all(
        torch.equal(value, before[name.replace(".base_layer", "").replace(".original_module", "")])
        for name, value in inner.state_dict().items()
        if "dsee_" not in name and "modules_to_save" not in name
    )


def test_tuning_goes_on(folders):
    from update.models import train_step

    model = dsee.load(folders[0] / "news", base=pruned_base(), trainable=True)
    before = logits(model)
    train_step(model)
    assert not torch.equal(logits(model.eval()), before)


def test_a_head_that_the_update_brings_may_be_any_in_the_base(folders):
    place, expected = folders
    base = pruned_base()
    torch.nn.init.normal_(base.classifier.weight)
    assert torch.equal(logits(dsee.load(place / "mail", base=base)), expected["mail"])


def other_weights():
    base = pruned_base()
    weight = base.bert.encoder.layer[1].output.dense.weight.data
    row, column = weight.nonzero()[0].tolist()
    weight[row, column] *= 1 + 1e-6
    return base


def other_mask():
    base = tiny_bert()
    dsee.prune(base, dsee.Weights(0.5, score="random"))
    return base


def cut():
    base = tiny_bert()
    dsee.prune(base, dsee.Heads(1, score="weight"))
    return base


def unadapted_weight():
    base = pruned_base()
    base.bert.embeddings.word_embeddings.weight.data[7] = 0.0
    return base


WRONG = {
    "weights": (other_weights, r"layer.1.output.dense.weight has other weights \(1 of \d+ tensors differ\)"),
    "mask": (other_mask, "has other weights"),
    "embedding": (unadapted_weight, "word_embeddings.weight has other weights"),
    "dtype": (lambda: pruned_base().bfloat16(), "is bfloat16.*, not float32"),
    "width": (lambda: tiny_bert(intermediate_size=48), "does not fit this base .A mask of 48 x 32"),
    "depth": (lambda: tiny_bert(num_hidden_layers=2), "mask of bert.encoder.layer.2.* does not fit this base"),
    "cut": (cut, r"update for another base|does not fit this base"),
    "family": (lambda: build("distilbert"), "does not fit this base"),
}


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_a_wrong_base_is_refused_and_left_as_it_was(folders, wrong):
    make, message = WRONG[wrong]
    base = make()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    with pytest.raises(ArtifactError, match=message):
        dsee.load(folders[0] / "reviews", base=base)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not hasattr(base, "peft_config")


def test_arguments_that_do_not_go_together_are_refused(folders, tmp_path):
    place, _ = folders
    with pytest.raises(dsee.InputError, match="update without its base"):
        dsee.load(place / "mail")
    with pytest.raises(dsee.InputError, match="'bert' is no model"):
        dsee.load(place / "mail", base="bert")
    model = dsee.load(place / "mail", base=pruned_base())
    with pytest.raises(dsee.InputError, match="has an adapter 'default' already"):
        dsee.load(place / "news", base=model)
    whole = dsee.save(tuned(tiny_bert()), tmp_path / "whole")
    with pytest.raises(dsee.InputError, match="brings its own base"):
        dsee.load(whole, base=tiny_bert())
    plain = dsee.save(tiny_bert(), tmp_path / "plain")
    with pytest.raises(dsee.InputError, match="renames one update"):
        dsee.load(plain, adapter="x")
    with pytest.raises(dsee.InputError, match="carries no update"):
        dsee.save(tiny_bert(), tmp_path / "none", base=False)
    with pytest.raises(dsee.InputError, match="trained biases of its base"):
        dsee.save(tuned(tiny_bert(), bias="all"), tmp_path / "none", base=False)
    with pytest.raises(dsee.InputError, match="kind 'adapted'"):
        dsee.save(model, whole, base=False)
    assert not (tmp_path / "none").exists()


def test_several_updates_in_one_folder(tmp_path):
    model = tuned(pruned_base())
    model.add_adapter("second", dsee.DseeConfig(task_type="SEQ_CLS", r=2, n_sparse=5, support="random"))
    scrambled(model, "second", 4).eval()
    loaded = dsee.load(dsee.save(model, tmp_path / "out", base=False), base=tiny_bert())
    for name in ("default", "second"):
        loaded.set_adapter(name), model.set_adapter(name)
        assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"tensors": {}}', '{"tensors": [], "trained": []}', "[" * 200_000]
)
def test_a_fingerprint_that_is_none_is_refused(folders, tmp_path, text):
    copy = shutil.copytree(folders[0] / "news", tmp_path / "copy")
    (copy / BASE).write_text(text)
    with pytest.raises(ArtifactError, match=BASE):
        dsee.load(rehash(copy), base=pruned_base())


def test_a_fingerprint_that_names_less_is_refused(folders, tmp_path):
    copy = shutil.copytree(folders[0] / "news", tmp_path / "copy")
    content = json.loads((copy / BASE).read_text())
    content["tensors"].popitem()
    (copy / BASE).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="only one of the two has"):
        dsee.load(rehash(copy), base=pruned_base())
