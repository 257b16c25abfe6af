"""PyTorch's own counter, on eager attention, where it sees every product."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import batch

ALL_LINEARS = r".*layer\.\d+\..*(query|key|value|dense|q_lin|k_lin|v_lin|out_lin|lin1|lin2)"


def counted(model, size=4, length=10, inputs=None):
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**(inputs or batch(size, length)))
    return counter.get_total_flops()
