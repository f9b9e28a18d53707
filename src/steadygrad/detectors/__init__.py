"""The detectors, in the order of suspicion: wiring, data, numbers, initialisation, flow, step."""

from __future__ import annotations

from steadygrad.core.finding import Detector
from steadygrad.detectors.activations import dead_relu, saturated_activation, unnormalised_depth
from steadygrad.detectors.flow import (
    collapsed_signal,
    exploding_gradient,
    exploding_signal,
    vanishing_gradient,
    vanishing_signal,
)
from steadygrad.detectors.initialisation import growing_residual, strong_init, weak_init

DETECTORS: tuple[Detector, ...] = (
    dead_relu,
    saturated_activation,
    unnormalised_depth,
    weak_init,
    strong_init,
    growing_residual,
    exploding_gradient,
    vanishing_gradient,
    exploding_signal,
    vanishing_signal,
    collapsed_signal,
)
