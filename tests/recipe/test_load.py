"""Recipes: what is read is what was written, and everything wrong is named at once."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import RecipeError
from distill.recipe.load import LARGEST_FILE, describe_fields, dump_recipe, load_recipe, override, parse_recipe
from distill.recipe.schema import Recipe

WHERE = "recipes/r18.toml"


def lines(text: str, *overrides: str) -> list[str]:
    """The lines of the error that a recipe gives, without the cure."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, WHERE, overrides)
    assert caught.value.cure
    return caught.value.message.split("\n")


# (recipe, the one line that it gives after the file's name)
WRONG = [
    ("[student]\ntemprature = 3", "[student] temprature is not a field; did you mean [student.loss] temperature?"),
    ("[student]\ntemperature = 3", "[student] temperature is not a field; did you mean [student.loss] temperature?"),
    ("[student.loss]\ntemprature = 3", "[student.loss] temprature is not a field; did you mean temperature?"),
    ("epochs = 3", "epochs is not a field; did you mean [teacher] epochs or [student] epochs?"),
    (
        "[teacher]\noptimiser = 'x'",
        "[teacher] optimiser is not a field; did you mean [teacher.optimizer] or [teacher.labels] optimizer?",
    ),
    ("[techer]\nepochs = 3", "[techer] is not a table; did you mean [teacher]?"),
    ("[zzz]\nepochs = 3", "[zzz] is not a table of a recipe"),
    ("zzz = 3", "zzz is not a field"),
    ('"a\\nb" = 3', '"a\\nb" is not a field'),
    ("teacher = 3", "teacher: found 3 (an integer), expected a table"),
    ("seed = -1", "seed: found -1 (an integer), expected an integer of at least 0"),
    ('[student]\nepochs = "3"', '[student] epochs: found "3" (a string), expected an integer of at least 1'),
    ("[teacher]\nepochs = 3.0", "[teacher] epochs: found 3.0 (a number), expected an integer of at least 0"),
    ("[views]\nflip = 1", "[views] flip: found 1 (an integer), expected true or false"),
    ("[views]\ncount = 0", '[views] count: found 0 (an integer), expected an integer of at least 1 or "orbit"'),
    ("[data.noise]\nrate = 2", "[data.noise] rate: found 2 (an integer), expected a number from 0 to 1"),
    ("[teacher.optimizer]\nlr = nan", "[teacher.optimizer] lr: found nan (a number), expected a finite number above 0"),
    ("[compare]\nseeds = [0, 'x']", '[compare] seeds[1]: found "x" (a string), expected an integer'),
    (
        "[compare]\nseeds = []",
        "[compare] seeds: found an empty array, expected an array that is not empty, each item an integer",
    ),
    (
        "[data]\nvalidation = 'x'",
        '[data] validation: found "x" (a string), expected a number of images, or a share below 1',
    ),
    (
        "[data.noise]\npairs = { 'T-shirt/top' = 3 }",
        '[data.noise] pairs."T-shirt/top": found 3 (an integer), expected a string',
    ),
    (
        "[student.model_args]\nwhen = 1979-05-27",
        "[student] model_args.when: found 1979-05-27 (a date or time), "
        "expected a string, a number, a boolean, an array or a table",
    ),
    (
        "[student.model_args]\nsizes = [1, nan]",
        "[student] model_args.sizes[1]: found nan (a number), expected a finite number",
    ),
    (
        f"[student.model_args]\nx{'.x' * 2000} = 1",
        "[student] model_args: expected at most 16 levels of nesting",
    ),
    (f"seed = 0x{'f' * 3000}", "seed: found an integer of 12000 bits, expected an integer of 64 bits"),
    ("a = 1\na = 2", "Cannot overwrite a value (at end of document)"),
    ("a = 1\nb = = 2", "Invalid value (at line 2, column 5)"),
    ("x = " + "[" * 9999, "arrays or tables are nested too deeply"),
]


@pytest.mark.parametrize(("text", "line"), WRONG)
def test_one_line_says_what_is_wrong(text: str, line: str) -> None:
    assert lines(text) == [f"{WHERE}: {line}"]


def test_all_problems_are_named_at_once() -> None:
    found = lines("seed = -1\n[teacher]\nepochs = -1\n[student]\nepoch = 3\n", "compare.seeds=x", "nonsense")
    assert len(found) == 5
    assert found[0].startswith("override nonsense: found no '='")
    assert any(line.startswith('override compare.seeds=x: [compare] seeds[0]: found "x"') for line in found)


def test_an_integer_of_thousands_of_digits_is_refused() -> None:
    assert "4300 digits" in lines("seed = " + "1" * 5000)[0]


