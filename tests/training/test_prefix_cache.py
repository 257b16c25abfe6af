"""The frozen layers below the first trained one, run once: the same losses, the same model, less work."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import DataCollatorWithPadding, GPT2Config, GPT2ForSequenceClassification

import dsee
from chain import prepare
from conftest import FAMILIES, LABELS, POSITIONS, VOCABULARY, adapted, tiny_bert, tiny_tokenizer
from cut_families import build
from dsee.architectures import base_model, layers
from dsee.errors import ArchitectureError, InputError
from dsee.training import load_recipe
from dsee.training import prefix_cache as module
from dsee.training.chain import preflight
from dsee.training.fit import evaluate, fit, set_attention_dropout, set_dropout
from dsee.training.prefix_cache import frozen_prefix, prefix_cache
from dsee.training.recipe import TrainSpec
from dsee.training.setting import Setting

COUNT = 24


class Examples:
    """Random sentences of many lengths, as ``Encoded`` has them."""

    kind, long = "classification", {}

    def __init__(self, count=COUNT, seed=0, labels=LABELS):
        draw = torch.Generator().manual_seed(seed)
        self.features = []
        for i in range(count):
            length = int(torch.randint(3, 20, (), generator=draw))
            ids = torch.randint(5, VOCABULARY, (length,), generator=draw).tolist()
            self.features.append({"input_ids": ids, "attention_mask": [1] * length, "labels": i % labels})

    def __len__(self):
        return len(self.features)

    def __getitem__(self, index):
        return self.features[index]

    @property
    def labels(self):
        import numpy as np

        return np.array([f["labels"] for f in self.features])


def upper(base, **config):
    """An update on the layers from 1 on, the base without dropout."""
    model = adapted(base, layers_to_transform=[1, 2], **config)
    set_dropout(model, 0.0)
    return model


def collator():
    return DataCollatorWithPadding(tiny_tokenizer())


def losses(model, data, collate, dropout=0.0):
    """Loss of every batch of eight over two epochs of training."""
    model.train()
    if dropout:
        for view in layers(model)[-1:]:
            set_dropout(view.module, dropout)
    torch.manual_seed(5)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(2):
        for start in range(0, len(data), 8):
            loss = model(**collate([data[i] for i in range(start, min(start + 8, len(data)))])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout above"])
def test_the_losses_are_those_of_the_whole_model(family, dropout):
    data, collate = Examples(), collator()
    whole = upper(family())
    cached = copy.deepcopy(whole)
    expected = losses(whole, data, collate, dropout)
    with prefix_cache(cached, [data], collate) as ((part,), from_states):
        found = losses(cached, part, from_states, dropout)
    assert len(set(expected)) > 3
    assert found == pytest.approx(expected, rel=2e-4)
    for (name, one), (other, two) in zip(whole.named_parameters(), cached.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(one, two, rtol=0, atol=2e-3)


def test_only_the_upper_layers_run_in_the_block():
    model, data = upper(tiny_bert()), Examples()
    calls = []
    for view in layers(model):
        view.module.register_forward_hook(lambda *_, i=view.index: calls.append(i))
    with prefix_cache(model, [data, Examples(5, seed=1)], collator()) as ((train, validation), collate):
        assert [len(train), len(validation)] == [COUNT, 5]
        calls.clear()
        evaluate(model, validation, collate)
        assert set(calls) == {1, 2}
    calls.clear()
    evaluate(model, data, collator())
    assert set(calls) == {0, 1, 2}


def test_the_model_is_whole_again_whatever_happens():
    model, data = upper(tiny_bert()), Examples()
    before = [name for name, _ in model.named_modules()]
    stack = base_model(model).encoder.layer

    def fail():
        with prefix_cache(model, [data], collator()):
            assert [name for name, _ in base_model(model).encoder.layer.named_children()] == ["1", "2"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [name for name, _ in model.named_modules()] == before
    assert base_model(model).encoder.layer is stack


def test_metrics_are_those_of_the_whole_model(family):
    model, data = upper(family()), Examples(40)
    expected = evaluate(model, data, collator())
    with prefix_cache(model, [data], collator()) as ((part,), collate):
        assert evaluate(model, part, collate) == pytest.approx(expected)


def test_fit_gives_the_same_update_with_and_without():
    spec = TrainSpec(epochs=2, learning_rate=1e-2, batch_size=8)
    train, validation = Examples(), Examples(9, seed=1)
    bar = SimpleNamespace(advance=lambda n=1: None, note=lambda text: None)
    models, logs = [], []
    for cached in (False, True):
        model = upper(tiny_bert())
        keeper = fit(model, train, validation, tiny_tokenizer(), spec, seed=3, bar=bar, cache_prefix=cached)
        models.append(model)
        logs.append([epoch["accuracy"] for epoch in keeper.log])
    assert logs[0] == logs[1]
    for (name, one), (_, two) in zip(*(m.named_parameters() for m in models), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-3, msg=name)


@pytest.mark.parametrize(("targets", "expected"), [([2], 2), ([1, 2], 1)])
def test_the_prefix_ends_at_the_first_trained_layer(targets, expected):
    model = adapted(tiny_bert(), layers_to_transform=targets)
    set_dropout(model, 0.0)
    assert frozen_prefix(model) == expected


def test_a_head_alone_keeps_the_last_layer():
    model = tiny_bert()
    model.bert.requires_grad_(False)
    set_dropout(model, 0.0)
    assert frozen_prefix(model) == 2


def embeddings_trained():
    return upper(tiny_bert(), modules_to_save=["word_embeddings"])


def dropout_below():
    model = upper(tiny_bert())
    set_dropout(base_model(model).encoder.layer[0], 0.1)
    return model


def dropout_in_embeddings():
    model = upper(tiny_bert())
    set_dropout(base_model(model).embeddings, 0.1)
    return model


def decoder():
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=POSITIONS, num_labels=LABELS, pad_token_id=0
    )
    return GPT2ForSequenceClassification(config)


@pytest.mark.parametrize(
    ("build", "error", "expected"),
    [
        (lambda: adapted(tiny_bert()), InputError, r"the first layer is trained.*layers_to_transform: \[1, 2\]"),
        (lambda: upper(tiny_bert(), bias="all"), InputError, "is trained and comes before the layers"),
        (embeddings_trained, InputError, "word_embeddings.* is trained and comes before the layers"),
        (dropout_below, InputError, "dropout in layer 0.*base_dropout: 0"),
        (dropout_in_embeddings, InputError, "dropout in the embeddings"),
        (decoder, (ArchitectureError, InputError), "no architecture map for 'gpt2'|no encoder"),
        (lambda: tiny_bert(is_decoder=True), InputError, "no encoder"),
    ],
)
def test_models_without_a_frozen_prefix_are_refused(build, error, expected):
    with pytest.raises(error, match=expected):
        frozen_prefix(build())


def test_a_model_that_hands_its_layers_more_is_refused(monkeypatch):
    model = upper(tiny_bert())

    class Zero(torch.nn.Module):
        def forward(self, *args, inputs_embeds=None, **_):
            return inputs_embeds * 0

    monkeypatch.setattr(module, "_Given", Zero)
    with pytest.raises(InputError, match="gives other logits"), prefix_cache(model, [Examples()], collator()):
        pass
    assert not isinstance(base_model(model).embeddings, Zero)


def test_no_room_on_the_disk(monkeypatch):
    from pathlib import Path

    from dsee.errors import ArtifactError

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def write(self, _):
            raise OSError(28, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda p, *a: Full() if p.name == "states" else opened(p, *a))
    with (
        pytest.raises(ArtifactError, match=r"no room for .*No space left"),
        prefix_cache(upper(tiny_bert()), [Examples()], collator()),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "the first layer is trained"),
        ({"update": {"r": 0, "layers_to_transform": [1, 2]}}, "dropout in the embeddings"),
        ({"update": {"r": 0, "layers_to_transform": [1, 2]}, "base_dropout": 0.0, "attention_dropout": 0.1}, "layer 0"),
        ({"update": {"layers_to_transform": [2]}, "base_dropout": 0.0}, None),
    ],
)
def test_a_recipe_without_a_frozen_prefix_fails_before_tuning(tmp_path, model_folder, changes, expected):
    recipe = load_recipe(prepare(tmp_path, model_folder, cache_prefix=True, **changes))
    setting = Setting(recipe, tmp_path, tmp_path / "out")
    if expected is None:
        preflight(setting)
        return
    with pytest.raises(InputError, match=expected):
        preflight(setting)


def test_attention_dropout_alone(family):
    model = family()
    set_attention_dropout(model, 0.0)
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    off = {name for name, p in rates.items() if p == 0}
    assert len(off) == len(layers(model)) == 3
    assert all("attention" in name for name in off)
    assert any(p > 0 for p in rates.values())


def test_deberta_too_unless_it_has_a_convolution():
    data = Examples(9)
    model = upper(build("deberta-v3"))
    expected = evaluate(model, data, collator())
    with prefix_cache(model, [data], collator()) as ((part,), collate):
        assert evaluate(model, part, collate) == pytest.approx(expected)
    # its first layer is followed by one that is no layer
    with (
        pytest.raises(InputError, match="gives other logits"),
        prefix_cache(upper(build("deberta-v2")), [data], collator()),
    ):
        pass


def test_what_moves_the_lower_layers_is_refused():
    bar = SimpleNamespace(advance=lambda n=1: None, note=lambda text: None)
    more = {"seed": 0, "bar": bar, "cache_prefix": True, "schedule": dsee.Gradual(dsee.Weights(0.5))}
    with pytest.raises(InputError, match="a schedule of masks"):
        fit(upper(tiny_bert()), Examples(), Examples(), tiny_tokenizer(), TrainSpec(), **more)


def test_more_examples_than_fit_in_one_batch():
    data = Examples(module.BATCH + 7)
    model = upper(FAMILIES["distilbert"]())
    expected = evaluate(model, data, collator())
    with prefix_cache(model, [data, Examples(3, seed=8)], collator()) as ((part, _), collate):
        assert evaluate(model, part, collate) == pytest.approx(expected)
