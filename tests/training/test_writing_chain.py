"""The whole chain on tiny models that write: what comes out, and that it is what the figures say."""

import json
import shutil
import types

import pytest
import torch
import yaml

import dsee
from chain import Recorder
from dsee.artifact.manifest import read_manifest
from dsee.errors import InputError, MissingExtraError
from dsee.report.generation import text_rows, text_table, write_text_report
from dsee.tasks.generation import DecodingSpec, score_texts, write_texts
from dsee.training import load_recipe, run
from dsee.training.setting import Setting
from writing_tools import MODELS, pretrained, rows, write_jsonl

pytest.importorskip("sacrebleu", reason="the nlg extra is not installed")
pytest.importorskip("rouge_score", reason="the nlg extra is not installed")

STAGES = ["tune", "prune", "recover", "merge", "write-dense", "write-pruned", "write-recovered", "measure"]
SHORT = {"decoding": {"max_new_tokens": 16}}
#: So many that what is written hangs on no rounding: on another CPU fewer gave half the score.
EPOCHS = {"gpt2": 6, "llama": 10}
PRUNE = {"gpt2": {"weights": 0.2}, "llama": {"budget": {"flops": 0.75}}}


def recipe_for(folder, family, **changes):
    content = {
        "model": f"tiny-{family}",
        "task": "data-to-text",
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"},
        "generation": {
            "references": "references",
            "label_smoothing": 0.1,
            "metrics": ["bleu", "rouge_l"],
            "decoding": {"beams": 2, "max_new_tokens": 16, "limit": 12},
        },
        "update": {"r": 8, "alpha": 16, "n_sparse": 8, "target_modules": "all-linear"},
        "tune": {"epochs": EPOCHS[family], "learning_rate": 0.02, "batch_size": 16},
        "prune": PRUNE[family],
        "recover": {"epochs": 4, "learning_rate": 0.01, "batch_size": 16},
        "export": {"onnx": []},
        "measure": {"sequence": 16, "runs": 2, "memory": False},
        "max_length": 48,
        "output": "out",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    for family, make in MODELS.items():
        pretrained(folder / f"tiny-{family}", make)
    for name, count, seed in (("train", 160, 1), ("validation", 24, 2), ("test", 24, 3)):
        write_jsonl(folder / f"{name}.jsonl", rows(count, seed))
    return folder


@pytest.fixture(scope="module", params=MODELS)
def done(ground, request):
    path = recipe_for(ground, request.param)
    recorder = Recorder()
    result = run(load_recipe(path), base=ground, output=ground / f"out-{request.param}", progress=recorder)
    return types.SimpleNamespace(result=result, progress=recorder, recipe=load_recipe(path), folder=ground)


def test_all_stages_run_in_order_and_their_bars_fill(done):
    assert done.progress.ran == STAGES
    for name in STAGES:
        steps, total = done.progress.steps[name]
        assert steps == total, name


def test_the_task_is_learned_and_kept(done):
    stages = done.result.stages
    log = [epoch["loss"] for epoch in stages["tune"]["validation"]]
    assert min(log) < 0.95 * log[0]
    # untuned, the two have 72 and 44, and write nothing that scores
    assert stages["tune"]["test"]["perplexity"] < 4.4
    assert stages["merge"]["test"]["perplexity"] < 1.1 * stages["tune"]["test"]["perplexity"]
    assert stages["write-recovered"]["scores"]["bleu"] > 20


def test_something_was_pruned(done):
    stages = done.result.stages
    if done.recipe.prune.weights:
        assert stages["merge"]["zeros"] == pytest.approx(0.2, abs=0.01)
    else:
        assert stages["merge"]["encoder_flops"] <= 0.76 * stages["tune"]["encoder_flops"]


def test_the_texts_are_what_the_saved_model_writes_and_what_was_scored(done):
    output = done.result.output
    lines = [json.loads(line) for line in (output / "stages" / "texts-recovered.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    setting = Setting(done.recipe, done.folder, output)
    prompts = setting.writing.parts["test"].prompts[:12]
    found = write_texts(
        dsee.load(output / "model"), setting.tokenizer, prompts, DecodingSpec(beams=2, max_new_tokens=16)
    )
    assert found == [line["text"] for line in lines]
    scores = score_texts(found, [line["references"] for line in lines], ["bleu", "rouge_l"])
    assert done.result.stages["write-recovered"]["scores"] == scores


def test_the_best_epoch_by_loss_wins(done):
    setting = Setting(done.recipe, done.folder, done.result.output)
    found = setting.writing.validate(dsee.load(done.result.output / "stages" / "tuned"))
    assert found["loss"] == pytest.approx(min(e["loss"] for e in done.result.stages["tune"]["validation"]), rel=1e-5)


def test_the_report(done):
    table = text_rows(done.result)
    assert [row.name for row in table] == ["dense", "pruned", "recovered"]
    header, body = text_table(table)
    assert header[1:4] == ["BLEU", "ROUGE-L", "perplexity"]
    assert body[2][1] == f"{done.result.stages['write-recovered']['scores']['bleu']:.1f}"
    write_text_report(done.result, done.recipe)
    page = (done.result.output / "report.md").read_text(encoding="utf-8")
    assert "12 texts against 24 references: 2 beam(s)" in page
    assert json.loads((done.result.output / "report.json").read_text())["rows"][0]["scores"] == table[0].scores


def test_predict_asks_as_the_model_was_trained(done, dsee_command):
    lines = (done.result.output / "stages" / "texts-recovered.jsonl").read_text().splitlines()[:2]
    wanted = [json.loads(line) for line in lines]
    code, out, _ = dsee_command("predict", done.result.output, *(line["prompt"] for line in wanted))
    assert code == 0
    assert out.splitlines() == [line["text"] for line in wanted]


def test_other_decoding_or_scoring_tunes_nothing_again(done, tmp_path):
    again = Recorder()
    changed = done.recipe.generation.model_copy(update={"metrics": ["rouge_l"]})
    recipe = done.recipe.model_copy(update={"generation": changed})
    run(recipe, base=done.folder, output=done.result.output, progress=again)
    assert again.ran == ["write-dense", "write-pruned", "write-recovered"]
    run(done.recipe, base=done.folder, output=done.result.output, progress=Recorder())


@pytest.mark.parametrize("packed", [False, True])
def test_instructions_packed_or_not_with_a_teacher(ground, tmp_path, packed):
    content = {"prompt": "source", "response": "target", "packed": packed, "metrics": ["rouge_l"]}
    recipe = load_recipe(
        recipe_for(
            ground,
            "gpt2",
            task="instruction",
            generation=content | {"decoding": {"beams": 1, "max_new_tokens": 12, "limit": 2}},
            tune={"epochs": 1, "batch_size": 16},
            recover={"epochs": 1, "batch_size": 16, "distill": True},
            prune={"weights": 0.2, "calibration": 8},
        )
    )
    recorder = Recorder()
    result = run(recipe, base=ground, output=tmp_path / "out", progress=recorder)
    assert result.stages["write-recovered"]["texts"] == 2
    done, total = recorder.steps["recover"]
    assert done == total
    assert (recorder.steps["tune"][1] < 160 / 16 + result.sizes["test"]) == packed


@pytest.mark.parametrize("kind", ["data-to-text", "language-modelling"])
def test_a_stream_is_tuned_on_and_its_bad_rows_are_in_the_report(ground, tmp_path, kind):
    content = rows(60, seed=1)
    content[40] = {"source": "name : mill", "target": 3}
    files = {name: f"{name}-streamed.jsonl" for name in ("train", "validation", "test")}
    for name, file in files.items():
        part = content if name == "train" else rows(8, seed=2)
        write_jsonl(ground / file, [row | {"text": row["target"]} for row in part])
    steps = {"learning_rate": 0.01, "batch_size": 8, "max_steps": 9, "eval_steps": 5}
    writes = kind == "data-to-text"
    recipe = load_recipe(
        recipe_for(
            ground,
            "gpt2",
            task=kind,
            data=files | {"streaming": True, "max_bad_rows": 1, "shuffle_buffer": 16},
            generation={"metrics": ["rouge_l"], "decoding": {"beams": 1, "max_new_tokens": 8, "limit": 2}},
            tune=steps,
            recover=steps | {"max_steps": 3, "distill": writes},
            prune={"weights": 0.2, "calibration": 8},
            max_length=48 if writes else 16,
        )
    )
    recorder = Recorder()
    result = run(recipe, base=ground, output=tmp_path / "out", progress=recorder)
    assert all(done == total for done, total in (recorder.steps[name] for name in ("tune", "prune", "recover")))
    assert len(result.stages["tune"]["validation"]) == 2
    assert "train" not in result.sizes
    write_text_report(result, recipe)
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    said = "train-streamed.jsonl, line 41: column"
    assert page.count(said) == 1
    assert said in "".join(json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["notes"])


def test_bad_rows_of_writing_stop_the_run_or_are_in_the_report(ground, tmp_path):
    content = rows(40, seed=1)
    content[7] = {"source": " ", "target": "x"}
    content[9] = {"source": "name : " + "mill " * 90, "target": "x"}
    write_jsonl(ground / "bad.jsonl", content)
    data = {"train": "bad.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
    short = {"tune": {"max_steps": 1}, "prune": None, "generation": {"decoding": {"limit": 1, "max_new_tokens": 4}}}
    with pytest.raises(InputError, match=r"bad\.jsonl, line 8: column 'source' is empty"):
        run(load_recipe(recipe_for(ground, "gpt2", data=data, **short)), base=ground, output=tmp_path / "out")
    recipe = load_recipe(recipe_for(ground, "gpt2", data=data | {"max_bad_rows": 1}, **short))
    with pytest.raises(InputError, match=r"(?s)2 rows .* \(1 x missing text, 1 x too long\).*line 10: the prompt"):
        run(recipe, base=ground, output=tmp_path / "out")
    recipe = load_recipe(recipe_for(ground, "gpt2", data=data | {"max_bad_rows": 2}, **short))
    result = run(recipe, base=ground, output=tmp_path / "out")
    assert result.sizes["train"] == 38
    write_text_report(result, recipe)
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "left out 2 bad row(s): 1 x missing text, 1 x too long" in page
    assert "bad.jsonl, line 10: the prompt has" in page


@pytest.mark.slow
def test_exports_write_as_the_model_does_and_their_cards_say_what_they_are_worth(done, tmp_path, dsee_command):
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    output, again = shutil.copytree(done.result.output, tmp_path / "out"), Recorder()
    export = done.recipe.export.model_copy(update={"onnx": ["fp32", "int8"]})
    recipe = done.recipe.model_copy(update={"export": export})
    result = run(recipe, base=done.folder, output=output, progress=again)
    assert again.ran == ["export", "write-ONNX fp32", "write-ONNX int8", "measure"]
    stages = result.stages
    assert stages["write-ONNX fp32"]["scores"] == stages["write-recovered"]["scores"]
    assert (stages["write-ONNX fp32"]["same"], 0 <= stages["write-ONNX int8"]["same"] <= 1) == (1.0, True)
    for precision in ("fp32", "int8"):
        facts, test = read_manifest(output / f"onnx-{precision}").facts, stages["export"][precision]["test"]
        assert facts["test"] == {name: test[name] for name in ("loss", "perplexity")}
        assert facts["original"]["perplexity"] == pytest.approx(stages["merge"]["test"]["perplexity"])
        card = (output / f"onnx-{precision}" / "README.md").read_text()
        assert f"perplexity on the test part: {test['perplexity']:.4g} (the original: " in card
    assert stages["export"]["fp32"]["test"]["perplexity"] == pytest.approx(facts["original"]["perplexity"], rel=1e-4)
    header, body = text_table(text_rows(result))
    assert [line[0] for line in body][-2:] == ["ONNX fp32", "ONNX int8"]
    assert all(line[header.index("BLEU")] != "-" for line in body)
    write_text_report(result, recipe)
    assert "ONNX fp32 writes 100.0% of these texts as the model" in (output / "report.md").read_text()
    lines = (output / "stages" / "texts-recovered.jsonl").read_text().splitlines()[:3]
    wanted = [json.loads(line) for line in lines]
    code, out, err = dsee_command("predict", output / "onnx-fp32", *(line["prompt"] for line in wanted))
    assert (code, out.splitlines()) == (0, [line["text"] for line in wanted]), err


@pytest.mark.slow
def test_language_modelling_reports_perplexity_and_exports(ground, tmp_path):
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    (ground / "book.txt").write_text("".join(row["target"] + "\n" for row in rows(200)), encoding="utf-8")
    recipe = load_recipe(
        recipe_for(
            ground,
            "gpt2",
            task="language-modelling",
            data={"train": "book.txt"},
            generation={"label_smoothing": 0.0},
            tune={"epochs": 1, "batch_size": 8},
            prune=None,
            export={"onnx": ["fp32"]},
            max_length=32,
        )
    )
    recorder = Recorder()
    result = run(recipe, base=ground, output=tmp_path / "out", progress=recorder)
    assert recorder.ran == ["tune", "merge", "export", "measure"]
    exported, merged = result.stages["export"]["fp32"]["test"], result.stages["merge"]["test"]
    assert exported["perplexity"] == pytest.approx(merged["perplexity"], rel=1e-4)
    header, body = text_table(text_rows(result))
    assert header[1] == "perplexity"
    assert [line[0] for line in body] == ["dense", "ONNX fp32"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 100}, "max_length=100 is more than the 64 positions"),
        ({"cache_prefix": True}, "cache_prefix"),
        ({"generation": {"decoding": {"max_new_tokens": 60}}}, "max_new_tokens=60 after the longest prompt"),
        ({"generation": {"source": "sorce"}}, "no column 'sorce'"),
        ({"gguf_file": "none.gguf"}, "there is no such file"),
        ({"gguf_file": "config.json"}, "no GGUF file"),
    ],
)
def test_what_would_fail_later_fails_before_tuning(ground, tmp_path, changes, said):
    recorder = Recorder()
    with pytest.raises(InputError, match=said):
        run(load_recipe(recipe_for(ground, "gpt2", **changes)), base=ground, output=tmp_path / "o", progress=recorder)
    assert recorder.ran == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "text-classification"}, "generation: is for tasks of writing"),
        ({"data": {"train": "a.csv", "glue": "rte"}}, r"glue decides train"),
        (
            {"task": "language-modelling", "data": {"train": "a.txt", "too_long": "skip"}},
            r"data\.too_long: has no meaning in task language-modelling",
        ),
        ({"data": {"name": "x"}, "generation": {"format": "dart"}}, r"generation\.format is for files"),
        ({"task": "instruction", "generation": {"format": "e2e"}}, r"generation\.format: e2e is data-to-text"),
        ({"data": {"train": "a.csv", "label": "x"}}, r"data\.label: has no meaning in task data-to-text"),
        ({"generation": {"metrics": ["blue"]}}, r"generation\.metrics"),
        ({"generation": {"beam": 2}}, r"generation\.beam: unknown key"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(ground, changes, said):
    with pytest.raises(InputError, match=said):
        load_recipe(recipe_for(ground, "gpt2", **changes))


def test_packing_for_a_model_without_positions_is_refused(ground, tmp_path):
    setting = Setting(load_recipe(recipe_for(ground, "gpt2", generation={"packed": True} | SHORT)), ground, tmp_path)

    class Positionless(torch.nn.Module):
        config = MODELS["gpt2"]().config

        def forward(self, input_ids, attention_mask=None):
            raise AssertionError

    with pytest.raises(InputError, match="Positionless takes no positions"):
        setting.writing.check(Positionless())
    setting.writing.check(setting.empty_model())


def test_a_missing_gguf_package_is_named(ground, monkeypatch):
    from dsee.training import gguf

    (ground / "model.gguf").write_bytes(b"GGUF and more")
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"package gguf.*dsee\[nlg\]"):
        gguf.gguf_arguments("model.gguf", str(ground))
    assert gguf.gguf_arguments(None, str(ground)) == {}


def test_a_model_without_a_trace_of_its_file_is_the_same_model(ground):
    from dsee.training.gguf import plain

    model = MODELS["llama"](3)
    model.config.quantization_config = {"quant_method": "gguf"}
    found = plain(model)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(found(ids).logits, model(ids).logits)
    assert not hasattr(found.config, "quantization_config")
    assert found.lm_head.weight is found.model.embed_tokens.weight
