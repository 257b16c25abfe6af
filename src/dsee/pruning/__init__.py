"""What to remove: rules, the scores they rank by, and the choice per layer or over all layers."""

from dsee.masks import get_mask, hold, masked_linears, set_mask
from dsee.pruning.budget import Budget
from dsee.pruning.gates import add_gates, gate_penalty
from dsee.pruning.mask_plan import apply_masks, masks_for
from dsee.pruning.mask_rules import Blocks, MaskRule, NofM, Weights
from dsee.pruning.movement import Movement
from dsee.pruning.plan import LayerPlan, plan_for
from dsee.pruning.rules import Heads, Neurons, Rule
from dsee.pruning.schedule import Gradual
from dsee.pruning.scores import register_score, scores
from dsee.pruning.weight_scores import WeightScoreInput, register_weight_score, weight_scores

__all__ = [
    "Blocks",
    "Budget",
    "Gradual",
    "Heads",
    "LayerPlan",
    "MaskRule",
    "Movement",
    "Neurons",
    "NofM",
    "Rule",
    "WeightScoreInput",
    "Weights",
    "add_gates",
    "apply_masks",
    "gate_penalty",
    "get_mask",
    "hold",
    "masked_linears",
    "masks_for",
    "plan_for",
    "register_score",
    "register_weight_score",
    "scores",
    "set_mask",
    "weight_scores",
]
