"""Tune a pre-trained transformer with a low-rank plus sparse update, prune it, and ship a small, faster model.

Importing this package registers the DSEE method with PEFT and the cut models with transformers' Auto classes. Public
names are loaded when they are first used, so that the ``dsee`` command can answer ``--help`` without torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dsee._version import __version__
from dsee.errors import (
    ArchitectureError,
    ArtifactError,
    DseeError,
    ExportError,
    InputError,
    MissingExtraError,
    OrderError,
)

if TYPE_CHECKING:
    from dsee.artifact.load import load
    from dsee.artifact.lora_export import export_lora
    from dsee.artifact.lora_import import import_lora
    from dsee.artifact.save import save
    from dsee.measure.flops import flops
    from dsee.measure.latency import latency
    from dsee.measure.parameters import parameters
    from dsee.measure.summary import summary
    from dsee.pruning.budget import Budget
    from dsee.pruning.gates import add_gates, gate_penalty
    from dsee.pruning.mask_rules import Blocks, NofM, Weights
    from dsee.pruning.movement import Movement
    from dsee.pruning.rules import Heads, Neurons
    from dsee.pruning.schedule import Gradual
    from dsee.runtime.onnx_export import export_onnx
    from dsee.runtime.optimize import optimize
    from dsee.steps import history
    from dsee.surgery.gates import fold_gates
    from dsee.surgery.merge import merge
    from dsee.surgery.prune import prune
    from dsee.training.distillation import Distillation, distillation_loss
    from dsee.training.gates import GateCallback
    from dsee.training.gradual import GradualCallback
    from dsee.training.teacher import DistillationTrainer
    from dsee.update.bake import bake_masks
    from dsee.update.choose import choose_support
    from dsee.update.config import DseeConfig
    from dsee.update.groups import parameter_groups
    from dsee.update.model import DseeModel

_HOME = {
    "Blocks": "dsee.pruning",
    "Budget": "dsee.pruning",
    "Distillation": "dsee.training.distillation",
    "DistillationTrainer": "dsee.training.teacher",
    "DseeConfig": "dsee.update",
    "DseeModel": "dsee.update",
    "GateCallback": "dsee.training.gates",
    "Gradual": "dsee.pruning",
    "GradualCallback": "dsee.training.gradual",
    "Heads": "dsee.pruning",
    "Movement": "dsee.pruning",
    "Neurons": "dsee.pruning",
    "export_lora": "dsee.artifact.lora_export",
    "NofM": "dsee.pruning",
    "Weights": "dsee.pruning",
    "add_gates": "dsee.pruning.gates",
    "choose_support": "dsee.update.choose",
    "distillation_loss": "dsee.training.distillation",
    "bake_masks": "dsee.update.bake",
    "export_onnx": "dsee.runtime.onnx_export",
    "flops": "dsee.measure",
    "fold_gates": "dsee.surgery",
    "gate_penalty": "dsee.pruning.gates",
    "history": "dsee.steps",
    "import_lora": "dsee.artifact.lora_import",
    "latency": "dsee.measure",
    "load": "dsee.artifact.load",
    "merge": "dsee.surgery",
    "optimize": "dsee.runtime.optimize",
    "parameter_groups": "dsee.update.groups",
    "parameters": "dsee.measure",
    "prune": "dsee.surgery",
    "register": "dsee.registration",
    "save": "dsee.artifact.save",
    "summary": "dsee.measure",
}

__all__ = [
    "ArchitectureError",
    "ArtifactError",
    "Blocks",
    "Budget",
    "Distillation",
    "DistillationTrainer",
    "DseeConfig",
    "DseeError",
    "DseeModel",
    "ExportError",
    "GateCallback",
    "Gradual",
    "GradualCallback",
    "Heads",
    "InputError",
    "MissingExtraError",
    "Movement",
    "Neurons",
    "NofM",
    "OrderError",
    "Weights",
    "__version__",
    "add_gates",
    "bake_masks",
    "choose_support",
    "distillation_loss",
    "export_lora",
    "export_onnx",
    "flops",
    "fold_gates",
    "gate_penalty",
    "history",
    "import_lora",
    "latency",
    "load",
    "merge",
    "optimize",
    "parameter_groups",
    "parameters",
    "prune",
    "save",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dsee' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    # kept in the module, so that a sub-module of the same name cannot take its place later
    globals()[name] = value
    return value


# the command's entry module, and nothing else, asks to come first: its verbs register when they need to
if "dsee_command" not in sys.modules:
    from dsee.registration import register

    register()
