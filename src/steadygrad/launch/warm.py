"""What trials need, imported once in the process that they are forked off: seconds for each."""

# ruff: noqa: F401 - imported for what that leaves in memory

from __future__ import annotations

import torch._dynamo  # every optimizer of torch imports it

import steadygrad._check
import steadygrad.detectors
import steadygrad.launch.arm
import steadygrad.launch.look
import steadygrad.launch.target
