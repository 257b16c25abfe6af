"""Cut equals mask, for any plan."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_oracle import ALL_LINEARS, assert_equal_logits, strong, zeroed

from conftest import tiny_bert
from dsee.architectures import structure
from dsee.pruning import LayerPlan
from dsee.surgery import cut

LAYER_PLANS = st.builds(
    LayerPlan,
    heads=st.sets(st.integers(0, 3), max_size=3).map(lambda chosen: tuple(sorted(chosen))),
    neurons=st.sets(st.integers(0, 39), max_size=39).map(lambda chosen: tuple(sorted(chosen))),
)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(plan=st.lists(LAYER_PLANS, min_size=3, max_size=3), seed=st.integers(0, 100))
def test_any_plan_on_bert(plan, seed):
    model = strong(tiny_bert(seed), target_modules=ALL_LINEARS, n_sparse=30).double()
    masked = zeroed(model, plan)
    cut(model, plan)
    assert structure(model) == {
        "heads": [4 - len(layer.heads) for layer in plan],
        "neurons": [40 - len(layer.neurons) for layer in plan],
    }
    assert_equal_logits(model, masked, torch.float64)
