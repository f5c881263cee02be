"""Pictures are drawn whatever the names, the number of classes and the numbers are: warnings are errors here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.report.figures import contact_sheet, short, thumbnail
from distill.report.label_figures import _reach, confidence_histogram, epochs_chart, heat_map
from distill.report.label_report import Suspect

NAMES = ["$1", "a$b$", "日本", "ä_{x}^", "two\nlines", "a very long name of a class"]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def suspect(k: int, true: str | None = None) -> Suspect:
    return Suspect(k, "", NAMES[k % len(NAMES)], NAMES[(k + 1) % len(NAMES)], 0.9, 0.05, true)


@pytest.mark.parametrize("shape", [(8, 8), (28, 20), (8, 8, 3)])
@pytest.mark.parametrize("planted", [True, False])
def test_contact_sheets(tmp_path: Path, shape: tuple[int, ...], planted: bool) -> None:
    images = [np.full(shape, 20 * k, np.uint8) for k in range(10)]
    suspects = [suspect(k, NAMES[0] if planted else None) for k in range(10)]
    contact_sheet(tmp_path / "new" / "a.png", images, suspects, planted=planted)
    assert size(tmp_path / "new" / "a.png")[0] > 1000
    contact_sheet(tmp_path / "one.png", images[:1], suspects[:1], planted=planted)
    contact_sheet(tmp_path / "none.png", [], [], planted=planted)
    assert size(tmp_path / "one.png")[0] == size(tmp_path / "none.png")[0] > 500


def test_large_images_are_scaled_down() -> None:
    large = np.zeros((400, 100, 3), np.uint8)
    large[:200] = 250
    small = thumbnail(large, side=80)
    assert small.shape == (80, 20, 3)
    assert small[:40].tolist() == np.full((40, 20, 3), 250).tolist()
    assert thumbnail(large[:8, :6]).shape == (8, 6, 3)
    assert thumbnail(large[:8, :6, :1]).shape == (8, 6)
    assert thumbnail(large[:, :, :1], side=40).shape == (40, 10)
    assert thumbnail(np.zeros((1000, 1, 1), np.uint8), side=10).shape == (10, 1)


def test_long_names_are_cut() -> None:
    assert short("n02085782-Japanese_spaniel") == "n020…e_spaniel"
    assert short("two\nlines") == "two\\nlines"


@pytest.mark.parametrize("panels", [1, 2, 4, 6])
@pytest.mark.parametrize("classes", [2, 6, 20])
def test_heat_maps(tmp_path: Path, panels: int, classes: int) -> None:
    means = np.random.default_rng(0).dirichlet(np.full(classes, 0.2), classes)
    means[0] = 0  # no image was given as this class
    names = [NAMES[k % len(NAMES)] for k in range(classes)]
    heat_map(tmp_path / "a.png", {f"epoch {k}": means for k in range(panels)}, names, "a note\nof two lines")
    assert size(tmp_path / "a.png")[0] > 700
    heat_map(tmp_path / "b.png", {"one-hot": np.eye(classes)}, names, "nothing off the diagonal")


def test_the_reach_of_the_colours() -> None:
    assert _reach(np.array([0.0, 0.02, 0.3])) == (0.02, 0.3)
    assert _reach(np.array([0.0, 1e-9, 0.3])) == pytest.approx((3e-4, 0.3))
    assert _reach(np.array([0.01, 0.01])) == pytest.approx((1e-3, 0.01))
    assert _reach(np.zeros(3)) == pytest.approx((1e-4, 1e-3))


WHOLE = {"label_entropy": 0.5, "labels_moved": 0.1, "labels_saturated": 0.9, "labels_right": 0.8, "given_right": 0.7}


@pytest.mark.parametrize(
    "epochs",
    [
        {0: WHOLE},
        {0: {}, 3: WHOLE, 4: {"label_entropy": 0.4}},
        {k: {**WHOLE, "given_right": 1.0} for k in range(100)},
        {0: {"labels_moved": 0.0}},
        {0: {"label_entropy": 0.0}},
    ],
)
def test_charts_of_the_epochs(tmp_path: Path, epochs: dict[int, dict[str, float]]) -> None:
    assert epochs_chart(tmp_path / "a.png", epochs, 10)
    assert size(tmp_path / "a.png") == (990, 374)


def test_no_chart_of_nothing(tmp_path: Path) -> None:
    assert not epochs_chart(tmp_path / "a.png", {0: {"test_accuracy": 1.0, "given_right": 0.7}}, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suspected", [[True, False, False], [True] * 3, [False] * 3])
def test_histograms(tmp_path: Path, suspected: list[bool]) -> None:
    # Rounding may bring a probability out of 1/C to 1.
    confidence = np.array([0.0999999, 0.5, 1.0000001], np.float32)
    confidence_histogram(tmp_path / "a.png", confidence, np.array(suspected), 10)
    assert size(tmp_path / "a.png") == (770, 396)
