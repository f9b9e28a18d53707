"""The detectors, in the order of suspicion: wiring, data, numbers, initialisation, flow, step."""

from __future__ import annotations

from steadygrad.core.finding import Detector
from steadygrad.detectors.activations import dead_relu, saturated_activation, unnormalised_depth
from steadygrad.detectors.axis import wrong_axis
from steadygrad.detectors.clipping import constant_clip, useless_clip
from steadygrad.detectors.data import (
    empty_supervision,
    exploding_head,
    label_out_of_range,
    singular_normalisation,
    unscaled_input,
    unscaled_target,
)
from steadygrad.detectors.decay import decay_too_strong
from steadygrad.detectors.flow import (
    collapsed_signal,
    exploding_gradient,
    exploding_signal,
    vanishing_gradient,
    vanishing_signal,
)
from steadygrad.detectors.initialisation import growing_residual, strong_init, weak_init
from steadygrad.detectors.loss import blocked_output
from steadygrad.detectors.numbers import (
    half_precision_overflow,
    nonfinite_backward,
    nonfinite_data,
    nonfinite_forward,
    nonfinite_loss,
    norm_overflow,
    poisoned_buffer,
)
from steadygrad.detectors.pairs import broadcast_loss
from steadygrad.detectors.samples import constant_input
from steadygrad.detectors.step import (
    lr_too_high,
    lr_too_low,
    missing_warmup,
    nonfinite_update,
    swallowed_update,
)
from steadygrad.detectors.steps import STEPS
from steadygrad.detectors.through_time import exploding_through_time, vanishing_through_time
from steadygrad.detectors.values import cloned_init, idle_norm, symmetric_init, uninitialised_memory
from steadygrad.detectors.wiring import no_gradient, not_in_optimizer

DETECTORS: tuple[Detector, ...] = (
    uninitialised_memory,
    nonfinite_data,
    poisoned_buffer,
    no_gradient,
    not_in_optimizer,
    idle_norm,
    label_out_of_range,
    empty_supervision,
    constant_input,
    broadcast_loss,
    wrong_axis,
    unscaled_input,
    unscaled_target,
    nonfinite_forward,
    exploding_head,
    half_precision_overflow,
    nonfinite_loss,
    nonfinite_backward,
    norm_overflow,
    blocked_output,
    symmetric_init,
    dead_relu,
    saturated_activation,
    unnormalised_depth,
    weak_init,
    strong_init,
    growing_residual,
    singular_normalisation,
    exploding_through_time,
    vanishing_through_time,
    exploding_gradient,
    vanishing_gradient,
    exploding_signal,
    vanishing_signal,
    collapsed_signal,
    nonfinite_update,
    swallowed_update,
    decay_too_strong,
    lr_too_high,
    missing_warmup,
    lr_too_low,
    cloned_init,
)

CLIPPING: tuple[Detector, ...] = (useless_clip, constant_clip)
"""What is seen of a run that is guarded."""

WATCHING: tuple[Detector, ...] = STEPS
"""What is seen of many steps; some share a code with what is seen before the first."""

EVERY = tuple(dict.fromkeys((*DETECTORS, *CLIPPING, *WATCHING)))
"""All detectors; several may share a code and then have its name."""
