"""The page in a real browser: it draws, answers to mouse and keys, and asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from steadygrad.core.report import Report
from steadygrad.core.story import Story
from steadygrad.render.html import html
from tests.browser import Browser, found, started
from tests.render.test_html import EVIL, run_of

FLAG = {"step": 15, "kind": "finding", "code": "G004", "name": "nonfinite-backward"}

pytestmark = pytest.mark.skipif(
    found() is None,
    reason="no Chromium found: install one, or name it in $STEADYGRAD_BROWSER",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(found() or "", tmp_path_factory.mktemp("home")) as one:
        yield one


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Browser:
    """A run of 20 steps that breaks in step 15, with layers of an evil name."""
    _open(browser, run_of(20, breaks=15, name=EVIL + ".{}"), tmp_path, Story((FLAG,)))
    return browser


def _open(browser: Browser, report: Report, home: Path, story: Story | None = None) -> float:
    path = home / "report.html"
    path.write_text(html(report, story), encoding="utf-8")
    browser.size(1100)
    return browser.open(path.as_uri())


def test_it_draws_without_a_word_on_the_console_or_a_request(opened: Browser) -> None:
    assert opened.console == []
    assert len(opened.requests) == 1
    assert opened.requests[0].startswith("file://")
    assert opened.run("document.querySelectorAll('.chart canvas').length") == 9


def test_it_forbids_itself_every_request(opened: Browser) -> None:
    tried = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')"
    assert opened.run(tried) == "refused"
    assert "Content Security Policy" in opened.console[0]


def test_a_module_named_as_a_script_is_text(opened: Browser) -> None:
    opened.mouse("mouseMoved", *opened.middle(".heat canvas"))
    assert opened.run("document.querySelector('.heat .reading b').textContent").startswith(EVIL)
    assert opened.run("document.querySelectorAll('script').length") == 6
    assert opened.run("document.querySelectorAll('main script').length") == 0


def test_pointing_at_a_chart_reads_all_charts_of_its_cursor(opened: Browser) -> None:
    x, y = opened.middle("[data-course] .u-over")
    opened.mouse("mouseMoved", x, y)
    read = (
        "[...document.querySelectorAll('[data-course] .reading b')].map((one) => one.textContent)"
    )
    assert set(opened.run(read)) == {"step 9"} or set(opened.run(read)) == {"step 10"}


def test_dragging_zooms_all_charts_of_the_cursor_and_a_double_click_shows_all(
    opened: Browser,
) -> None:
    x, y = opened.middle("[data-course] .u-over")
    opened.drag((x - 100, y), (x + 100, y))
    mine = "sg.drawn.filter((one) => one.sync === 'steps').map(({u}) => u.scales.x)"
    spans = f"{mine}.map(({{min, max}}) => max - min)"
    zoomed = opened.run(spans)
    assert len(zoomed) == 4
    assert max(zoomed) < 8
    assert min(zoomed) == pytest.approx(max(zoomed))
    twice = "dispatchEvent(new MouseEvent('dblclick', {bubbles: true}))"
    opened.run(f"document.querySelector('[data-course] .u-over').{twice}")
    assert set(opened.run(spans)) == {19}


def test_keys_move_the_cursor_and_zoom(opened: Browser) -> None:
    opened.run("document.querySelector('[data-course] .chart').focus()")
    for key in ("ArrowLeft", "ArrowLeft"):
        opened.key(key)
    reading = "document.querySelector('[data-course] .reading').textContent"
    assert opened.run(reading).startswith("step 17")
    assert "✕ not finite" in opened.run(reading)
    span = "sg.drawn.find((one) => one.sync === 'steps').u.scales.x"
    opened.key("+")
    assert opened.run(f"{span}.max - {span}.min") < 10
    opened.key("0")
    assert opened.run(f"{span}.max - {span}.min") == 19


def test_keys_read_the_heat_map_and_buttons_choose_it(opened: Browser) -> None:
    opened.run("document.querySelector('.heat canvas').focus()")
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        opened.key(key)
    words = "document.querySelector('.heat .reading').textContent"
    assert opened.run(words) == f"{EVIL}.1step 10.105"
    opened.run("document.querySelector('[data-map=dead]').click()")
    assert opened.run("document.querySelector('.heat h3').textContent") == "dead share"


def test_the_cells_that_are_not_finite_are_marked_by_more_than_a_color(opened: Browser) -> None:
    crosses = """(() => { let drawn = 0; const cross = sg.Heat.prototype.cross;
        sg.Heat.prototype.cross = function (...given) { drawn += 1; cross.apply(this, given); };
        sg.shown.draw(); sg.Heat.prototype.cross = cross; return drawn; })()"""
    assert opened.run(crosses) == 3 * 5


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_its_width_in_light_and_dark(opened: Browser, width: int, dark: bool) -> None:
    opened.size(width, dark=dark)
    opened.until(f"innerWidth === {width}")
    assert opened.run("document.documentElement.scrollWidth") == width
    ground = opened.run("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == ("rgb(20, 22, 26)" if dark else "rgb(251, 250, 248)")


def test_words_stand_out_from_their_ground_as_readers_need(opened: Browser) -> None:
    """At 4.5 to 1 at least, as the Web Content Accessibility Guidelines 2.2 ask for (1.4.3)."""
    contrast = """(() => {
        const light = (name) => { const n = parseInt(sg.color(name).slice(1), 16);
            const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const [r, g, b] = [n >> 16, (n >> 8) & 255, n & 255].map(part);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        return ["ink", "soft", "broken", "risk", "note", "healthy"].map((name) => {
            const [a, b] = [light(name), Math.min(light("ground"), 1)].sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05); }); })()"""
    for dark in (False, True):
        opened.size(1100, dark=dark)
        assert min(opened.run(contrast)) >= 4.5


def test_it_prints_in_light_colors_whatever_the_screen(opened: Browser) -> None:
    opened.size(1100, dark=True)
    ink = "sg.color('ink')"
    assert opened.run(ink) == "#e4e6ea"
    opened.run("dispatchEvent(new Event('beforeprint'))")
    assert opened.run(ink) == "#1c1f24"
    opened.run("dispatchEvent(new Event('afterprint'))")
    assert opened.run(ink) == "#e4e6ea"
    assert opened.printed().startswith(b"%PDF")


def test_a_long_run_opens_within_two_seconds(browser: Browser, tmp_path: Path) -> None:
    long = run_of(2_000, layers=300, every=500, breaks=1_900, name="model.encoder.layers.{}.mlp.fc")
    seconds = min(_open(browser, long, tmp_path) for _ in range(2))
    assert browser.console == []
    assert seconds < 2.0
