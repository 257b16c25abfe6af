"""Parameters, FLOPs, latency and bytes: nothing is claimed that is not counted or timed here."""

from dsee.measure.disk import folder_bytes
from dsee.measure.flops import Flops, flops
from dsee.measure.latency import Latency, interleaved, latency
from dsee.measure.parameters import Parameters, parameters
from dsee.measure.summary import Summary, summary

__all__ = [
    "Flops",
    "Latency",
    "Parameters",
    "Summary",
    "flops",
    "folder_bytes",
    "interleaved",
    "latency",
    "parameters",
    "summary",
]
