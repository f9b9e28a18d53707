"""The page: all is said, no name becomes markup, and it stays small however long the run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadygrad.core.finding import Finding, Severity
from steadygrad.core.record import Site
from steadygrad.core.report import Report
from steadygrad.core.steps import Row, record_of_rows
from steadygrad.core.story import Incident, Story, incidents, story_of
from steadygrad.render.html import html
from steadygrad.render.html.markup import safe, tag
from steadygrad.render.html.numbers import binned, said, stretches, zoomable

ASSETS = resources.files("steadygrad.render") / "assets"
EVIL = "<script>alert(1)</script>"


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def run_of(
    steps: int, *, layers: int = 3, every: int = 1, breaks: int = 10**9, name: str = "layers.{}"
) -> Report:
    """A run of so many rows, in which all is infinite from one on."""
    sites = [Site("AdamW", "step", kind="optimizer")]
    sites += [
        Site(f"{name.format(i)}.weight", "weight", i, "Linear", shape=(4, 4)) for i in range(layers)
    ]
    sites += [Site(name.format(i), "output", i, "Linear") for i in range(layers)]
    rows = []
    for row in range(steps):
        size = np.inf if row >= breaks else 1.0 + row / steps
        read = {
            "loss": [size],
            "norm": [2 * size],
            "norm_after": [1.0],
            "max_norm": [1.0],
            "lr": [1e-3],
        }
        read["grad"] = [size * 10.0 ** -(i % 8) for i in range(layers)]
        if row % 5 == 0:
            read |= {"weight": [1.0] * layers, "update": [1e-3 * (i + 1) for i in range(layers)]}
            read |= {
                "rms": [size] * layers,
                "grad_rms": [size * 2.0 ** (i % 8) for i in range(layers)],
            }
            read["dead"] = [0.25] * layers
        arrays = {key: np.array(one, dtype=np.float32) for key, one in read.items()}
        rows.append(Row(row * every, float(row), arrays))
    record = record_of_rows(sites, rows, {"optimizers": [{"name": "optimizer", "type": "AdamW"}]})
    return Report("train.py", record, (), clear=("G101",), cost={"seconds": 9.0, "overhead": 0.01})


# --- What is said --------------------------------------------------------------------------------


def test_a_report_says_all_of_its_findings(report: Report) -> None:
    page = html(report)
    for found in (*report.findings, *report.folded):
        assert safe(found.says) in page
        assert found.code in page
        assert all(safe(one) in page for one in found.ruled_out)
    assert all(safe(one.why) in page for one in report.blind)


def test_the_verdict_is_said_with_a_sign_and_the_measured_overhead() -> None:
    page = html(run_of(20))
    assert '<span class="sign" aria-hidden="true">✓</span>healthy' in page
    assert "1.0% (4.5 ms a step)" in page


def test_every_name_is_text_and_never_markup() -> None:
    ill = run_of(20, name=EVIL + "{}")
    found = Finding(Severity.risk, EVIL, (EVIL + "0",), {EVIL: EVIL}, code=EVIL, name=EVIL)
    events = (
        {"step": 3, "kind": "finding", "code": EVIL, "name": EVIL, "where": [EVIL], "says": EVIL},
    )
    ring = {"step": np.arange(4), "grad": np.ones((4, 3)), "loss": np.ones((4, 1))}
    story = Story(events, (Incident(3, ring, EVIL),), (EVIL,), {EVIL: EVIL}, 1.0, EVIL)
    page = html(replace(ill, target=EVIL, findings=(found,)), story, {EVIL: EVIL})
    assert EVIL not in page
    assert page.count("<script") == page.count("</script>") == 6
    assert data_of(page)["maps"][0]["names"][0] == EVIL + "0"


def test_no_markup_of_ours_is_escaped(report: Report) -> None:
    for page in (html(report), html(run_of(20, breaks=15))):
        assert "&lt;" not in page


def test_control_signs_in_a_name_are_escaped() -> None:
    assert safe("a\x1b[31m\u202eb\nc") == "a\\x1b[31m\\u202eb\nc"
    assert tag("p", "a", title='"><b>') == '<p title="&quot;&gt;&lt;b&gt;">a</p>'


def test_the_data_of_the_page_is_its_report(report: Report) -> None:
    data = data_of(html(report))
    assert data["report"]["verdict"] == report.verdict
    assert [one["code"] for one in data["report"]["findings"]] == [
        one.code for one in report.findings
    ]


def test_advice_without_a_trial_says_so(report: Report) -> None:
    advised = sum(len(found.try_next) for found in report.findings)
    assert html(report).count("not verified by a trial") == advised


def test_what_explain_says_stands_with_the_finding() -> None:
    found = Finding(Severity.note, "it is", code="G409", name="constant-clip")
    page = html(Report("a", run_of(3).record, (found,)), pages={"G409": "It `clips`.\n\nAlways."})
    assert "<p>It <code>clips</code>.</p><p>Always.</p>" in page


# --- One file ------------------------------------------------------------------------------------


def test_the_page_allows_its_own_scripts_and_nothing_else() -> None:
    page = html(run_of(20))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'none'" in policy[1]
    for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]


def test_nothing_is_fetched(report: Report) -> None:
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', html(report))


def test_what_is_vendored_is_what_was_published() -> None:
    folder = ASSETS / "uplot"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert "MIT" in (folder / "LICENSE").read_text()


def test_a_million_steps_of_three_hundred_parameters_stay_small() -> None:
    ill = run_of(2_000, layers=300, every=500, breaks=1_900, name="model.encoder.layers.{}.mlp.fc")
    assert ill.record.steps[-1] > 999_000
    page = html(ill)
    assert len(page.encode()) < 700_000
    data = data_of(page)
    assert len(data["course"]["steps"]) <= 500
    assert len(data["maps"][0]["names"]) <= 160


# --- Data for the drawings -----------------------------------------------------------------------


def cells_of(heat: dict[str, Any]) -> np.ndarray[Any, Any]:
    packed = np.frombuffer(base64.b64decode(heat["cells"]), "<u2")
    return packed.reshape(len(heat["names"]), len(heat["steps"]))


def test_a_cell_of_the_heat_map_is_its_value() -> None:
    heat = data_of(html(run_of(20)))["maps"][0]
    share = (cells_of(heat).astype(float) - 2) / 64_999
    values = 10 ** (heat["low"] + share * (heat["high"] - heat["low"]))
    expected = (1 + np.arange(20) / 20) * 10.0 ** -np.arange(3)[:, None]
    np.testing.assert_allclose(values, expected, rtol=1e-3)  # 4 decades in 65 000 levels


def test_what_is_not_finite_is_marked_in_map_and_lines() -> None:
    data = data_of(html(run_of(20, breaks=15)))
    assert (cells_of(data["maps"][0])[:, 15:] == 65_535).all()
    assert (cells_of(data["maps"][0])[:, :15] < 65_535).all()
    loss = data["course"]["charts"][0]["series"][0]
    assert loss["broken"] == [15, 16, 17, 18, 19]
    assert loss["values"][15:] == [None] * 5


def test_one_broken_step_of_many_is_still_marked() -> None:
    report = run_of(5_000)
    report.record.values[2_345, :, :] = np.inf
    data = data_of(html(report))
    assert (cells_of(data["maps"][0]) == 65_535).sum() == 3
    assert len(data["course"]["charts"][0]["series"][0]["broken"]) == 1


def test_the_profile_shows_the_first_and_the_last_sampled_step() -> None:
    profile = data_of(html(run_of(31)))["profile"]
    gradient = profile["panels"][1]["series"]
    assert [one["label"] for one in gradient] == ["step 0", "step 30"]
    assert gradient[0]["values"] == [0.25, 0.5, 1.0]  # doubles towards the last layer, 1 there


def test_two_optimizers_have_a_line_each() -> None:
    sites = [Site("Adam", "step"), Site("SGD", "step")]
    rows = [Row(step, 0.0, {"loss": np.array([1, 2 + step], np.float32)}) for step in range(5)]
    report = Report("gan.py", record_of_rows(sites, rows, {}), ())
    series = data_of(html(report))["course"]["charts"][0]["series"]
    assert [one["label"] for one in series] == ["loss, Adam 1", "loss, SGD 2"]
    assert series[1]["values"] == [2, 3, 4, 5, 6]


def test_the_rate_of_clipping_is_shown() -> None:
    charts = {one["title"]: one for one in data_of(html(run_of(20)))["course"]["charts"]}
    assert charts["share of steps clipped"]["series"][0]["values"] == [1.0] * 20
    assert [one["label"] for one in charts["gradient norm"]["series"]] == [
        "before clipping",
        "after clipping",
    ]  # the threshold is the norm after


def test_updates_are_grouped_and_compared_with_a_thousandth() -> None:
    chart = data_of(html(run_of(31)))["ratios"]["charts"][0]
    assert chart["rule"] == 1e-3
    assert [one["values"][0] for one in chart["series"]] == [0.001, 0.002, 0.003]


def test_stretches_are_equally_long_where_old_steps_are_coarse() -> None:
    steps = np.array([*range(0, 900, 100), *range(900, 1000)])
    assert steps[stretches(steps, 10)].tolist() == [*range(0, 1000, 100)]
    both = steps[zoomable(steps, 40)]
    assert {*range(0, 900, 100)} <= {*both.tolist()}
    assert (both >= 900).sum() >= 15
    assert len(both) <= 40


def test_bins_hold_least_median_and_largest() -> None:
    steps = np.array([0, 1, 2, 2, 2, 3])  # step 2 is decimated: three rows
    starts = stretches(steps, 2)
    assert starts.tolist() == [0, 2]
    drawn = binned(np.array([1.0, 3.0, 2.0, 5.0, 9.0, np.inf]), starts)
    assert drawn.low.tolist() == [1, 2]
    assert drawn.middle.tolist() == [1, 5]
    assert drawn.high.tolist() == [3, 9]
    assert drawn.broken.tolist() == [False, True]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (12345.6, "12,346"),
        (1e-8, "1e-8"),
        (2.5e7, "2.5e7"),
        (np.nan, "not read"),
    ],
)
def test_numbers_are_said_shortly(value: float, words: str) -> None:
    assert said(value) == words


# --- Incidents -----------------------------------------------------------------------------------


def test_an_incident_tells_the_chain_from_the_first_bad_tensor() -> None:
    report = run_of(20, breaks=15)
    ring = {"step": np.arange(10, 15), "loss": np.ones((5, 1)), "norm": np.ones((5, 1))}
    events = ({"step": 15, "kind": "nonfinite", "says": "nobody knows", "where": []},)
    page = html(report, Story(events, (Incident(15, ring, "runs/a/incidents/15"),)))
    told = page[page.index('<ol class="chain">') :]
    chain = [
        "nobody knows",
        "the loss: not finite",
        "3 of 3 gradients not finite",
        "layers.2.weight",
    ]
    places = [told.index(one) for one in chain]
    assert places == sorted(places)
    assert told.index("layers.2.weight") < told.index("layers.1.weight")
    assert "steadygrad replay runs/a/incidents/15 train.py" in page


def test_a_jump_names_what_grew() -> None:
    grad = np.ones((6, 3))
    grad[-1, 1] = 40.0
    ring = {"step": np.arange(6), "grad": grad}
    page = html(run_of(20), Story((), (Incident(5, ring),)))
    assert "<code>layers.1.weight</code> \N{MULTIPLICATION SIGN}40" in page


def test_only_what_was_kept_is_said_to_be_computed_again(tmp_path: Path) -> None:
    for name in ("7", "8"):
        (tmp_path / "incidents" / name).mkdir(parents=True)
        np.savez(tmp_path / "incidents" / name / "ring.npz", step=np.arange(3))
    (tmp_path / "incidents" / "8" / "tensors.safetensors").touch()
    page = html(run_of(20), story_of(tmp_path))
    assert "incidents/8 " in page
    assert "incidents/7 " not in page


def test_rings_that_are_none_are_left_out(tmp_path: Path) -> None:
    below = tmp_path / "incidents"
    for name in ("7", "8", "9", "notes"):
        (below / name).mkdir(parents=True)
    (below / "7" / "ring.npz").write_bytes(b"PK\x03\x04 cut off")
    np.savez(below / "8" / "ring.npz", step=np.array([object()]))
    np.savez(below / "9" / "ring.npz", step=np.arange(3), loss=np.ones((3, 1)), odd=np.ones(7))
    read = incidents(tmp_path)
    assert [(one.step, sorted(one.ring)) for one in read] == [
        (7, []),
        (8, []),
        (9, ["loss", "step"]),
    ]
    assert html(run_of(20), Story((), read))


def test_a_run_of_a_foreign_hand_makes_a_page_all_the_same(tmp_path: Path) -> None:
    """Whatever the files hold: no number, no list, no name is taken on trust."""
    (tmp_path / "meta.json").write_text('{"started": 1e300, "command": [3], "versions": {"a": []}}')
    odd = [{"kind": "finding", "where": 3}, {"kind": "nonfinite", "says": []}, {"kind": "jump"}]
    lines = [json.dumps({"step": 7, **one}) + "\n" for one in odd]
    (tmp_path / "events.jsonl").write_text("".join(lines))
    below = tmp_path / "incidents" / "7"
    below.mkdir(parents=True)
    np.savez(below / "ring.npz", step=np.arange(8), loss=np.ones((8, 0)), grad=np.ones((8, 900)))
    facts = {"optimizers": [3, {}, {"name": {}, "lr": "x"}]}
    report = run_of(20)
    page = html(replace(report, record=replace(report.record, facts=facts)), story_of(tmp_path))
    assert "Step 7" in page


def test_what_is_no_story_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"versions": 3, "command": "x", "started": []}')
    told = story_of(tmp_path)
    assert (told.versions, told.command, told.started, told.events) == ({}, (), 0.0, ())
