"""DeBERTa-v2 and v3: relative positions go through the projections too, or through two of their own."""

from dsee.architectures._map import Architecture
from dsee.architectures._registry import register

DEBERTA_V2 = register(
    Architecture(
        name="deberta-v2",
        layers="encoder.layer",
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        output="attention.output.dense",
        positions=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        position_span="pos_ebd_size",
        ffn_in="intermediate.dense",
        ffn_out="output.dense",
        activation="intermediate.intermediate_act_fn",
        attention="attention.self",
        head_size="attention_head_size",
        heads_attributes=("num_attention_heads",),
        width_attributes=("all_head_size",),
    )
)
