"""`[compare]`: what is refused, and which cells a recipe asks for."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from distill.errors import RecipeError
from distill.recipe import compare_checks
from distill.recipe import grid as grid_module
from distill.recipe.checks import cell_problems, check_recipe, problems
from distill.recipe.compare import assigned_rule
from distill.recipe.digest import student_digest, teacher_digest
from distill.recipe.grid import Cell, arm_recipe, grid, with_loss
from distill.recipe.load import dump_recipe, override, parse_recipe
from distill.recipe.losses import CATALOGUE, settle
from distill.recipe.schema import Recipe

ARMS = """
name = "r"
[compare]
seeds = [0, 1]
[compare.arms]
plain = []
learned = ["teacher.labels.rule=instance", "teacher.labels.step=10"]
small = ["data.train=1000"]
"""


def arms(*assignments: str) -> Recipe:
    return override(parse_recipe(ARMS, "r.toml"), assignments)


def one(*texts: str) -> Recipe:
    """A recipe with one arm, "a"."""
    return parse_recipe(f'name = "r"\n[compare.arms]\na = {list(texts)}'.replace("'", '"'), "r.toml")


def keys(cells: tuple[Cell, ...]) -> list[str]:
    return [cell.key for cell in cells]


def test_arms_are_read_written_and_overridden() -> None:
    recipe = arms('compare.arms.small=["data.train=500"]', "compare.arms.more=teacher.epochs=3,student.epochs=2")
    assert recipe.compare.names == ("plain", "learned", "small", "more")
    assert recipe.compare.arms["small"] == ("data.train=500",)
    assert recipe.compare.arms["more"] == ("teacher.epochs=3", "student.epochs=2")
    assert parse_recipe(dump_recipe(recipe), "x.toml") == recipe
    assert problems(recipe, comparing=True) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("teacher.epoch=3", "teacher.epoch=3: [teacher] epoch is not a field; did you mean epochs?"),
        ("teacher.epochs=-1", "teacher.epochs=-1: [teacher] epochs: found -1 (an integer), expected an integer of at"),
        ("teacher.epochs", "teacher.epochs: found no '=', expected table.field=value"),
        ("seed=3", 'found "seed", which all arms have in common; leave it out'),
        ("name=b", 'found "name", which all arms have in common'),
        (" checkpoints = x", 'found "checkpoints", which all arms have in common'),
        ("compare.seeds=0,1", 'found "compare.seeds", which all arms have in common'),
        ("data.noise.rate=0.2", "[data.noise] rate: found 0.2, but kind is"),
    ],
)
def test_every_assignment_is_checked_and_its_arm_named(text: str, wanted: str) -> None:
    recipe = override(one(text), ['compare.arms.b=["teacher.epochs=3"]'])
    (line,) = problems(recipe, comparing=True)
    assert line.startswith(f"[compare.arms] a: {wanted}")


def test_what_all_arms_have_in_common_is_said_once() -> None:
    found = problems(arms("data.test=0", "data.validation=1.5", "compare.temperatures=1,4"), comparing=True)
    assert [line.split(":")[0] for line in found] == ["[data] validation", "[data] test"]


def test_an_arm_s_own_problems_are_those_of_the_recipe_it_makes() -> None:
    """The recipe itself has no meta images and learns nothing: nothing is wrong with it."""
    recipe = arms("teacher.labels.meta=held-out")
    assert problems(recipe) == []
    (line,) = problems(recipe, comparing=True)
    assert line.startswith("[compare.arms] learned: [data] meta: found 0")
    assert problems(override(recipe, ['compare.arms.learned=["teacher.labels.rule=instance", "data.meta=50"]'])) == []


def test_a_rule_s_own_table_may_stand_in_a_recipe_with_an_arm_that_reads_it() -> None:
    fields = ("teacher.labels.pencil.step=2", 'compare.arms.pencil=["teacher.labels.rule=pencil"]')
    assert problems(arms(*fields), comparing=True) == []
    for cell in grid(arms(*fields)):
        check_recipe(cell.recipe, cell.key)
    assert problems(arms(fields[0]), comparing=True) != []


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        ((), None),
        (("teacher.labels.rule=elr",), "elr"),
        (('teacher.labels.rule = "elr"', "x=1"), "elr"),
        (("teacher.labels.rule=elr", "teacher.labels.rule=class"), "class"),
        (("teacher.labels.rule=nonsense",), None),
    ],
)
def test_the_rule_of_an_arm(texts: tuple[str, ...], rule: str | None) -> None:
    assert assigned_rule(texts) == rule


@pytest.mark.parametrize(
    ("assignments", "wanted"),
    [
        (("compare.teachers=onehot",), "[compare] teachers: given beside [compare.arms]"),
        (("compare.arms.a b=[]",), '[compare.arms] "a b": found this name'),
        (("compare.arms.Plain=[]",), "[compare.arms] Plain: its runs would lie in the same folder as those of plain"),
        (("compare.arms.untrained=[]",), "[compare.arms] untrained: is the name of a control"),
        (("compare.reference=onehot",), '[compare] reference: found "onehot", expected "plain" or "learned" or'),
        (("compare.losses=kd,kd",), "[compare] losses: found 'kd' twice"),
        (("compare.losses=kd,dkd", "data.validation=0"), "[compare] losses: found several with no validation"),
        (("compare.losses=ce,smoothing", "compare.temperatures=1"), "[compare] temperatures: given, but the losses ce"),
        (("compare.losses=labels",), '[compare.arms] plain: [student.loss] name: found "labels"'),
    ],
)
def test_what_does_not_fit_is_named(assignments: tuple[str, ...], wanted: str) -> None:
    found = problems(arms(*assignments), comparing=True)
    assert found[0].startswith(wanted) or found[-1].startswith(wanted), found


def test_plus_and_minus_make_one_folder() -> None:
    recipe = arms('compare.arms.a-b=["teacher.epochs=2"]')
    arms_of = recipe.compare.arms | {"a+b": ("teacher.epochs=3",)}
    recipe = recipe.model_copy(update={"compare": recipe.compare.model_copy(update={"arms": arms_of})})
    (line,) = problems(recipe, comparing=True)
    assert line == '[compare.arms] "a+b": its runs would lie in the same folder as those of a-b; rename one'


def test_teachers_alone() -> None:
    cells = grid(arms("compare.students=false", "compare.temperatures=1,4"))
    assert keys(cells) == ["plain-s0", "learned-s0", "small-s0", "plain-s1", "learned-s1", "small-s1"]
    assert not any(cell.exports for cell in cells)
    assert [cell.number for cell in cells] == list(range(6))
    learned = cells[1].recipe
    assert (learned.teacher.labels.rule, learned.teacher.labels.step, learned.seed) == ("instance", 10, 0)
    assert (cells[5].recipe.data.train, cells[5].recipe.seed) == (1000, 1)
    assert cells[1].teacher_folder.as_posix() == "checkpoints/r-compare/learned-s0"


def test_the_whole_grid_with_its_controls() -> None:
    cells = grid(arms("compare.temperatures=1,4", "compare.losses=kd,ce,dkd"))
    of_plain = ["plain-s0", *(f"plain-s0-{name}" for name in ("kd-T1", "kd-T4", "ce", "dkd-T1", "dkd-T4"))]
    assert keys(cells)[:6] == of_plain
    # Cross-entropy is in the grid, so only smoothing is added to the reference's students.
    assert keys(cells)[18:22] == ["plain-s0-smoothing", "untrained-s0", "untrained-s0-kd-T1", "untrained-s0-kd-T4"]
    assert len(cells) == 2 * 22
    assert [cell.number for cell in cells] == list(range(44))
    assert len(set(keys(cells))) == 44
    for cell in cells:
        check_recipe(cell.recipe, cell.key)
        if cell.needs is not None:
            teacher = cells[cell.needs]
            assert (teacher.kind, teacher.arm, teacher.seed) == ("teacher", cell.arm, cell.seed)
            assert teacher_digest(teacher.recipe) == teacher_digest(cell.recipe)
    assert Counter(cell.kind for cell in cells) == {"teacher": 8, "student": 36}


def test_seed_by_seed_and_a_key_for_life() -> None:
    """All arms at one seed come before the next seed; a grid that grows keeps its cells' keys and digests."""
    few, many = grid(arms("compare.seeds=0")), grid(arms("compare.seeds=0,1,2", "compare.temperatures=4"))
    assert [cell.seed for cell in many] == sorted(cell.seed for cell in many)
    by_key = {cell.key: cell for cell in many}
    for cell in few:
        if cell.kind == "teacher":
            assert teacher_digest(cell.recipe) == teacher_digest(by_key[cell.key].recipe)


