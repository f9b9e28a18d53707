"""All remedies: one line each."""

from __future__ import annotations

from steadygrad.remedies.activation import elu, gelu, leaky_relu, prelu, selu, silu, tailored_relu
from steadygrad.remedies.attention import qk_norm
from steadygrad.remedies.bad_data import drop_bad_samples
from steadygrad.remedies.biases import zero_bias
from steadygrad.remedies.classical import kaiming_init, orthogonal_init, xavier_init
from steadygrad.remedies.critical import critical_init
from steadygrad.remedies.dead import revive
from steadygrad.remedies.decay import weaker_decay
from steadygrad.remedies.deepnorm import deep_norm
from steadygrad.remedies.delta import delta_orthogonal
from steadygrad.remedies.ends import linear_output, no_last_relu
from steadygrad.remedies.epsilon import eps_half, larger_eps
from steadygrad.remedies.guarded import GUARDS
from steadygrad.remedies.head import small_head
from steadygrad.remedies.jacobian import jacobian_init
from steadygrad.remedies.level import level_init
from steadygrad.remedies.lsuv import lsuv
from steadygrad.remedies.norms import batch_norm, group_norm, layer_norm, rms_norm
from steadygrad.remedies.precision import float32_weights
from steadygrad.remedies.prenorm import pre_norm
from steadygrad.remedies.rate import FACTORS, default_lr, sharpness_lr, warm_up
from steadygrad.remedies.recurrence import chrono_init, orthogonal_recurrence
from steadygrad.remedies.remedy import Remedy
from steadygrad.remedies.residual import add_residual, depth_scaled_residual, zero_branches
from steadygrad.remedies.safe import SAFE
from steadygrad.remedies.scale import standardise, standardise_target
from steadygrad.remedies.scores import cross_entropy, log_softmax, with_logits
from steadygrad.remedies.straight import keep_the_graph, straight_through
from steadygrad.remedies.substitute import adam, adamw, rmsprop, sgd_momentum
from steadygrad.remedies.targets import (
    class_axis,
    finite_class_weights,
    log_probabilities,
    same_shape,
    unit_targets,
)
from steadygrad.remedies.wiring import (
    follow_requires_grad,
    rebuild_optimizer,
    register,
    train_mode,
    zero_before_backward,
)

REMEDIES: tuple[Remedy, ...] = (
    zero_before_backward,
    rebuild_optimizer,
    register,
    follow_requires_grad,
    train_mode,
    keep_the_graph,
    straight_through,
    standardise,
    standardise_target,
    same_shape,
    class_axis,
    unit_targets,
    log_probabilities,
    with_logits,
    cross_entropy,
    log_softmax,
    finite_class_weights,
    no_last_relu,
    linear_output,
    larger_eps,
    *SAFE,
    drop_bad_samples,
    default_lr,
    sharpness_lr,
    *FACTORS,
    warm_up,
    *GUARDS,
    adam,
    adamw,
    rmsprop,
    sgd_momentum,
    eps_half,
    float32_weights,
    weaker_decay,
    zero_bias,
    revive,
    level_init,
    critical_init,
    kaiming_init,
    xavier_init,
    orthogonal_init,
    lsuv,
    jacobian_init,
    delta_orthogonal,
    add_residual,
    small_head,
    zero_branches,
    depth_scaled_residual,
    deep_norm,
    orthogonal_recurrence,
    chrono_init,
    leaky_relu,
    prelu,
    elu,
    selu,
    gelu,
    silu,
    tailored_relu,
    batch_norm,
    layer_norm,
    rms_norm,
    group_norm,
    pre_norm,
    qk_norm,
)
