"""The models of the grid: a BERT classifier, tuned in full or with an update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import dsee
from grid_data import model_folder

#: What the names of target sets stand for; pooler and embeddings are no part of "all".
LAYER = r".*encoder\.layer\.({layers})\."
ATTENTION = r"attention\.(self\.(query|key|value)|output\.dense)"
FFN = r"(intermediate\.dense|output\.dense)"
TARGETS = {
    "qv": r"attention\.self\.(query|value)",
    "attention": ATTENTION,
    "ffn": FFN,
    "all": f"({ATTENTION}|{FFN})",
}
#: What may follow after a "+", outside the layers.
FURTHER = {"pooler": r".*pooler\.dense", "words": r".*word_embeddings"}


@dataclass(frozen=True)
class Cell:
    """One run: everything that decides its outcome.

    Attributes:
        task: name of the task.
        method: "full", "lora", "dsee" or "head" (classifier and pooler alone).
        seed: head's first values, batch order, support, V's first values.
        targets: a key of TARGETS, with "+pooler" or "+words" for an update on the pooler, or the word embeddings, too.
        r: rank.
        scale: s; alpha is r times this.
        n_sparse: N.
        support: the rule.
        rank_pattern: exceptions to ``r``; each has the same scale, unless ``scale_pattern`` says otherwise.
        scale_pattern: exceptions to ``scale``, for keys of ``rank_pattern``.
        layers: "all" or "upper" (the upper half of the layers).
        pooler: whether the pooler is trained in full.
        bias: PEFT's word for which biases are trained.
        norms: whether LayerNorms are trained.
        lr: learning rate of V (of everything, in "full").
        lr_u: U's learning rate over V's, as LoRA+.
        lr_s: S2's over V's.
        lr_head: the head's over V's.
        epochs: passes over the data, with one linear decay.
        warmup: share of the steps.
        weight_decay: on everything that is trained.
        dropout: of the base, outside attention.
        attention_dropout: of the attention probabilities.
        batch: sentences in a batch.
        train_size: fewer training sentences, for a quick look; None for the task's own number.
    """

    task: str
    method: str = "dsee"
    seed: int = 0
    targets: str = "qv"
    r: int = 8
    scale: float = 4.0
    n_sparse: int = 64
    support: str = "grebsmo"
    rank_pattern: dict[str, int] = field(default_factory=dict)
    scale_pattern: dict[str, float] = field(default_factory=dict)
    layers: str = "all"
    pooler: bool = False
    bias: str = "none"
    norms: bool = False
    lr: float = 1e-3
    lr_u: float = 1.0
    lr_s: float = 1.0
    lr_head: float = 1.0
    epochs: int = 3
    warmup: float = 0.06
    weight_decay: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    batch: int = 32
    train_size: int | None = None


def build(cell: Cell) -> nn.Module:
    """Return the model of a cell, ready to train.

    Args:
        cell: the run.
    """
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(cell.seed)
    base = AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=2, dtype=torch.float32)
    for name, module in base.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = cell.attention_dropout if name.endswith("attention.self.dropout") else cell.dropout
    # the same head for every method, whatever was drawn before
    torch.manual_seed(cell.seed)
    nn.init.normal_(base.classifier.weight, std=0.02)
    if cell.method == "full":
        return base
    if cell.method == "head":
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name.startswith(("classifier", "bert.pooler")))
        return base
    return get_peft_model(base, _config(cell, base.config.num_hidden_layers))


def first_trained(model: nn.Module) -> int:
    """The lowest layer with anything to train, 0 where something below the layers is trained too."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if any("embeddings" in name for name in names):
        return 0
    numbers = [int(name.split("encoder.layer.")[1].split(".")[0]) for name in names if "encoder.layer." in name]
    return min(numbers, default=model.config.num_hidden_layers)  # type: ignore[union-attr] - any transformers model


def _config(cell: Cell, depth: int) -> Any:
    half = "|".join(str(i) for i in range(depth // 2 if cell.layers == "upper" else 0, depth))
    inner, *further = cell.targets.split("+")
    pattern = LAYER.format(layers=f"({half})") + TARGETS[inner] + "".join(f"|{FURTHER[name]}" for name in further)
    saved = ["pooler"] * cell.pooler + ["LayerNorm"] * cell.norms
    common: dict[str, Any] = {
        "task_type": "SEQ_CLS",
        "target_modules": pattern,
        "r": cell.r,
        "rank_pattern": cell.rank_pattern,
        "alpha_pattern": {
            key: rank * cell.scale_pattern.get(key, cell.scale) for key, rank in cell.rank_pattern.items() if rank
        },
        "modules_to_save": saved or None,
    }
    if cell.method == "lora":
        return LoraConfig(lora_alpha=int(cell.r * cell.scale), **common)
    return dsee.DseeConfig(
        alpha=(cell.r or 1) * cell.scale,
        n_sparse=cell.n_sparse,
        support=cell.support,
        seed=cell.seed,
        bias=cell.bias,
        **common,
    )


def counts(model: nn.Module) -> dict[str, int]:
    """Trained numbers without and with the classifier, and all numbers of the plain model."""
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    head = sum(size for name, size in trained.items() if "classifier" in name)
    with_update = sum(p.numel() for p in model.parameters())
    extra = 0 if not hasattr(model, "peft_config") else sum(trained.values())
    return {"trained": sum(trained.values()) - head, "head": head, "total": with_update - extra + head}


def groups(model: nn.Module, cell: Cell) -> list[dict[str, Any]]:
    """Optimizer groups: V (and the rest), U, S2 and the head, each with its learning rate."""
    factors = {"dsee_U": cell.lr_u, "lora_B": cell.lr_u, "dsee_S": cell.lr_s, "classifier": cell.lr_head}
    found: dict[float, list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next((f for part, f in factors.items() if part in name), 1.0)
            found.setdefault(factor, []).append(parameter)
    return [{"params": params, "lr": cell.lr * factor} for factor, params in found.items()]
