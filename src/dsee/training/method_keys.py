"""Which keys of a recipe go with which method of tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dsee.training.recipe import Recipe

Method = Literal["dsee", "full", "lora", "bitfit", "norms"]

#: What a report calls them.
TITLES = {
    "dsee": "a low-rank plus sparse update",
    "full": "full fine-tuning",
    "lora": "LoRA",
    "bitfit": "BitFit: biases and the task head",
    "norms": "norms and the task head",
}
#: Keys of an update that are about S2 or masks on it, which a LoRA has not.
SPARSE = ("support", "masked", "n_sparse_pattern")
#: Learning rates of an update's parts.
RATES = ("up_ratio", "sparse_learning_rate", "head_learning_rate")


def mistakes(recipe: Recipe) -> list[str]:
    """Return what in a recipe does not go with its method.

    Args:
        recipe: the recipe; its own validator asks.
    """
    if recipe.method == "dsee":
        return []
    found = _of_update(recipe) + _of_rates(recipe) + _of_gates(recipe)
    if recipe.method != "lora":
        found += _of_scores(recipe) + _of_weights(recipe)
    return found


def _of_update(recipe: Recipe) -> list[str]:
    if recipe.method != "lora":
        said = f"update: method {recipe.method} trains no update; leave the section out"
        return [said] if "update" in recipe.model_fields_set else []
    given = recipe.update.model_fields_set
    found = [f"update.{key}: a LoRA has no S2 and no mask on it; leave it out" for key in SPARSE if key in given]
    if "n_sparse" in given and recipe.update.n_sparse:
        found.append("update.n_sparse: a LoRA has no S2; leave it out, or say 0")
    if not recipe.update.r:
        found.append("update.r: a LoRA is nothing but its low rank; it has to be 1 or more")
    return found


def _of_rates(recipe: Recipe) -> list[str]:
    stages = {"tune": recipe.tune, "recover": recipe.recover}
    return [
        f"{name}.{key}: is for the parts of an update; method {recipe.method} has one learning rate for all it trains"
        for name, stage in stages.items()
        for key in RATES
        if getattr(stage, key) != type(stage).model_fields[key].default
    ]


def _of_gates(recipe: Recipe) -> list[str]:
    if recipe.method == "lora" and recipe.gates:
        return ["gates: are learned beside an update or parts of the model, not beside PEFT's LoRA; use method dsee"]
    return []


def _of_scores(recipe: Recipe) -> list[str]:
    rules = recipe.prune.model_dump() if recipe.prune else {}
    return [
        f"prune.{name}.score: {rule['score']!r} ranks by the update, and method {recipe.method} has none; use weight, "
        "random, taylor or fisher"
        for name, rule in rules.items()
        if isinstance(rule, dict) and rule.get("explicit") is None and rule.get("score") in ("update", "weight+update")
    ]


def _of_weights(recipe: Recipe) -> list[str]:
    """What needs weights that nobody trains."""
    found = []
    if recipe.cache_prefix:
        found.append(f"cache_prefix: method {recipe.method} trains the lower layers too; set it to false")
    if recipe.method == "full" and recipe.prune and recipe.prune.schedule and recipe.prune.schedule.regrow:
        found.append("prune.schedule.regrow: only weights of a frozen base can return, and method full trains them")
    return found