def test_a_loss_of_another_name_starts_from_its_own_settings() -> None:
    recipe = arms("student.loss.alpha=2", "student.loss.name=dkd", "compare.losses=dkd,kd")
    losses = {cell.loss: cell.recipe.student.loss for cell in grid(recipe) if cell.arm == "plain"}
    assert losses["dkd"].alpha == 2
    assert losses["kd"].alpha is None
    assert losses["ce"].name == "ce"


def test_an_untrained_teacher_suits_every_recipe() -> None:
    """Warm-up, milestones and label steps are for training, which it has none of."""
    optimizer = (
        "teacher.optimizer.schedule=multistep",
        "teacher.optimizer.milestones=5",
        "teacher.optimizer.warmup_epochs=2",
    )
    recipe = arms(
        *optimizer, "teacher.labels.average_epochs=5", "compare.reference=learned", "student.loss.name=labels"
    )
    untrained = [cell for cell in grid(recipe) if cell.control == "untrained"]
    assert [cell.kind for cell in untrained] == ["teacher", "student"] * 2
    for cell in untrained:
        check_recipe(cell.recipe, cell.key)
        assert cell.recipe.teacher.epochs == 0
        assert cell.recipe.student.loss.name == "kd"


def test_controls_ask_no_teacher() -> None:
    cells = grid(arms("student.more_teachers=x", "student.combine=probabilities", "student.teacher_weights=1,2"))
    for cell in cells:
        if cell.control in ("alone", "smoothing"):
            assert cell.recipe.student.more_teachers == ()
            check_recipe(cell.recipe, cell.key)


