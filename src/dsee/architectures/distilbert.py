"""DistilBERT."""

from dsee.architectures._map import Architecture
from dsee.architectures._registry import register

DISTILBERT = register(
    Architecture(
        name="distilbert",
        layers="transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
        activation="ffn.activation",
        attention="attention",
        head_size="attention_head_size",
        heads_attributes=("n_heads",),
        width_attributes=("dim",),
    )
)
