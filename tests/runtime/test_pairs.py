"""Feed-forward blocks in one call, inside models."""

import pytest
import torch

import dsee
from behaviours.families import ALL
from dsee.kernels import library, to_kernels
from dsee.runtime.activations import fuse, unfuse
from dsee.runtime.pairs import join_pairs, part_pairs

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not compiled here")
#: Families with a plain feed-forward block; the others' has a gate, or no biases and so no activation in the map.
JOINED = {"bert", "roberta", "electra", "deberta-v2", "distilbert", "gpt2"}


@pytest.mark.parametrize("family", ALL.values(), ids=list(ALL))
def test_every_family_keeps_its_logits(family):
    model = family.base().eval()
    dsee.prune(model, dsee.Blocks(0.6, score="weight"))
    for module in list(model.modules()):
        if type(module) is torch.nn.Linear or type(module).__name__ == "Conv1D":
            to_kernels(module, "blocks")
    fused = fuse(model)
    with torch.inference_mode():
        before = family.logits(model)
        leaders = join_pairs(model)
        assert bool(leaders) == (model.config.model_type in JOINED)
        assert torch.equal(family.logits(model), before)
        # somebody looks at what lies between: then it has to be there
        shapes = []
        for leader in leaders:
            leader._dsee_sparse.watched[0].register_forward_hook(lambda _, args, out: shapes.append(out.shape[-1]))
        assert torch.equal(family.logits(model), before)
        assert all(shape == leader.packed().shape[0] for shape, leader in zip(shapes, leaders, strict=True))
        part_pairs(leaders)
        assert torch.equal(family.logits(model), before)
    unfuse(fused)
