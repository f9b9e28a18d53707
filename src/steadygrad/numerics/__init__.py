"""Take gradients by numbers alone, compare them with autograd's, and descend along them."""

from __future__ import annotations

from steadygrad.numerics.compared import Comparison, check
from steadygrad.numerics.descent import Path, descend
from steadygrad.numerics.plain import Estimate
from steadygrad.numerics.slopes import gradient, jacobian

__all__ = ["Comparison", "Estimate", "Path", "check", "descend", "gradient", "jacobian"]
