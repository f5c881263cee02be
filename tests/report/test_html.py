"""report.html: every section, in order; nothing unescaped, nothing from outside; what is missing is said."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from distill.recipe.grid import grid
from distill.recipe.load import parse_recipe
from distill.report.comparison import Comparison
from distill.report.comparison_folder import read_comparison, write_comparison, write_plan
from distill.report.html import page
from distill.report.label_means import SHOWN, label_maps
from distill.report.results import CellResult
from distill.store.bins import BINS_FILE
from tests.report.made import made
from tests.report.pages import HOSTILE, LARGE, TEACHERS, hostile, large, metrics, with_runs

SECTIONS = (
    "verdict", "results", "differences", "temperature", "answers", "seeds", "curves", "calibration", "labels",
    "cost", "provenance", "again",
)  # fmt: skip
VOID = {"meta", "link", "br"}


class Parsed(HTMLParser):
    """The elements of a page, each with the sections that it is in; tags must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.words: dict[str, str] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        section = (dict(attrs).get("id") or "") if tag == "section" else self._section()
        self.elements.append((tag, dict(attrs), section))
        if tag not in VOID:
            self._open.append((tag, section))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), self._section()))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.words[self._section()] = self.words.get(self._section(), "") + data

    def _section(self) -> str:
        return self._open[-1][1] if self._open else ""

    def of(self, section: str) -> Iterator[tuple[str, dict[str, str | None]]]:
        """Elements of a section."""
        return ((tag, attributes) for tag, attributes, own in self.elements if own == section)

    def count(self, section: str, tag: str, class_: str = "") -> int:
        """How many elements of a kind a section has."""
        classes = (str(attributes.get("class") or "").split() for name, attributes in self.of(section) if name == tag)
        return sum(not class_ or class_ in each for each in classes)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Parsed]:
    folder = tmp_path_factory.mktemp("large")
    text = page(large(folder), folder)
    return text, Parsed(text)


def test_the_sections_are_there_in_order(written: tuple[str, Parsed]) -> None:
    text, parsed = written
    assert tuple(section for tag, _, section in parsed.elements if tag == "section") == SECTIONS
    links = [attributes["href"] for tag, attributes, _ in parsed.elements if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]
    assert len(text.encode()) < 400_000  # 2 MB is the limit


def test_every_figure_is_there(written: tuple[str, Parsed]) -> None:
    _, parsed = written
    assert parsed.count("results", "tr") == 1 + 14  # five arms of two, two students alone, untrained of two
    assert parsed.count("verdict", "li") == 20 + 3 + 1  # pairs of both networks, controls of students, of teachers
    assert parsed.count("differences", "svg", "track") == 24 + 2  # and two axes
    assert parsed.count("temperature", "svg", "chart") == 5
    assert parsed.count("temperature", "circle", "ring") == 5 + 1  # and the legend's
    assert parsed.count("temperature", "tr", "chosen") == 6
    assert parsed.count("answers", "tr") == 1 + 6  # five arms, the untrained
    assert parsed.count("seeds", "svg", "chart") == 2
    assert parsed.count("seeds", "polyline", "seed") >= 2 * 5
    assert parsed.count("curves", "svg", "chart") == 5 + 2  # every arm; those that have a label for each image
    assert parsed.count("curves", "polyline", "seed") == 7 * 5
    assert parsed.count("calibration", "svg", "chart") == 14
    assert parsed.count("labels", "svg", "chart") == 2
    assert parsed.count("provenance", "tr") == 1 + 160
    assert "onehot (control)" not in parsed.words["calibration"]


def test_the_numbers_are_those_of_the_table(written: tuple[str, Parsed]) -> None:
    _, parsed = written
    words = parsed.words
    assert "Instance" not in words["verdict"]  # names are not changed
    assert "instance beats onehot by 2." in words["verdict"]
    assert "70.0 → 93.0" in words["results"]
    for number in ("0.210", "91.0", "4.0", "0.830", "90.0", "0.120"):
        assert number in words["answers"], number
    assert "61.5" in words["cost"]
    assert "not claimed" in words["cost"]
    for fact in ("torch 2.9.0", "0123456789ab", "ab" * 6, "158 of 160", "2026-01-02 03:04", "the disk is full"):
        assert fact in words["provenance"]
    assert "teacher.labels.rule=class+instance" in words["provenance"]
    assert "git checkout 0123456789ab" in words["again"]
    assert "distill compare comparison.toml --set checkpoints=checkpoints-again" in words["again"]
    assert 'teachers = [\n    "onehot",' in words["again"]