@pytest.mark.parametrize(
    ("stem", "name"), [("r18", "r18"), ("my recipe (2)", "my-recipe-2-"), ("_x", "x"), ("ä" * 200 + "b", "b")]
)
def test_the_name_is_the_stem_when_none_is_given(tmp_path: Path, stem: str, name: str) -> None:
    path = tmp_path / f"{stem[-90:]}.toml"
    path.write_text("seed = 3\n")
    assert load_recipe(path).name == name
    assert load_recipe(path, ["name=2024"]).name == "2024"


def test_no_name_to_be_had_is_an_error() -> None:
    with pytest.raises(RecipeError, match="name is missing, expected at most 100 letters, digits"):
        parse_recipe("", "___")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 3\r\n[teacher]\r\nepochs = 2\r\n")
    assert (load_recipe(path).seed, load_recipe(path).teacher.epochs) == (3, 2)


def test_home_is_spelled_out_where_runs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    recipe = parse_recipe('checkpoints = "~/runs"\n[student]\nmore_teachers = ["~/runs/a", "b"]', WHERE)
    assert (recipe.checkpoints, recipe.student.more_teachers) == ("/home/me/runs", ("/home/me/runs/a", "b"))
    assert override(recipe, ["checkpoints=~/other"]).checkpoints == "/home/me/other"
    assert override(recipe, ["checkpoints=./~"]).checkpoints == "./~"
    assert lines('checkpoints = "~nosuchuser/x"', "student.more_teachers=~nosuchuser,b") == [
        f"{WHERE}: checkpoints: found '~nosuchuser/x', but no home folder of ~nosuchuser is known here, "
        "expected a whole path",
        "override student.more_teachers=~nosuchuser,b: [student] more_teachers: found '~nosuchuser', but no home "
        "folder of ~nosuchuser is known here, expected a whole path",
    ]


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    huge, latin, pipe = tmp_path / "huge.toml", tmp_path / "latin.toml", tmp_path / "pipe.toml"
    huge.write_bytes(b"#" * (LARGEST_FILE + 1))
    latin.write_bytes(b"seed = 1\nname = 'caf\xe9'\n")
    os.mkfifo(pipe)  # reading it would wait for ever
    for path, message in [
        (tmp_path / "none.toml", "no such file"),
        (tmp_path, "found a folder, expected a TOML file"),
        (huge, "found more than 1048576 bytes"),
        (latin, "not UTF-8: found byte 0xe9 in line 2"),
        (pipe, "found no regular file"),
        (Path("a\0b"), "a\0b: "),
        (Path("x" * 5000), "File name too long"),
    ]:
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert message in caught.value.message
        assert caught.value.cure


@pytest.mark.parametrize("path", ["C:\\Users\\me", "C:\\photos"])
def test_a_windows_path_within_double_quotes(path: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f'[data]\nroot = "{path}"\n', WHERE)
    assert "line 2" in caught.value.message
    assert "'C:\\photos' in single quotes, or C:/photos" in caught.value.cure
    assert parse_recipe(f"[data]\nroot = '{path}'\n", WHERE).data.root == path


OVERRIDES: list[tuple[str, str, Any]] = [
    ("teacher.epochs=3", "teacher.epochs", 3),
    (" teacher.epochs = 3 ", "teacher.epochs", 3),
    ("teacher.model=resnet20", "teacher.model", "resnet20"),
    ("teacher.model='resnet 20'", "teacher.model", "resnet 20"),
    ("name=2024", "name", "2024"),
    ("teacher.optimizer.lr=1e-3", "teacher.optimizer.lr", 1e-3),
    ("views.flip=true", "views.flip", True),
    ("views.count=orbit", "views.count", "orbit"),
    ("views.count=4", "views.count", 4),
    ("data.train=none", "data.train", None),
    ("data.noise.kind=none", "data.noise.kind", "none"),
    ("data.root=", "data.root", ""),
    ("compare.seeds=0,1,2", "compare.seeds", (0, 1, 2)),
    ("compare.seeds=[0, 1]", "compare.seeds", (0, 1)),
    ("compare.seeds=7", "compare.seeds", (7,)),
    ("compare.teachers=onehot, class", "compare.teachers", ("onehot", "class")),
    ("compare.temperatures=", "compare.temperatures", ()),
    ("compare.weights=0.5,1", "compare.weights", (0.5, 1.0)),
    ("data.noise.pairs.T-shirt/top=Shirt", "data.noise.pairs", {"T-shirt/top": "Shirt"}),
    ("student.model_args.drop_rate=0.1", "student.model_args", {"drop_rate": 0.1}),
    ("student.model_args.act=relu", "student.model_args", {"act": "relu"}),
]


