"""Write HTML: what is no markup yet is escaped, so that no name can become one."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from steadygrad.render.words import UNICODE, clean


class Markup(str):
    """HTML as it is."""

    __slots__ = ()


VOID = {"br", "meta", "input", "line", "path", "circle", "rect", "polyline"}  # without content


def tag(name: str, *inside: str, **attributes: str) -> Markup:
    """Write an element; text inside of it and in its attributes is escaped.

    An attribute's underscores stand for hyphens, one at its end for nothing: `class_`, `data_key`.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{safe(value)}"' for key, value in attributes.items()
    )
    if name in VOID:
        return Markup(f"<{name}{said}>" if name in ("br", "meta", "input") else f"<{name}{said}/>")
    return Markup(f"<{name}{said}>{joined(inside)}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Markup:
    """Join parts, escaping those that are text."""
    return Markup(between.join(one if isinstance(one, Markup) else safe(one) for one in parts))


def safe(text: str) -> Markup:
    """Escape text, and the signs in it that are not printable; new lines stay."""
    lines = (clean(line, UNICODE) for line in text.split("\n"))
    return Markup(escape("\n".join(lines), quote=True))


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], **attributes: str) -> Markup:
    """Write a table; each row begins with its heading."""
    head = tag("tr", *(tag("th", one, scope="col") for one in heads))
    body = (
        tag(
            "tr",
            *(tag("td", one) if n else tag("th", one, scope="row") for n, one in enumerate(row)),
        )
        for row in rows
    )
    return tag(
        "div", tag("table", tag("thead", head), tag("tbody", *body), **attributes), class_="wide"
    )
