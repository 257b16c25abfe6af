"""T5 and mT5, the plain and the gated feed-forward part."""

from dsee.architectures._map import Architecture
from dsee.architectures._registry import register

T5 = register(
    Architecture(
        name="t5",
        layers=("encoder.block", "decoder.block"),
        query="layer.0.SelfAttention.q",
        key="layer.0.SelfAttention.k",
        value="layer.0.SelfAttention.v",
        output="layer.0.SelfAttention.o",
        ffn_in="layer.-1.DenseReluDense.wi|layer.-1.DenseReluDense.wi_1",
        gate="layer.-1.DenseReluDense.wi_0",
        ffn_out="layer.-1.DenseReluDense.wo",
        attention="layer.0.SelfAttention",
        head_size="key_value_proj_dim",
        cross="layer.1.EncDecAttention",
        fixed_heads="the first block computes one relative-position bias for the heads of all blocks",
        uniform=(("d_ff", "neurons"),),
        model_types=("mt5",),
    )
)
