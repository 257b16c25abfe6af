"""A recipe may choose the support by gradients: of its own training sentences, before the first step."""

from types import SimpleNamespace

import dsee
from chain import prepare
from dsee.training import chain, load_recipe, methods
from dsee.training.setting import Setting
from dsee.update.layer import update_layers


def test_a_recipe_chooses_by_gradients_of_its_training_part(tmp_path, model_folder, monkeypatch):
    seen, choose = [], methods.choose_support

    def spy(model, **arguments):
        seen.append(len(arguments["calibration"]))
        return choose(model, **arguments)

    monkeypatch.setattr(methods, "choose_support", spy)
    update = {"r": 2, "n_sparse": 5, "support": "gradient", "target_modules": ["query"]}
    path = prepare(tmp_path, model_folder, update=update, tune={"epochs": 1, "batch_size": 32})
    setting = Setting(load_recipe(path), tmp_path, tmp_path / "out")
    bar = SimpleNamespace(advance=lambda n=1: None, note=lambda text: None)
    chain.tune(setting, bar, tmp_path / "tuned")
    assert seen == [-(-len(setting.parts["train"]) // 32)]
    tuned = dsee.load(tmp_path / "tuned", trainable=True)
    assert all(layer.dsee_S["default"].placed for _, layer in update_layers(tuned))
