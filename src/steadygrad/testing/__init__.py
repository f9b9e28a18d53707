"""What others may reuse in their tests: patients, healthy networks, and contracts."""

from __future__ import annotations

from steadygrad.testing import sick_activations, sick_depth, sick_numbers, sick_setup, sick_time
from steadygrad.testing.case import Case, Patient
from steadygrad.testing.contract import check_detector
from steadygrad.testing.healthy import HEALTHY
from steadygrad.testing.policy import check_policy

__all__ = ["HEALTHY", "PATIENTS", "Case", "Patient", "check_detector", "check_policy"]

PATIENTS: tuple[Patient, ...] = (
    *sick_numbers.PATIENTS,
    *sick_depth.PATIENTS,
    *sick_time.PATIENTS,
    *sick_activations.PATIENTS,
    *sick_setup.PATIENTS,
)
"""Small networks with one planted illness each; every code that is visible at once has some."""