@pytest.mark.parametrize(("text", "name", "value"), OVERRIDES)
def test_overrides(text: str, name: str, value: object) -> None:
    start = parse_recipe("[data]\ntrain = 10\nroot = 'x'\n", WHERE)
    for recipe in (override(start, [text]), parse_recipe("[data]\ntrain = 10\nroot = 'x'\n", WHERE, [text])):
        found: object = recipe
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("teacher.epoch=3", "[teacher] epoch is not a field; did you mean epochs?"),
        ("teacher=3", "[teacher] is a table; set its fields one by one: teacher.model=..."),
        (
            "teacher.epochs.x=3",
            "[teacher] epochs takes an integer of at least 0, so nothing can be set inside it",
        ),
        ("teacher.epochs=none", '[teacher] epochs: found "none" (a string), expected an integer of at least 0'),
        ("a.b.c=3", "[a] is not a table of a recipe"),
        ("=3", "found no name before '=', expected table.field=value, such as teacher.epochs=3"),
        (
            "name=../x",
            'name: found "../x" (a string), expected at most 100 letters, digits, . _ -, the first a letter or a digit',
        ),
        (
            "student.loss.temperature=inf",
            "[student.loss] temperature: found inf (a number), expected a finite number from 0.01 to 1000",
        ),
        (
            'data.root="a\\u0000b"',
            '[data] root: found "a\\u0000b" (a string), expected text without control characters',
        ),
        ("seed=3\nname='x'", "seed: found \"3\\nname='x'\" (a string), expected an integer of at least 0"),
        ("data.root=\udcff", '[data] root: found "\\udcff" (a string), expected Unicode text'),
        (
            "data.noise.pairs.\udcff=x",
            '[data.noise] pairs."\\udcff": found "\\udcff" (a string), expected Unicode text',
        ),
    ],
)
def test_overrides_that_do_not_fit(text: str, line: str) -> None:
    recipe = parse_recipe("", WHERE)
    with pytest.raises(RecipeError) as caught:
        override(recipe, [text])
    shown = text.encode("utf-8", "backslashreplace").decode()
    assert caught.value.message == f"override {shown}: {line}"


def test_an_override_into_a_table_that_is_none_is_reported_by_the_schema() -> None:
    assert lines("teacher = 3", "teacher.epochs=3") == [f"{WHERE}: teacher: found 3 (an integer), expected a table"]


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
free = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
recipes = st.builds(
    lambda name, seed, root, train, validation, pairs, args, lr, milestones, temperatures: Recipe.model_validate(
        {
            "name": name,
            "seed": seed,
            "data": {"root": root, "train": train, "validation": validation, "noise": {"pairs": pairs}},
            "student": {"model_args": args, "optimizer": {"lr": lr, "milestones": milestones}},
            "compare": {"temperatures": temperatures},
        }
    ),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.integers(0, 2**63 - 1),
    text,
    st.none() | st.integers(1, 10**9),
    st.integers(0, 10**6) | st.floats(0, 0.99),
    st.dictionaries(text, text, max_size=3),
    st.dictionaries(text, free, max_size=3),
    st.floats(1e-300, 1e300),
    st.lists(st.integers(1, 500), max_size=3),
    st.lists(st.floats(0.01, 1000), max_size=3),
)


@given(recipes)
@settings(deadline=None, max_examples=60)
def test_what_is_dumped_reads_back_exactly(recipe: Recipe) -> None:
    again = parse_recipe(dump_recipe(recipe), WHERE)
    assert again == recipe
    assert type(again.data.validation) is type(recipe.data.validation)
    assert dump_recipe(again) == dump_recipe(recipe)


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda b: b.decode("latin-1")))
@settings(deadline=None, max_examples=100)
def test_no_text_gives_anything_but_a_recipe_or_its_error(source: str) -> None:
    with contextlib.suppress(RecipeError):
        parse_recipe(source, WHERE, [source])


@pytest.mark.parametrize(
    "assignment",
    ["threads=1025", "teacher.labels.step=1e7", "student.loss.temperature=0.001", "compare.temperatures=4,2000"],
)
def test_bounds_that_keep_numbers_sane(assignment: str) -> None:
    with pytest.raises(RecipeError, match=r"expected .* from 0"):
        override(parse_recipe("", WHERE), [assignment])


def test_every_field_is_described() -> None:
    fields = {field.name: field for field in describe_fields()}
    assert len(fields) == len(list(describe_fields()))
    assert all(field.sentence.endswith(".") and field.default for field in fields.values())
    assert fields["teacher.epochs"][1:4] == ("integer", "30", "of at least 0")
    assert fields["data.noise.rate"][1:4] == ("number", "0.0", "from 0 to 1")
    assert fields["views.count"].type == 'integer or "orbit"'
    assert fields["data.train"][1:3] == ("integer or none", "none")
    assert fields["compare.seeds"][1:3] == ("array of integers", "[0]")
    assert fields["name"].default == "the file's stem"
    assert "teacher" not in fields


def test_infinite_numbers_are_refused_in_every_number() -> None:
    numbers = [field.name for field in describe_fields() if "number" in field.type and "array" not in field.type]
    for name in numbers:
        for value in (math.inf, math.nan):
            with pytest.raises(RecipeError, match="a finite number"):
                override(parse_recipe("", WHERE), [f"{name}={value}"])
