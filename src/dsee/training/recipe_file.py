"""From a YAML file to a checked recipe; all mistakes are reported at once, with the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dsee.errors import InputError, listed, nearest
from dsee.training.recipe import Recipe

#: How pydantic names the values that there are.
QUOTED = r"'([^']*)'"


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=deep) for key, _ in node.value]
    for position, key in enumerate(keys):
        if key in keys[:position]:
            mark = node.value[position][0].start_mark
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} occurs twice", problem_mark=mark)
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _number(value: Any) -> Any:
    """YAML 1.1 reads ``5e-4`` as a string, since it has no dot; nobody who writes it means one."""
    if isinstance(value, dict):
        return {key: _number(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_number(inner) for inner in value]
    if isinstance(value, str) and "e" in value.lower() and value.strip()[:1].isdigit():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        changes: keys to have another value than the file gives them, such as ``"tune.epochs=1"``; see :func:`change`.

    Raises:
        InputError: no such file, not YAML, or not a recipe; every mistake is listed.
    """
    path = Path(path)
    if not path.is_file():
        beside = (
            [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")] if path.parent.is_dir() else []
        )
        raise InputError(f"{path}: there is no such recipe.{nearest(path.name, beside)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader subclass
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys such as 'model' and 'data'.")
    for text in changes:
        change(content, text)
    return parse_recipe(_number(content), str(path))


def change(content: dict[str, Any], text: str) -> None:
    """Give a key of a recipe another value, in place.

    Args:
        content: the recipe as plain data.
        text: ``KEY=VALUE``: the key with dots between sections, the value as it would stand in the file.

    Raises:
        InputError: it is not of that form, or a section that the key names is not one.
    """
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise InputError(f"--set {text}: give KEY=VALUE, such as tune.epochs=1.")
    try:
        found = yaml.load(value, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: the value is not valid YAML: {getattr(error, 'problem', None)}") from error
    section = content
    for at, name in enumerate(path[:-1], 1):
        if section.get(name) is None:
            section[name] = {}
        if not isinstance(section[name], dict):
            where = ".".join(path[:at])
            raise InputError(
                f"--set {text}: {where} is {section[name]!r} in the recipe. Give {where}={{...}} as a whole."
            )
        section = section[name]
    section[path[-1]] = found


def parse_recipe(content: dict[str, Any], source: str) -> Recipe:
    """Check a recipe given as plain data.

    Args:
        content: the recipe.
        source: where it comes from, for messages.

    Raises:
        InputError: every mistake, one per line.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        unique = list(dict.fromkeys(line for line in lines if line))
        raise InputError(f"{source}:\n" + "\n".join(f"  {line}" for line in unique)) from error


def _explain(problem: dict[str, Any]) -> str:
    loc = [part for part in problem["loc"] if not _is_branch(part)]
    name = ".".join(str(part) for part in loc)
    if problem["type"] == "extra_forbidden":
        known = _fields(loc[:-1])
        return f"{name}: unknown key.{nearest(str(loc[-1]), known)} Known here: {listed(known, 20)}."
    if problem["type"] == "missing":
        return f"{name}: this key is required."
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = problem.get("input")
    shown = f" (found: {found!r})" if not isinstance(found, (dict, BaseModel, type(None))) else ""
    if problem["type"] == "literal_error":
        shown += f".{nearest(str(found), re.findall(QUOTED, problem['ctx']['expected']))}"
    if ".explicit" in name:
        name, shown = name[: name.index(".explicit") + len(".explicit")], ""
        message = "which ones of each layer go, both counted from 0: {0: [1, 3], 2: [0]}, or one list for each layer"
    elif name.endswith(("amount", "prune.heads", "prune.neurons")) and problem["type"] != "value_error":
        message = "a ratio lies strictly between 0 and 1, a count is a whole number from 1"
    return f"{name}: {message}{shown}" if name else f"{message}{shown}"


def _is_branch(part: Any) -> bool:
    """Pydantic names the branch of a union in the path; users know nothing of those."""
    return isinstance(part, str) and (
        "[" in part or part in ("float", "int", "str", "constrained-float", "constrained-int")
    )


def _fields(path: list[Any]) -> list[str]:
    """Names of the keys that a section knows."""
    section: type[BaseModel] = Recipe
    for part in path:
        annotation = section.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
