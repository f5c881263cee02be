"""`settings`, a word for several fields: spelled out before anything else sees it; what is given beside it wins."""

from __future__ import annotations

import pytest

from distill.errors import RecipeError
from distill.recipe.checks import check_recipe
from distill.recipe.digest import teacher_digest
from distill.recipe.grid import grid
from distill.recipe.labels import SETTINGS, LabelsRecipe
from distill.recipe.load import dump_recipe, override, parse_recipe
from distill.recipe.schema import Recipe

PLAIN = '[teacher.labels]\nrule = "instance"\n'
ROBUST = PLAIN + 'settings = "robust"\n'


def read(text: str, *overrides: str) -> LabelsRecipe:
    return parse_recipe(text, "r.toml", overrides).teacher.labels


def spelled(recipe: Recipe, word: str) -> Recipe:
    """The same by assignments, field by field."""
    fields = dict(SETTINGS[word])
    pulls = fields.pop("pulls")
    given = [f"teacher.labels.{name}={value}" for name, value in fields.items()]
    return override(recipe, [*given, *(f"teacher.labels.pulls.{k}={str(v).lower()}" for k, v in pulls.items())])


@pytest.mark.parametrize("said", SETTINGS)
def test_the_word_is_its_fields(said: str) -> None:
    word, plain = parse_recipe(f'{PLAIN}settings = "{said}"\n', "r.toml"), parse_recipe(PLAIN, "r.toml")
    assert word == spelled(plain, said) != plain
    assert teacher_digest(word) == teacher_digest(spelled(plain, said))
    assert override(plain, [f"teacher.labels.settings={said}"]) == word
    assert parse_recipe(PLAIN, "r.toml", [f"teacher.labels.settings={said}"]) == word
    assert word.teacher.labels.settings is None
    assert "settings" not in dump_recipe(word)
    assert parse_recipe(dump_recipe(word), "r.toml") == word
    check_recipe(word, "r.toml")


def test_what_is_given_beside_it_wins() -> None:
    assert read(ROBUST + "answer_entropy = 0.4\n[teacher.labels.pulls]\nposterior = 0.5\nanswers = 0.1").model_dump(
        include={"answer_entropy", "divergence", "pulls"}, exclude_defaults=True
    ) == {
        "answer_entropy": 0.4,
        "divergence": "reverse",
        "pulls": {"posterior": 0.5, "answers": 0.1, "learn_confusions": True},
    }
    assert read(ROBUST, "teacher.labels.divergence=forward").divergence == "forward"
    assert read(PLAIN, "teacher.labels.settings=robust", "teacher.labels.meta_loss_q=0").meta_loss_q == 0
    # an assignment comes after the file; among assignments the order is of no account
    assert read(PLAIN + "meta_loss_q = 0.1", "teacher.labels.settings=robust").meta_loss_q == 0.7
    assert read(PLAIN, "teacher.labels.meta_loss_q=0", "teacher.labels.settings=robust").meta_loss_q == 0
    pulls = read(PLAIN, "teacher.labels.pulls.posterior=20", "teacher.labels.settings=robust").pulls
    assert (pulls.posterior, pulls.learn_confusions) == (20, True)


@pytest.mark.parametrize(("first", "then"), [("robust", "trusted"), ("trusted", "robust")])
def test_of_two_words_the_later_one_is_said(first: str, then: str) -> None:
    text, assigned = f'{PLAIN}settings = "{first}"\n', f"teacher.labels.settings={then}"
    alone = read(f'{PLAIN}settings = "{then}"\n')
    assert read(text, assigned) == alone
    assert override(parse_recipe(text, "r.toml"), [assigned]).teacher.labels == alone
    arms = f'[compare]\nstudents = false\n[compare.arms]\na = []\nb = ["{assigned}"]'
    assert grid(parse_recipe(text + arms, "r.toml"))[1].recipe.teacher.labels == alone
    # what is given beside the first stays, as it would without it, and what is assigned beside the second wins
    beside = read(text + "warmup_epochs = 3\nmeta_gradient_mean = 0.5", assigned, "teacher.labels.answer_entropy=0.2")
    expected = {"warmup_epochs": 3, "answer_entropy": 0.2}
    assert beside == alone.model_copy(update=expected)


def test_fields_of_a_word_that_was_not_said_stay() -> None:
    found = read(PLAIN + "step = 3.0\ntrue_class_mass = 0.9", "teacher.labels.settings=robust")
    assert (found.step, found.true_class_mass) == (3.0, 0.9)


def test_a_word_is_not_taken_back() -> None:
    for text in (PLAIN, ROBUST):
        with pytest.raises(RecipeError, match=r"settings=none: .* set them one by one"):
            parse_recipe(text, "r.toml", ["teacher.labels.settings=none"])


def test_it_is_said_in_an_arm() -> None:
    arms = '[compare]\nstudents = false\n[compare.arms]\nplain = []\nrobust = ["teacher.labels.settings=robust"]'
    found = {cell.arm: cell.recipe.teacher.labels.divergence for cell in grid(parse_recipe(PLAIN + arms, "r.toml"))}
    assert found == {"plain": "forward", "robust": "reverse"}


def test_words_that_stand_for_nothing_are_told() -> None:
    for text in (PLAIN + 'settings = "sturdy"', PLAIN + "settings = 3"):
        with pytest.raises(RecipeError, match=r'\[teacher.labels\] settings: found .*, expected "robust" or "trusted"'):
            parse_recipe(text, "r.toml")
    with pytest.raises(RecipeError, match="pulls"):
        parse_recipe(ROBUST + "pulls = 3", "r.toml")
    with pytest.raises(RecipeError, match="labels"):
        parse_recipe("[teacher]\nlabels = 3", "r.toml", ["teacher.labels.settings=robust"])
