"""From a recipe to that of a baseline by one key: what a baseline has not is taken out, the rest stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dsee.training.method_keys import RATES, SPARSE

if TYPE_CHECKING:
    from dsee.training.recipe import PruneSpec, Recipe

Baseline = Literal["full", "lora", "bitfit", "norms", "lora-magnitude", "random", "gates-full"]

#: How a baseline tunes; random pruning keeps the recipe's method.
_METHODS = {name: name for name in ("full", "lora", "bitfit", "norms")} | {
    "lora-magnitude": "lora",
    "gates-full": "full",
}
#: What every rule ranks by, where that is what the baseline is about.
_SCORES = {"lora-magnitude": "weight", "random": "random"}
#: Those that are a way to prune, so that there has to be something to prune.
_PRUNING = (*_SCORES, "gates-full")
_RULES = ("heads", "neurons", "weights", "blocks", "nofm", "budget")
_CUTS = ("heads", "neurons", "budget")


def become(recipe: Recipe) -> None:
    """Change a recipe, in place, to its baseline.

    Method and scores are the baseline's. Keys of an update are taken out where there is none, those of S2 where there
    is a LoRA, learning rates of an update's parts where there is one rate for all. What the baseline cannot rank by is
    ranked by magnitude. Doing it twice is doing it once.

    Args:
        recipe: the recipe; its own validator asks.

    Raises:
        ValueError: for pydantic: the recipe names another method, or has nothing to prune where that is the point.
    """
    name = str(recipe.baseline)
    method = _METHODS.get(name, recipe.method)
    if "method" in recipe.model_fields_set and recipe.method != method:
        raise ValueError(
            f"baseline: {name} is method {method}, and the recipe says method {recipe.method}; leave that out"
        )
    if name in _PRUNING and recipe.prune is None:
        raise ValueError(f"baseline: {name} is a way to prune; add a prune section that says how much")
    if name == "gates-full" and not any(getattr(recipe.prune, rule) for rule in _CUTS):
        raise ValueError("baseline: gates-full cuts heads and neurons; add prune.heads, prune.neurons or prune.budget")
    named = [rule for rule in ("heads", "neurons") if getattr(getattr(recipe.prune, rule, None), "explicit", None)]
    if name == "gates-full" and named:
        raise ValueError(
            f"baseline: gates-full ranks by gates; give prune.{named[0]} an amount, and leave explicit out"
        )
    recipe.method = method  # type: ignore[assignment]  # one of the table above
    if method != "dsee":
        _without_update_keys(recipe)
    _set_gates(recipe, name)
    if recipe.prune:
        recipe.prune = _ranked(recipe.prune, name, method)


def _without_update_keys(recipe: Recipe) -> None:
    if recipe.method == "lora":
        kept = {key: getattr(recipe.update, key) for key in recipe.update.model_fields_set - {*SPARSE, "n_sparse"}}
        recipe.update = type(recipe.update)(**kept)
    else:
        recipe.update = type(recipe.update)()
        recipe.model_fields_set.discard("update")
        recipe.cache_prefix = False
    recipe.tune, recipe.recover = _one_rate(recipe.tune), _one_rate(recipe.recover)


def _one_rate(stage: Any) -> Any:
    return stage.model_copy(update={key: type(stage).model_fields[key].default for key in RATES})


def _set_gates(recipe: Recipe, name: str) -> None:
    from dsee.training.recipe import GatesSpec

    if name == "gates-full":
        recipe.gates = recipe.gates or GatesSpec()
    elif recipe.method == "lora" or name == "random":
        recipe.gates = None


def _ranked(spec: PruneSpec, name: str, method: str) -> PruneSpec:
    """The rules with scores that the baseline has."""
    has_not = {"full": ("update", "weight+update"), "lora": ("gate",)}.get(method, ("update", "weight+update"))
    changed: dict[str, Any] = {}
    for rule in _RULES:
        section = getattr(spec, rule)
        if section is None:
            continue
        score = _SCORES.get(name, "weight" if section.score in has_not else section.score)
        if name == "gates-full" and rule in _CUTS:
            score = "gate"
        changed[rule] = section.model_copy(update={"score": score})
    if method == "full" and spec.schedule:
        # only weights of a frozen base can return
        changed["schedule"] = spec.schedule.model_copy(update={"regrow": False})
    return spec.model_copy(update=changed)
