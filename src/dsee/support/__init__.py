"""Where the sparse part of an update may be non-zero: the support Omega, one file per rule."""

from dsee.support._gradients import accumulated, groups
from dsee.support._registry import EXPLICIT, check_rule, choose, needs_gradient, register_rule, rules
from dsee.support._top import top_n
from dsee.support.explicit import flat_positions
from dsee.support.gradient import gradient
from dsee.support.grebsmo import grebsmo
from dsee.support.grebsmo_reference import grebsmo_reference
from dsee.support.magnitude import magnitude
from dsee.support.random import random
from dsee.support.residual import residual
from dsee.support.rows import rows

__all__ = [
    "EXPLICIT",
    "accumulated",
    "check_rule",
    "choose",
    "flat_positions",
    "gradient",
    "grebsmo",
    "grebsmo_reference",
    "groups",
    "magnitude",
    "needs_gradient",
    "random",
    "register_rule",
    "residual",
    "rows",
    "rules",
    "top_n",
]
