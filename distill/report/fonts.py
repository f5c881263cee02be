"""Fonts for what matplotlib's own cannot draw, such as names in Chinese. No torch; matplotlib where it is used."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

_OWN = "DejaVu Sans"


@contextmanager
def legible(figure: Any) -> Iterator[None]:
    """Within it other fonts of the machine draw the characters of a figure that matplotlib's own lacks."""
    from matplotlib.text import Text

    logger = logging.getLogger("matplotlib.font_manager")
    was, logger.disabled = logger.disabled, True  # it tells of each weight that a font has not
    try:
        figure.draw_without_rendering()  # makes the texts of the ticks
        texts = figure.findobj(Text)
        fonts = covering({ord(letter) for text in texts for letter in text.get_text() if letter.isprintable()})
        for text in texts if fonts else ():
            text.set_fontfamily([_OWN, *fonts])
        yield
    finally:
        logger.disabled = was


def covering(characters: Collection[int]) -> list[str]:
    """The fewest installed fonts that have the characters (code points) which matplotlib's own lacks.

    Characters that no font has are left out: they are drawn as boxes.

    Returns:
        Their families, of which matplotlib knows from now on: its list of fonts is as old as its cache.
    """
    from matplotlib.font_manager import findfont, findSystemFonts, fontManager

    missing = set(characters) - _letters(findfont(_OWN))
    letters = {path: _letters(path) & missing for path in sorted(findSystemFonts())} if missing else {}
    found = []
    while letters and letters[best := max(letters, key=lambda path: len(letters[path] & missing))] & missing:
        known = len(fontManager.ttflist)
        fontManager.addfont(best)
        found.append(fontManager.ttflist[known].name)  # the first of a collection, whose letters were looked at
        missing -= letters[best]
    return found


def _letters(path: str) -> set[int]:
    """The code points that a font file has; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return set(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return set()
