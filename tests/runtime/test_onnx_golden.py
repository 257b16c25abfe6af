"""Exports that a release has written run in every later one, with and without a cache, and write what torch wrote."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx_tools import rehash, run_python
from write_golden_onnx import END, GOLDEN, PROMPTS

import dsee
from dsee import ArtifactError, InputError
from dsee.artifact.manifest import read_manifest, write_manifest
from dsee.runtime import OnnxModel, generation
from dsee.runtime.asked import StoredDecoding
from dsee.runtime.generation import Rereading, greedy

FOLDERS = sorted(path for path in GOLDEN.glob("*/*") if path.is_dir())
CACHED = GOLDEN / "0.1.0" / "gpt2-cached"


def expected(folder):
    return json.loads((folder.parent / "expected.json").read_text())[folder.name]


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(CACHED, tmp_path / "out")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: "-".join(path.parts[-2:]))
def test_a_golden_export_writes_what_it_wrote(folder):
    model, wanted = OnnxModel(folder), expected(folder)
    assert model.cached == ("cached" in folder.name)
    assert model.generate(wanted["prompts"], 8) == wanted["tokens"]
    ids = np.array([[5, 6, 7]])
    logits = model.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert logits.shape == (1, 3, 20)
    np.testing.assert_allclose(logits[0, -1], wanted["logits"], rtol=1e-4, atol=1e-4)


def test_this_release_has_golden_exports():
    assert {path.name for path in FOLDERS if path.parent.name == dsee.__version__} >= {"gpt2-cached"}


def test_beams_and_what_stood_around_prompts_come_from_the_manifest(copy):
    model = OnnxModel(copy)
    assert model.asked.decoding.beams == 4
    assert model.write(PROMPTS) == expected(CACHED)["texts"]
    manifest = read_manifest(copy)
    manifest.facts["writing"] |= {"before": "two ", "after": " good"}
    write_manifest(copy, manifest)
    ids = [e.ids for e in model._whole_tokenizer().encode_batch(["two bad good"])]
    assert OnnxModel(copy).write(["bad"], 5) == model.write_after(ids, StoredDecoding(4, 0.8, 3, 5))
    with pytest.raises(InputError, match="does not say how its model was asked"):
        OnnxModel(FOLDERS[-1]).write(["bad"])


def test_the_cache_changes_no_token_whatever_stands_beside_it(monkeypatch):
    model = OnnxModel(CACHED)
    rows = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14], [15, 16, 17, 18], [6]]
    again = Rereading(model.run, start=None, vocabulary=model.vocab_size)
    wanted = [greedy(again, [row], 12, {END})[0] for row in rows]
    assert greedy(model.writer(), rows, 12, {END}) == wanted
    # prompts are read in parts where their logits would fill the memory
    monkeypatch.setattr(generation, "LOGITS", 1200)
    assert greedy(model.writer(), rows, 12, {END}) == wanted


def test_a_step_reads_one_token_and_no_row_that_has_ended():
    model, shapes = OnnxModel(CACHED), []
    writer = model.writer()
    real = writer._session

    class Session:
        get_inputs, run = real.get_inputs, real.run

        @staticmethod
        def run_with_ort_values(names, inputs):
            shapes.append((tuple(inputs["input_ids"].shape()), tuple(inputs["past_key_values.1.key"].shape())))
            return real.run_with_ort_values(names, inputs)

    writer._session = Session
    found = greedy(writer, [[5, 6, 7, 8], [12, 6]], 4, {19})
    assert all(len(row) == 4 or row[-1] == 19 for row in found)
    # (rows, 1 token), and (rows, heads left in that layer, tokens so far, dim)
    assert shapes[0] == ((2, 1), (2, 1, 4, 4))
    assert [past[2] for _, past in shapes] == [4, 5, 6][: len(shapes)]


def test_the_cards_code_writes_with_the_cache(copy):
    code = (copy / "README.md").read_text().split("```python\n")[1].split("```")[0]
    printed = run_python(code, cwd=copy).splitlines()
    assert json.loads(printed[0]) == expected(CACHED)["tokens"][0]
    assert "bytes" in (copy / "README.md").read_text()


def test_predict_writes_from_the_export_with_its_beams_and_without_torch(dsee_command):
    code, out, err = dsee_command("predict", CACHED, *PROMPTS)
    assert (code, out.splitlines()) == (0, expected(CACHED)["texts"]), err
    script = (
        "import sys; sys.argv = ['dsee', 'predict', sys.argv[1], 'bad']\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules, 'transformers' in sys.modules))\n"
        "from dsee_command import main; main()"
    )
    assert run_python(script, str(CACHED)).splitlines() == [expected(CACHED)["texts"][2], "False False"]


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        (["bad " * 20], 8, "Prompt 1 has 20 tokens, with 8 new ones more than the 24 positions"),
        (["", "a"], 2, "no token"),
    ],
)
def test_prompts_that_cannot_be_gone_on_from_are_refused(prompts, new, message):
    with pytest.raises(InputError, match=message):
        OnnxModel(CACHED).generate(prompts, new)
    assert OnnxModel(CACHED).generate([], 4) == []


@pytest.mark.parametrize(
    "said",
    [
        *("text", [], {}, {"before": "", "after": ""}, {"before": "", "after": "", "decoding": []}),
        *(
            {"before": "", "after": "", "decoding": d}
            for d in ({"beams": 0}, {"beams": "x"}, {"max_new_tokens": 1e999})
        ),
        {"before": "", "after": "", "decoding": {}, "end": 3},
    ],
    ids=range(9),
)
def test_a_manifest_that_does_not_say_how_to_ask_is_refused(copy, said):
    manifest = read_manifest(copy)
    manifest.facts["writing"] = said
    write_manifest(copy, manifest)
    with pytest.raises(ArtifactError, match="does not say how to ask the model"):
        OnnxModel(copy)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_graph_with_another_cache_than_the_folder_speaks_of_is_refused(copy, layers):
    described = json.loads((copy / "labels.json").read_text())
    described["generation"]["cache"] = layers
    (copy / "labels.json").write_text(json.dumps(described))
    with pytest.raises(ArtifactError, match=rf"does not take and give the keys and values of {layers} layers"):
        OnnxModel(rehash(copy))


def test_a_graph_whose_cache_has_no_sizes_is_refused(copy):
    graph = onnx.load(copy / "model.onnx")
    entry = next(each for each in graph.graph.input if each.name == "past_key_values.1.value")
    entry.type.tensor_type.shape.dim[1].dim_param = "any"
    onnx.save(graph, copy / "model.onnx")
    with pytest.raises(ArtifactError, match="keys and values of 2 layers"):
        OnnxModel(rehash(copy))


@pytest.mark.parametrize("name", ["model.onnx", "labels.json", "tokenizer.json", "dsee.json"])
def test_a_damaged_export_of_a_decoder_names_the_file(copy, name):
    whole = (copy / name).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-2], bytes([whole[0] ^ 4]) + whole[1:]):
        (copy / name).write_bytes(damaged)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            OnnxModel(copy)
