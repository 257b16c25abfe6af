"""Folders against each other: who is compared with what, on which inputs; never how long it took."""

import math

import pytest
import torch
from onnx_tools import copied, exported, tokenizer

import dsee
from conftest import adapted, tiny_bert, tiny_distilbert
from dsee import ArtifactError, InputError
from dsee.measure.latency import Rounds
from dsee.runtime import bench as room
from dsee.runtime.bench import bench
from dsee.runtime.memory import PeakMemory, peak_memory
from dsee.runtime.opened import weight_bytes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of each kind: an artifact, an ONNX folder, a base with its update, and what transformers itself wrote."""
    root = tmp_path_factory.mktemp("bench")
    export = exported("bert")
    found = {
        "cut": dsee.save(export.model, root / "cut"),
        "onnx": export.folder,
        "int8": exported("bert", "int8").folder,
        "adapted": dsee.save(adapted(tiny_bert()), root / "adapted"),
        "plain": root / "plain",
    }
    tiny_bert().save_pretrained(found["plain"])
    return found


@pytest.fixture(scope="module")
def found(folders):
    return bench(folders, shapes=[(1, 8), (3, 16)], runs=4, warmup=1, memory=False)


def test_every_folder_is_measured_on_every_shape(found, folders):
    assert list(found.contenders) == list(folders)
    assert [(timed.batch, timed.sequence) for timed in found.shapes] == [(1, 8), (3, 16)]
    for timed in found.shapes:
        assert list(timed.times) == list(folders)
        assert {times.runs for times in timed.times.values()} == {4}
        for name, times in timed.times.items():
            assert 0 < times.p50_ms <= times.p95_ms < math.inf
            assert timed.throughput(name) == pytest.approx(1e3 * timed.batch / times.p50_ms)


def test_the_first_is_compared_with_the_others(found, folders):
    for timed in found.shapes:
        assert list(timed.speedups) == list(folders)[1:]
        assert all(0 < ratio.low <= ratio.median <= ratio.high for ratio in timed.speedups.values())


def test_each_is_named_by_what_runs_it(found):
    assert [(each.runtime, each.precision) for each in found.contenders.values()] == [
        ("torch", "float32"),
        ("onnx", "fp32"),
        ("onnx", "int8"),
        ("torch", "float32"),
        ("torch", "float32"),
    ]


def test_bytes_are_those_of_the_weights(found, folders):
    sizes = {name: each.bytes for name, each in found.contenders.items()}
    assert sizes["cut"] == (folders["cut"] / "model.safetensors").stat().st_size
    assert sizes["onnx"] == (folders["onnx"] / "model.onnx").stat().st_size
    assert sizes["int8"] < sizes["onnx"]
    assert sizes["adapted"] > sizes["plain"] > sizes["cut"]


def test_an_export_inside_the_folder_is_not_counted(folders, tmp_path):
    folder = dsee.save(exported("bert").model, tmp_path / "model")
    before = weight_bytes(folder)
    copied(exported("bert"), folder / "onnx")
    assert weight_bytes(folder) == before


def test_memory_is_measured_on_the_first_shape_and_progress_counts_everything(folders, monkeypatch):
    told, asked = [], []

    def peak(folder, *, batch, sequence):
        asked.append((folder, batch, sequence))
        return PeakMemory(imports=5, peak=7)

    monkeypatch.setattr(room, "peak_memory", peak)
    two = {name: folders[name] for name in ("cut", "onnx")}
    found = bench(two, shapes=[(2, 4), (1, 8)], runs=3, warmup=2, progress=lambda: told.append(1))
    assert asked == [(folder, 2, 4) for folder in two.values()]
    assert [each.memory.model for each in found.contenders.values()] == [2, 2]
    assert len(told) == 2 * 5 + 2


def test_memory_can_be_left_out(found):
    assert {each.memory for each in found.contenders.values()} == {None}


def test_a_plain_folders_memory_can_be_measured(folders):
    assert peak_memory(folders["plain"], sequence=8).model > 0


def test_on_one_thread_cpu_seconds_count_and_on_more_wall_time(folders, monkeypatch):
    def rounds(calls, *, threads, **_):
        wall, cpu = ([1.0, 2.0, 4.0], [6.0, 6.0, 40.0]), ([1.0, 1.0, 1.0], [2.0, 3.0, 9.0])
        return Rounds(dict(zip(calls, wall, strict=True)), dict(zip(calls, cpu, strict=True)), threads)

    monkeypatch.setattr(room, "rounds", rounds)
    two = {name: folders[name] for name in ("cut", "plain")}
    one = bench(two, shapes=[(1, 4)], memory=False)
    assert (one.clock, one.shapes[0].speedups["plain"]) == ("cpu", room.Ratio(3.0, 2.5, 6.0))
    more = bench(two, shapes=[(1, 4)], memory=False, threads=2)
    assert (more.clock, more.shapes[0].speedups["plain"].median) == ("wall", 6.0)


def test_an_update_beside_its_base_is_merged_first(folders, monkeypatch):
    opened = []
    real = room.open_model

    def note(*arguments, **more):
        opened.append(real(*arguments, **more))
        return opened[-1]

    monkeypatch.setattr(room, "open_model", note)
    bench({name: folders[name] for name in ("adapted", "plain")}, shapes=[(1, 4)], runs=1, warmup=0, memory=False)
    assert [type(each.model).__name__ for each in opened] == ["BertForSequenceClassification"] * 2


def test_masked_models_run_on_the_kernels_when_asked_and_are_put_back(folders, tmp_path, monkeypatch):
    model = tiny_bert()
    dsee.prune(model, dsee.Blocks(0.7, score="weight"))
    two = {"masked": dsee.save(model, tmp_path / "masked"), "onnx": folders["onnx"]}
    asked, undone = [], []

    class Chosen:
        summary = "all of them"

        def undo(self):
            undone.append(asked[-1])

    def optimize(model, sample):
        asked.append(tuple(sample["input_ids"].shape))
        return Chosen()

    monkeypatch.setattr(room, "optimize", optimize)
    plain = bench(two, shapes=[(1, 4)], runs=1, warmup=0, memory=False)
    assert (plain.shapes[0].kernels, asked) == ({}, [])
    found = bench(two, shapes=[(1, 4), (2, 8)], runs=1, warmup=0, memory=False, kernels=True)
    assert [timed.kernels for timed in found.shapes] == [{"masked": "all of them"}] * 2
    assert asked == undone == [(1, 4), (2, 8)]


def test_threads_are_for_all(folders, monkeypatch):
    inside = []
    monkeypatch.setattr(torch.nn.Embedding, "forward", noting(torch.nn.Embedding.forward, inside))
    two = {name: folders[name] for name in ("cut", "onnx")}
    bench(two, shapes=[(1, 4)], runs=1, warmup=0, memory=False, threads=2)
    # the trial run before the rounds does not count
    assert inside[-1] == 2
    assert torch.get_num_threads() == 1


def noting(forward, seen):
    def noted(self, *arguments):
        seen.append(torch.get_num_threads())
        return forward(self, *arguments)

    return noted


@pytest.mark.parametrize(
    ("names", "shapes", "message"),
    [
        (["cut"], [(1, 4)], "at least two folders"),
        (["cut", "plain"], [], "at least one shape"),
        (["cut", "plain"], [(0, 4)], "at least 1"),
        (["cut", "plain"], [(1, 81)], "sequence=81 is longer than the 80 tokens"),
        (["onnx", "plain"], [(1, 81)], r"does not run on 1 x 81 token ids"),
    ],
)
def test_what_makes_no_sense_is_refused(folders, names, shapes, message):
    with pytest.raises(InputError, match=message):
        bench({name: folders[name] for name in names}, shapes=shapes, memory=False)


def test_a_model_that_reads_no_tokens_is_refused_by_name(folders, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ).save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match="ViTForImageClassification, which reads pixel_values"):
        bench({"vit": tmp_path / "vit", "cut": folders["cut"]}, shapes=[(1, 4)], memory=False)


def test_a_model_that_needs_more_than_tokens_is_refused_by_name(folders, tmp_path, monkeypatch):
    model = tiny_distilbert()
    model.save_pretrained(tmp_path / "plain")
    monkeypatch.setattr(type(model), "forward", failing)
    with pytest.raises(InputError, match=r"plain \(DistilBertForSequenceClassification\) does not run.*KeyError"):
        bench({"odd": tmp_path / "plain", "cut": folders["cut"]}, shapes=[(1, 4)], memory=False)


def failing(*_, **__):
    raise KeyError("boxes")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({}, "holds no model"),
        ({"config.json": "{}"}, "holds no model"),
        ({"config.json": "{", "model.safetensors": ""}, "does not describe a model"),
        ({"config.json": '{"model_type": "bert"}', "model.safetensors": ""}, "does not describe a model"),
        ({"config.json": '{"model_type": "x", "architectures": ["Nonsense"]}', "model.safetensors": ""}, "Nonsense"),
        (
            {"config.json": '{"model_type": "bert", "architectures": ["BertModel"]}', "model.safetensors": "x"},
            "could not be loaded",
        ),
    ],
)
def test_a_folder_without_a_model_is_refused(folders, tmp_path, content, error):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match=error):
        bench({"odd": tmp_path, "cut": folders["cut"]}, shapes=[(1, 4)], memory=False)


def test_a_missing_folder_is_named(folders, tmp_path):
    with pytest.raises(ArtifactError, match="nowhere: there is no such folder"):
        bench({"odd": tmp_path / "nowhere", "cut": folders["cut"]}, shapes=[(1, 4)], memory=False)


def test_logits_of_texts_are_those_of_the_onnx_model(tmp_path):
    from dsee.runtime.opened import open_model

    export = exported("bert")
    folder = dsee.save(export.model, tmp_path / "model", tokenizer=tokenizer())
    texts, pairs = ["good film", "a quietly moving film " * 9], ["a moving film", "bad"]
    with_torch, with_onnx = open_model(folder), open_model(export.folder)
    assert with_torch.max_length == 20
    assert with_torch.labels == with_onnx.labels
    assert abs(with_torch.logits(texts) - with_onnx.logits(texts)).max() < 1e-4
    assert abs(with_torch.logits(texts, pairs) - with_onnx.logits(texts, pairs)).max() < 1e-4
