"""The first thing a reader sees: what the comparison lets be said, in sentences. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.comparison import Comparison
from distill.report.comparison_parts import Difference, Network
from distill.report.page.markup import Markup, el, sentences
from distill.report.page.numbers import SIGNS, claim, typeset
from distill.report.verdicts import verdict

_TITLES = {"student": "Students", "teacher": "Teachers"}
_WORDS = {"up": "better", "down": "worse", "open": "no difference claimed"}


def verdicts(comparison: Comparison) -> Markup:
    """Students before teachers, each against the reference; all other pairs folded away."""
    found = comparison.pairs
    mine = [each for each in found if each.family and comparison.reference in (each.first, each.second)]
    rest = [each for each in found if each not in mine]
    if not comparison.differences:
        names = " and ".join(comparison.recipe.compare.names)
        return el("p", f"Nothing is compared: there is only {names}.", class_="lead")
    blocks = [_block(mine, network) for network in ("student", "teacher")]
    return el("div", blocks, _folded(rest), sentences(comparison.untold))


def _block(found: Sequence[Difference], network: Network) -> Markup | None:
    own = [each for each in found if each.network == network]
    return el("div", el("h3", _TITLES[network]), _list(own)) if own else None


def _folded(rest: Sequence[Difference]) -> Markup | None:
    if not rest:
        return None
    pairs = "pair" if len(rest) == 1 else "pairs"
    return el("details", el("summary", f"{len(rest)} more {pairs}: other arms, and controls"), _list(rest))


def _list(found: Sequence[Difference]) -> Markup:
    return el("ul", [_item(each) for each in found], class_="verdicts")


def _item(each: Difference) -> Markup:
    sentence = verdict(each.network, each.first, each.second, each.paired, each.p_holm, each.family)
    head, _, tail = sentence.partition(": ")
    words = typeset(tail if head == f"{each.network}s" else sentence)
    judged = judge(each)
    sign = el("span", SIGNS[judged], class_=f"sign {judged}", role="img", aria_label=_WORDS[judged])
    lead, rest = _split(words)
    return el("li", sign, el("span", el("strong", lead), el("span", rest, class_="quiet")))


def _split(words: str) -> tuple[str, str]:
    """What is claimed, and the numbers behind it."""
    for sign in (", interval ", ": "):
        head, found, tail = words.partition(sign)
        if found and not (sign == ", interval " and ": " in head):
            head = head[:1].upper() + head[1:] if words.startswith("no ") else head
            return head, found + tail
    return words, ""


def judge(each: Difference) -> str:
    """What can be said of a pair: "up", "down" or "open"."""
    difference = each.paired.difference
    p = each.p_holm if each.family else each.paired.p
    return claim(None if difference is None else difference.mean, p)
