"""Where the sparse part of an update may be non-zero: the support Omega, one file per rule."""

from dsee.support._registry import choose, register_rule, rules
from dsee.support._top import top_n
from dsee.support.grebsmo import grebsmo
from dsee.support.grebsmo_reference import grebsmo_reference
from dsee.support.magnitude import magnitude
from dsee.support.random import random

__all__ = ["choose", "grebsmo", "grebsmo_reference", "magnitude", "random", "register_rule", "rules", "top_n"]
