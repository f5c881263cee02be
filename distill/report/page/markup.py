"""HTML and SVG from calls, so that nothing unescaped can get into a page. No torch."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TypeAlias

_VOID = {"meta", "link", "br", "line", "circle", "rect", "path", "polyline"}  # have no content
_SPACES = "\n\t\u00a0\u2009"  # that are not printable to Python, and are to us


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"
Attribute: TypeAlias = "str | int | float | bool | None"


def el(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """An element. Children and attributes are escaped, unless they are `Markup`.

    Args:
        tag: its name.
        children: text, elements, or lists of them; None is left out.
        attributes: `class_` is class, `data_label` is data-label; None and False are left out, True has no value.
    """
    opened = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{opened}>" if tag in ("meta", "link", "br") else f"<{tag}{opened}/>")
    return Markup(f"<{tag}{opened}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Markup:
    """Several children, one after the other."""
    return Markup("".join(_child(child) for child in children))


def clean(text: str) -> str:
    """Without control characters, halves of surrogate pairs and signs that turn the direction of writing."""
    return "".join(sign if sign.isprintable() or sign in _SPACES else "\ufffd" for sign in text)


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(clean(child), quote=False)
    return str(child) if isinstance(child, int | float) else join(child)


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    name = "viewBox" if name == "viewbox" else name
    return f" {name}" if value is True else f' {name}="{html.escape(clean(str(value)))}"'


def sentences(items: Sequence[str]) -> Markup | None:
    """Remarks under a figure."""
    return el("ul", [el("li", item) for item in items], class_="notes") if items else None