def test_students_differ_in_the_store_only() -> None:
    """The students of two arms that differ in labels have the same digest on the same store."""
    cells = {cell.key: cell for cell in grid(arms("compare.temperatures=4"))}
    one, other = (student_digest(cells[f"{arm}-s0-kd-T4"].recipe, "store") for arm in ("plain", "learned"))
    assert one == other


def test_further_losses_stay_beside_each_loss_that_asks_a_teacher() -> None:
    recipe = arms("compare.losses=kd,dkd,ols", "student.loss.plus.logits.weight=0.5", "compare.controls=true")
    plus = {cell.key.removeprefix("learned-s0-"): list(cell.recipe.student.loss.plus) for cell in grid(recipe)[:4]}
    assert plus == {"plain-s0": ["logits"], "plain-s0-kd": ["logits"], "plain-s0-dkd": ["logits"], "plain-s0-ols": []}
    learned = grid(arms("student.loss.plus.labels.weight=0.5", "compare.controls=true"))
    untrained = [cell.recipe.student.loss.plus for cell in learned if cell.control == "untrained"]
    assert untrained
    assert not any(untrained)


@pytest.mark.parametrize(
    ("text", "fields", "wanted"),
    [
        ("student.loss.name=dkd", ("compare.losses=kd",), "name: is dkd here, which is not among [compare] losses"),
        ("student.loss.standardise=true", ("compare.losses=dkd",), "name: is kd here, which is not among [compare]"),
        ("student.loss.temperature=8", ("compare.temperatures=1,4",), "temperature: assigned with [compare] temp"),
    ],
)
def test_what_no_student_would_have_is_refused_in_an_arm(text: str, fields: tuple[str, ...], wanted: str) -> None:
    found = problems(override(one(text), fields), comparing=True)
    assert [line for line in found if line.startswith(f"[compare.arms] a: [student.loss] {wanted}")]
    assert problems(one(text), comparing=True) == []


def test_what_an_arm_assigns_to_a_loss_that_is_named_stays() -> None:
    recipe = override(one("student.loss.name=dkd", "student.loss.beta=3"), ["compare.losses=kd,dkd"])
    assert problems(recipe, comparing=True) == []
    betas = {cell.loss: cell.recipe.student.loss.beta for cell in grid(recipe) if cell.loss in ("kd", "dkd")}
    assert betas == {"kd": None, "dkd": 3.0}


