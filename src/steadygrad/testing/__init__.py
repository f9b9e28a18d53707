"""What others may reuse in their tests: patients, healthy networks, and contracts."""

from __future__ import annotations

from steadygrad.testing import (
    sick_activations,
    sick_depth,
    sick_numbers,
    sick_setup,
    sick_time,
    trainings_course,
    trainings_numbers,
    trainings_order,
    trainings_precision,
)
from steadygrad.testing.case import Case, Patient
from steadygrad.testing.contract import check_detector
from steadygrad.testing.healthy import HEALTHY
from steadygrad.testing.policy import check_policy
from steadygrad.testing.remedy import check_remedy
from steadygrad.testing.sink import Shown, check_sink
from steadygrad.testing.training_case import Training
from steadygrad.testing.trainings_healthy import HEALTHY_TRAININGS

__all__ = [
    "HEALTHY",
    "HEALTHY_TRAININGS",
    "PATIENTS",
    "TRAININGS",
    "Case",
    "Patient",
    "Shown",
    "Training",
    "check_detector",
    "check_policy",
    "check_remedy",
    "check_sink",
]

PATIENTS: tuple[Patient, ...] = (
    *sick_numbers.PATIENTS,
    *sick_depth.PATIENTS,
    *sick_time.PATIENTS,
    *sick_activations.PATIENTS,
    *sick_setup.PATIENTS,
)
"""Small networks with one planted illness each; every code that is visible at once has some."""

TRAININGS: tuple[Training, ...] = (
    *trainings_numbers.TRAININGS,
    *trainings_precision.TRAININGS,
    *trainings_order.TRAININGS,
    *trainings_course.TRAININGS,
)
"""Short trainings with one planted illness each, and the same training without it."""
