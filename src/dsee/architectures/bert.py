"""BERT and the families that copied its layout."""

from dsee.architectures._map import Architecture
from dsee.architectures._registry import register

BERT = register(
    Architecture(
        name="bert",
        layers="encoder.layer",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
        ffn_in="intermediate.dense",
        ffn_out="output.dense",
        activation="intermediate.intermediate_act_fn",
        attention="attention.self",
        head_size="attention_head_size",
        heads_attributes=("num_attention_heads",),
        width_attributes=("all_head_size",),
    )
)