def test_cells_break_rules_that_their_comparison_does_not() -> None:
    labels = override(parse_recipe("", "r.toml"), ["compare.teachers=onehot,instance", "compare.losses=kd,labels"])
    assert problems(labels, comparing=True) == []
    (line,) = cell_problems(grid(labels))
    assert line.startswith('student of onehot, labels, seed 0: [student.loss] name: found "labels", but the teacher')
    top_k = override(
        parse_recipe("", "r.toml"),
        ["compare.teachers=instance", "teacher.labels.rule=instance", "export.format=topk", "export.k=3"],
    )
    (line,) = cell_problems(grid(top_k))
    assert line.endswith("or leave out this control: [compare] controls = false")
    assert not list(cell_problems(grid(override(top_k, ["compare.controls=false"]))))
    assert not list(cell_problems(grid(override(top_k, ["compare.controls=false", "compare.losses=labels"]))))


def test_arms_are_made_once_for_all_that_is_asked_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making one reads the whole recipe again: once for the rules and once for the grid, however many there are."""
    made: list[str] = []

    def counted(recipe: Recipe, name: str) -> Recipe:
        made.append(name)
        return arm_recipe(recipe, name)

    for module in (grid_module, compare_checks):
        monkeypatch.setattr(module, "arm_recipe", counted)
    recipe = arms("compare.temperatures=1,4", "compare.weights=0.5")
    assert problems(recipe, comparing=True) == []
    assert list(cell_problems(grid(recipe))) == []
    assert made == ["plain", "learned", "small"] * 2


def test_a_reference_that_is_not_compared_has_no_controls() -> None:
    with pytest.raises(RecipeError, match=r'\[compare\] reference: found "none", which is not compared'):
        grid(arms("compare.reference=none"))
    assert grid(arms("compare.reference=none", "compare.controls=false"))


def test_every_weight_at_every_temperature_and_once_where_a_loss_has_none() -> None:
    cells = grid(arms("compare.temperatures=1,4", "compare.weights=0.5,1", "compare.losses=kd,ce,labels,fitnet,tf-kd"))
    of_learned = [cell.key.removeprefix("learned-s0-") for cell in cells if (cell.arm, cell.seed) == ("learned", 0)]
    assert of_learned == [
        "learned-s0", "kd-T1-w0.5", "kd-T1-w1", "kd-T4-w0.5", "kd-T4-w1", "ce", "labels-w0.5", "labels-w1", "fitnet",
        "tf-kd",
    ]  # fmt: skip
    assert [cell.number for cell in cells] == list(range(len(cells)))
    assert len(set(keys(cells))) == len(cells)
    controls = [cell.key for cell in cells if cell.control and cell.seed == 0]
    untrained = [f"untrained-s0-kd-{at}" for at in ("T1-w0.5", "T1-w1", "T4-w0.5", "T4-w1")]
    assert controls == ["plain-s0-smoothing", "untrained-s0", *untrained]
    (cell,) = (cell for cell in cells if cell.key == "learned-s0-kd-T4-w0.5")
    assert str(cell) == "student of learned, kd, T 4, w 0.5, seed 0"
    assert [loss for loss, info in CATALOGUE.items() if not info.takes_share] == [
        "fitnet", "attention", "ce", "smoothing", "ols", "tf-kd"
    ]  # fmt: skip


def test_a_weight_is_the_loss_s_and_the_rest_is_cross_entropy_s() -> None:
    cells = {cell.key: cell for cell in grid(arms("compare.weights=0.5,1", "compare.losses=kd,ce,dkd"))}
    weights = {
        key: (cell.weight, cell.recipe.student.loss.soft_weight, cell.recipe.student.loss.hard_weight)
        for key, cell in cells.items()
        if key.startswith("plain-s0-")
    }
    assert weights == {
        "plain-s0-kd-w0.5": (0.5, 0.5, 0.5), "plain-s0-kd-w1": (1.0, 1.0, 0.0), "plain-s0-ce": (None, None, None),
        "plain-s0-dkd-w0.5": (0.5, 0.5, 0.5), "plain-s0-dkd-w1": (1.0, 1.0, 0.0), "plain-s0-smoothing": (None,) * 3,
    }  # fmt: skip
    for cell in cells.values():
        check_recipe(cell.recipe, cell.key)


def test_the_weight_that_is_a_loss_s_own_makes_the_same_student() -> None:
    """1 - 0.9 is not 0.1 but for rounding."""

    def made(*weight: float) -> str:
        recipe = with_loss(arms(), "kd", 4.0, *weight)
        loss = settle(recipe.student.loss, "onehot", 3).loss
        return student_digest(
            recipe.model_copy(update={"student": recipe.student.model_copy(update={"loss": loss})}), ""
        )

    assert made(0.9) == made()
    assert made(0.8) != made()


def test_a_grid_without_weights_is_what_it_was() -> None:
    """Keys, words and digests, from before there were weights."""
    cells = grid(arms("compare.temperatures=1,4", "compare.losses=kd,labels"))
    assert all(cell.weight is None and "-w" not in cell.key and ", w" not in str(cell) for cell in cells)
    assert keys(cells)[:4] == ["plain-s0", "plain-s0-kd-T1", "plain-s0-kd-T4", "plain-s0-labels"]
    assert str(cells[2]) == "student of plain, kd, T 4, seed 0"
    assert cells[2].recipe.student.loss.soft_weight is None


@pytest.mark.parametrize("weight", ["0", "1.5", "-0.5", "nan", "half"])
def test_a_weight_is_a_share_above_0(weight: str) -> None:
    with pytest.raises(RecipeError, match=r"\[compare\] weights\[1\]: found .* of at most 1"):
        arms(f"compare.weights=0.5,{weight}")


@pytest.mark.parametrize(
    ("assignments", "wanted"),
    [
        (
            ("compare.weights=0.5,0.9", "data.validation=0"),
            "[compare] weights: found several with no validation images",
        ),
        (("compare.losses=ce,tf-kd",), "[compare] weights: given, but the losses ce, tf-kd have none to choose"),
        (
            ("compare.losses=fitnet", "export.features=true"),
            '[compare] weights: given, but the loss "fitnet" has none to',
        ),
        (
            ("student.loss.hard_weight=0.3",),
            "[student.loss] hard_weight: found 0.3 with [compare] weights, which replace",
        ),
        (
            ("student.loss.soft_weight=0",),
            "[student.loss] soft_weight: found 0 with [compare] weights, which replace it",
        ),
        (
            ('compare.arms.small=["student.loss.soft_weight=2"]',),
            "[compare.arms] small: [student.loss] soft_weight: found 2 with [compare] weights",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(assignments: tuple[str, ...], wanted: str) -> None:
    """Only for a comparison: a student that is trained by itself does not read them."""
    recipe = arms("compare.weights=0.5", *assignments)
    assert problems(recipe) == []
    (line,) = problems(recipe, comparing=True)
    assert line.startswith(wanted)
    assert len(line) < 260


def test_weights_fit_what_an_arm_s_student_learns_with() -> None:
    """The recipe's own loss has none to choose, but an arm's has; weights of a loss that takes no share are its own."""
    fields = ("student.loss.name=ce", "compare.weights=0.5", "compare.temperatures=2")
    assert problems(arms(*fields, 'compare.arms.taught=["student.loss.name=kd"]'), comparing=True) == []
    fields = ("student.loss.name=fitnet", "student.loss.soft_weight=50", "compare.weights=0.5", "export.features=true")
    assert problems(arms(*fields, "compare.losses=kd,fitnet"), comparing=True) == []
    assert problems(arms("compare.weights=0.5", "data.validation=0"), comparing=True) == []
    assert problems(arms("compare.weights=0.5", "compare.students=false", "student.loss.name=ce"), comparing=True) == []


@pytest.mark.parametrize(
    ("text", "fields", "refused"),
    [
        ("", (), True),
        ("teacher.epochs=30", (), True),  # the default
        ("teacher.labels.step=10", (), True),  # onehot labels read no step
        ("teacher.epochs=29", (), False),
        ("data.root=elsewhere", (), False),  # where other images may lie
        ("device=cpu", (), False),
        ("student.epochs=3", (), False),
        ("student.epochs=3", ("compare.students=false",), True),
    ],
)
def test_an_arm_that_trains_what_another_does_is_refused(text: str, fields: tuple[str, ...], refused: bool) -> None:
    assigned = json.dumps([text] if text else [])
    recipe = arms("teacher.labels.rule=onehot", "data.meta=100", f"compare.arms.again={assigned}", *fields)
    line = "[compare.arms] again: trains the same as plain; leave one of them out"
    assert (line in problems(recipe, comparing=True)) is refused
    assert line not in problems(recipe)  # a run that has such arms written down is one that can go on
