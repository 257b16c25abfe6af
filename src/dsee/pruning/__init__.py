"""What to remove: rules, the scores they rank by, and the choice per layer or over all layers."""

from dsee.pruning.plan import LayerPlan, plan_for
from dsee.pruning.rules import Heads, Neurons, Rule
from dsee.pruning.scores import register_score, scores

__all__ = ["Heads", "LayerPlan", "Neurons", "Rule", "plan_for", "register_score", "scores"]
