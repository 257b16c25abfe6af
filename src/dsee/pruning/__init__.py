"""What to remove: rules, the scores they rank by, and the choice per layer or over all layers."""

from dsee.pruning.budget import Budget
from dsee.pruning.gates import add_gates, gate_penalty
from dsee.pruning.plan import LayerPlan, plan_for
from dsee.pruning.rules import Heads, Neurons, Rule
from dsee.pruning.scores import register_score, scores

__all__ = [
    "Budget",
    "Heads",
    "LayerPlan",
    "Neurons",
    "Rule",
    "add_gates",
    "gate_penalty",
    "plan_for",
    "register_score",
    "scores",
]
