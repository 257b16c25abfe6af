"""Removing what a plan names, and merging the update into the weights."""

from dsee.surgery.cut import cut
from dsee.surgery.gates import fold_gates
from dsee.surgery.merge import merge
from dsee.surgery.prune import PruneReport, prune

__all__ = ["PruneReport", "cut", "fold_gates", "merge", "prune"]
