"""The update dW = s (U V + S2) as a PEFT tuner."""

from dsee.update.config import DseeConfig, DseePeftType
from dsee.update.embedding import DseeEmbedding
from dsee.update.layer import DseeLayer, DseeLinear
from dsee.update.model import DseeModel
from dsee.update.side import SideConv1D, SideLinear
from dsee.update.sparse_delta import SparseDelta

__all__ = [
    "DseeConfig",
    "DseeEmbedding",
    "DseeLayer",
    "DseeLinear",
    "DseeModel",
    "DseePeftType",
    "SideConv1D",
    "SideLinear",
    "SparseDelta",
]
