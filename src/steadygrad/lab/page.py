"""Write one page of all experiments that were run: a table, then each with its figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from steadygrad.lab.running import Outcome, bounds, number, verdict

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>steadygrad lab</title><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}
td,th{border-bottom:1px solid #ccc;padding:.25rem .6rem;
text-align:left;vertical-align:top}.OUT{color:#b00020;font-weight:bold}img{max-width:100%}
pre{white-space:pre-wrap;font:inherit}</style>
<h1>Published results, measured again</h1>
"""


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the page as HTML; it refers to NAME/figure.svg beside it."""
    reached = sum(one.result.within for one in outcomes)
    seconds = sum(one.seconds for one in outcomes)
    count = f"<p>{reached} of {len(outcomes)} within their tolerance, in {seconds:.0f} s.</p>\n"
    listed = _table(("name", "claim", "published", "ours", "", "seconds"), map(_line, outcomes))
    return HEAD + count + listed + "".join(map(_section, outcomes))


def _line(outcome: Outcome) -> Sequence[str]:
    first = outcome.result.measures[0]
    name = outcome.experiment.name
    return (
        f'<a href="#{escape(name)}">{escape(name)}</a>',
        escape(outcome.experiment.claim),
        escape(outcome.experiment.published),
        escape(f"{first.name}: {number(first.ours)}"),
        _verdict(outcome.result.within),
        f"{outcome.seconds:.1f}",
    )


def _section(outcome: Outcome) -> str:
    experiment, result = outcome.experiment, outcome.result
    measures = _table(
        ("measure", "published", "ours", "must lie in", ""),
        (
            (
                escape(one.name),
                number(one.published),
                number(one.ours),
                escape(bounds(one)),
                _verdict(one.within),
            )
            for one in result.measures
        ),
    )
    rows = _table(result.header, ([escape(number(c)) for c in row] for row in result.rows))
    name = escape(experiment.name)
    return (
        f'<h2 id="{name}">{name}</h2>\n<p>{escape(experiment.claim)} '
        f"({escape(experiment.source)})</p>\n<pre>{escape(experiment.page)}</pre>\n"
        f"<p>Published: {escape(experiment.published)}. Tolerance: "
        f'{escape(experiment.tolerance)}.</p>\n{measures}<img src="{name}/figure.svg" '
        f'alt="{escape(result.figure.y)} over {escape(result.figure.x)}">\n'
        f"<details><summary>All numbers</summary>{rows}</details>\n"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out cells that are HTML already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{top}</tr>\n{body}</table>\n"


def _verdict(within: bool) -> str:
    return f'<span class="{verdict(within)}">{verdict(within)}</span>'
