"""The detectors that read many steps of a training, in the order of suspicion."""

from __future__ import annotations

from steadygrad.core.finding import Detector
from steadygrad.detectors.axis import wrong_axis
from steadygrad.detectors.clipping import constant_clip, useless_clip
from steadygrad.detectors.pairs import broadcast_loss
from steadygrad.detectors.steps import (
    activations,
    flow,
    hosts,
    logits,
    losses,
    nonfinite,
    order,
    scale,
    spikes,
    stuck,
    updates,
    wiring,
)

STEPS: tuple[Detector, ...] = (
    wiring.no_gradient,
    wiring.not_in_optimizer,
    hosts.ineffective_hook,
    hosts.diverged_ranks,
    order.stale_gradient,
    order.misplaced_clip,
    hosts.hidden_nan,
    losses.label_out_of_range,
    nonfinite.poisoned_buffer,
    nonfinite.nonfinite_update,
    nonfinite.nonfinite_loss,
    nonfinite.nonfinite_backward,
    scale.loss_scale_collapse,
    losses.blocked_output,
    wrong_axis,
    broadcast_loss,
    activations.dead_relu,
    activations.saturated_activation,
    logits.exploding_logits,
    flow.exploding_gradient,
    flow.vanishing_gradient,
    spikes.gradient_spike,
    updates.swallowed_update,
    updates.large_update,
    updates.lr_too_low,
    useless_clip,
    constant_clip,
    stuck.stuck_loss,
)