def test_nothing_comes_from_outside(written: tuple[str, Parsed]) -> None:
    text, parsed = written
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    for tag, attributes, _ in parsed.elements:
        assert tag not in {"iframe", "img", "object", "embed", "form", "base", "use", "image"}
        assert not attributes.get("src")
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
        assert not [name for name in attributes if name.startswith("on")]


def test_the_only_script_is_the_one_that_the_policy_names(written: tuple[str, Parsed]) -> None:
    text, parsed = written
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = (a["content"] for _, a, _ in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy
    assert policy.startswith("default-src 'none';")
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_ids_are_unique(written: tuple[str, Parsed]) -> None:
    ids = [attributes["id"] for _, attributes, _ in written[1].elements if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_hostile_names_are_words(tmp_path: Path) -> None:
    text = page(hostile(tmp_path), tmp_path)
    text.encode()
    parsed = Parsed(text)
    assert [tag for tag, _, _ in parsed.elements].count("script") == 1
    assert "<script>alert" not in text
    assert "</li>&lt;script" not in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script>" in parsed.words["verdict"]


def test_hostile_class_names_are_words(tmp_path: Path) -> None:
    comparison = with_runs(made(TEACHERS, metrics=metrics), tmp_path)
    found, problems = label_maps(comparison, tmp_path)
    assert found is not None
    assert problems == []
    from distill.report.page.heat import heat_maps

    text = heat_maps(replace(found, names=(HOSTILE, *found.names[1:])))
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_comparison_without_anything_says_so(tmp_path: Path) -> None:
    recipe = made(*LARGE).recipe
    text = page(Comparison(recipe, tuple(CellResult(cell, "missing", "not run") for cell in grid(recipe))), tmp_path)
    parsed = Parsed(text)
    assert tuple(section for tag, _, section in parsed.elements if tag == "section") == SECTIONS
    assert "0 of 160 cells finished" in text
    for section in ("differences", "temperature", "answers", "seeds", "calibration", "labels", "cost"):
        assert parsed.count(section, "svg") == 0
        assert parsed.count(section, "p") == 1


def test_one_arm_at_one_seed(tmp_path: Path) -> None:
    recipe = ("compare.teachers=onehot", "compare.seeds=3", "compare.students=false")
    parsed = Parsed(page(made(*recipe), tmp_path))
    assert "Nothing is compared" in parsed.words["verdict"]
    assert "there is one seed, or one arm" in parsed.words["seeds"]
    assert "with its logits" not in parsed.words["cost"]


def test_two_teachers_at_one_seed_have_no_interval(tmp_path: Path) -> None:
    parsed = Parsed(page(made("compare.seeds=0", "compare.temperatures=1,4", metrics=metrics), tmp_path))
    assert parsed.count("differences", "line", "bar") == 0
    assert parsed.count("differences", "circle", "mark") == 2
    assert parsed.count("temperature", "line", "whisker") == 0
    assert "One seed gives no interval" in parsed.words["differences"]


def test_several_losses_have_colours_and_a_place_without_temperature(tmp_path: Path) -> None:
    found = made("compare.losses=kd,dkd,dist,ce", "compare.temperatures=1,4", metrics=metrics)
    parsed = Parsed(page(found, tmp_path))
    assert parsed.count("temperature", "svg", "chart") == 2
    assert {"c0", "c1"} <= {str(a.get("class")).split()[-1] for t, a in parsed.of("temperature") if t == "polyline"}
    assert "none" in parsed.words["temperature"]


def test_weights_have_curves_and_a_column_of_their_own(tmp_path: Path) -> None:
    grid_of = ("compare.losses=kd,ce", "compare.temperatures=1,4")
    found = made(*grid_of, "compare.weights=0.5,0.9", metrics=metrics)
    text = page(found, tmp_path)
    parsed = Parsed(text)
    assert "2 teachers, 2 seeds, 2 temperatures, 2 weights" in text
    curves = [str(a["class"]) for tag, a in parsed.of("temperature") if tag == "polyline"]
    assert curves == ["curve behind", "curve behind", "curve c0", "curve c1"] * 2
    for words in ("kd, w 0.5", "kd, w 0.9", "kd, w 0.5, T 4: "):
        assert words in parsed.words["temperature"]
    assert parsed.count("temperature", "circle", "ring") == 2 + 1  # and the legend's
    assert [a["data-label"] for tag, a in parsed.of("temperature") if tag == "td"][:4] == [
        "loss", "T", "weight", "seeds"
    ]  # fmt: skip
    assert parsed.count("temperature", "tr", "chosen") == 2
    without = page(made(*grid_of, metrics=metrics), tmp_path)
    assert ", w 0" not in without
    assert 'data-label="weight"' not in without


def test_runs_without_bins_get_a_sentence(tmp_path: Path) -> None:
    comparison = with_runs(made(metrics=metrics), tmp_path, bins=False)
    assert "no run has a reliability.json" in Parsed(page(comparison, tmp_path)).words["calibration"]
    comparison = with_runs(made(metrics=metrics), tmp_path)
    for result in comparison.results:
        if result.cell.arm == "onehot":
            (tmp_path / result.run / BINS_FILE).unlink()
    parsed = Parsed(page(comparison, tmp_path))
    assert parsed.count("calibration", "svg", "chart") == 2
    assert "onehot, teacher: its runs have no reliability.json" in parsed.words["calibration"]


def test_bins_and_labels_of_other_runs_are_not_drawn(tmp_path: Path) -> None:
    comparison = with_runs(made(metrics=metrics), tmp_path)
    (tmp_path / "onehot-s0" / BINS_FILE).write_bytes((tmp_path / "instance-s1" / BINS_FILE).read_bytes())
    labels = tmp_path / "instance-s0/labels/labels.safetensors"
    labels.write_bytes(b"damaged" + labels.read_bytes()[7:])
    parsed = Parsed(page(comparison, tmp_path))
    assert "onehot-s0/reliability.json: is of another network" in parsed.words["calibration"]
    assert "instance-s0/labels/labels.safetensors: sha256 differs" in parsed.words["labels"]
    assert str(tmp_path) not in parsed.words["calibration"] + parsed.words["labels"]
    assert parsed.count("labels", "svg") == 0


def test_of_many_classes_the_confused_ones_are_shown(tmp_path: Path) -> None:
    comparison = with_runs(made(metrics=metrics), tmp_path, [str(k) for k in range(40)])
    found, _ = label_maps(comparison, tmp_path)
    assert found is not None
    assert found.classes == 40
    assert len(found.names) == SHOWN
    assert found.maps[0].means.shape == (SHOWN, SHOWN)


def test_class_means_are_means(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    comparison = with_runs(made(metrics=metrics), tmp_path, ["a", "b", "c"])
    found, _ = label_maps(comparison, tmp_path)
    tensors = load_file(tmp_path / "instance-s0/labels/labels.safetensors")
    expected = [tensors["averaged"][tensors["given"] == k].mean(axis=0) for k in range(3)]
    assert found is not None
    np.testing.assert_allclose(found.maps[0].means, expected, rtol=1e-5)


def test_a_folder_gets_its_page(tmp_path: Path) -> None:
    recipe = parse_recipe('name = "r"', "r.toml", ["compare.controls=false"])
    write_plan(recipe, tmp_path)
    write_comparison(read_comparison([tmp_path]), tmp_path)
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!doctype html>\n<html")
    assert json.loads((tmp_path / "results.json").read_text())["name"] == "r"
    assert (tmp_path / "table.tex").read_text().endswith("\\end{tabular}\n")
