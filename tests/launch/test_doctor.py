"""The doctor says what is there, and tries what it says."""

from __future__ import annotations

import pytest
import torch

from steadygrad.launch import doctor as module
from steadygrad.launch.doctor import doctor


def test_it_names_versions_mechanisms_and_extras() -> None:
    said = "\n".join(doctor())
    assert torch.__version__ in said
    for title in ("versions", "devices", "mechanisms", "extras", "would be blind"):
        assert f"\n{title}\n" in f"\n{said}\n"
    for name in ("fused", "foreach", "DTensor", *module.EXTRAS):
        assert f"\n  {name} " in said


def test_a_fused_step_that_heeds_the_flag_is_found_out_by_making_one() -> None:
    random = torch.get_rng_state()
    assert all(module._skips_along(name, "cpu") for name in module.FUSED)
    assert torch.equal(torch.get_rng_state(), random)


def test_an_extra_that_is_missing_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "version", lambda package: "")
    name, said = module._extra("parquet")
    assert name == "parquet"
    assert said.endswith("pip install 'steadygrad[parquet]'")
