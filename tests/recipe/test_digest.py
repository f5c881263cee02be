"""Digests change with what decides a result, and with nothing else."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.recipe.digest import JSON, differences, digest, export_digest, student_digest, teacher_digest
from distill.recipe.labels import LabelRule, reads
from distill.recipe.load import dump_recipe, override, parse_recipe

RECIPE = parse_recipe("", "r.toml")

# (assignment, changes the teacher's digest, the export's, the student's on the same store)
REACH = [
    ("name=other", False, False, False),
    ("checkpoints=elsewhere", False, False, False),
    ("device=cpu", False, False, False),
    ("threads=3", False, False, False),
    ("data.root=elsewhere", False, False, False),
    ("data.download=true", False, False, False),
    ("data.unreadable=leave-out", False, False, False),
    ("compare.seeds=1,2", False, False, False),
    ("compare.weights=0.5,0.9", False, False, False),
    ("export.batch_size=3", False, False, False),
    ("teacher.test_every_epoch=false", False, False, False),
    ("student.test_every_epoch=false", False, False, False),
    ("seed=1", True, True, True),
    ("data.meta=10", True, True, True),
    ("data.noise.rate=0.1", True, True, True),
    ("views.flip=true", True, True, True),
    ("views.count=4", False, True, True),
    ("teacher.epochs=3", True, True, False),
    ("teacher.labels.rule=class", True, True, False),
    ("teacher.labels.optimizer=adam", False, False, False),  # one-hot labels have no optimiser
    ("teacher.model_args.drop_rate=0.1", True, True, False),
    ("export.format=float32", False, True, False),
    ("export.shard_rows=7", False, True, False),
    ("export.k=7", False, True, False),
    ("export.features=true", False, True, False),
    ("student.loss.allow_topk=true", False, False, True),
    ("student.loss.temperature=2", False, False, True),
]


@pytest.mark.parametrize(("assignment", "teacher", "export", "student"), REACH)
def test_what_each_digest_covers(assignment: str, teacher: bool, export: bool, student: bool) -> None:
    other = override(RECIPE, [assignment])
    assert (teacher_digest(other) != teacher_digest(RECIPE)) == teacher
    assert (export_digest(other, "w") != export_digest(RECIPE, "w")) == export
    assert (student_digest(other, "s") != student_digest(RECIPE, "s")) == student


@pytest.mark.parametrize("rule", get_args(LabelRule))
def test_a_teacher_is_decided_by_what_its_rule_reads_and_by_no_other_label_field(rule: LabelRule) -> None:
    """So a search over one rule's settings trains no other rule's teacher again."""
    recipe = override(RECIPE, [f"teacher.labels.rule={rule}"])
    changes = {
        "smoothing": "smoothing=0.2",
        "step": "step=7",
        "optimizer": "optimizer=adam",
        "backend": "backend=reference",
        "prior_step": "prior_step=7",
        "warmup_epochs": "warmup_epochs=2",
        "freeze_epochs": "freeze_epochs=2",
        "average_epochs": "average_epochs=2",
        "pulls": "pulls.answers=0.1",
        "online_smoothing": "online_smoothing.given=0.4",
        "tf_kd": "tf_kd.mass=0.9",
        "bootstrap": "bootstrap.target=soft",
        "joint": "joint.history=3",
        "pencil": "pencil.step=3",
        "elr": "elr.decay=0.5",
    }
    for name, change in changes.items():
        changed = override(recipe, [f"teacher.labels.{change}"])
        assert (teacher_digest(changed) != teacher_digest(recipe)) == (name in reads(rule)), name


def test_digests_follow_what_came_before() -> None:
    assert export_digest(RECIPE, "a") != export_digest(RECIPE, "b")
    assert student_digest(RECIPE, "a") != student_digest(RECIPE, "b")


def test_a_digest_survives_the_file() -> None:
    assert teacher_digest(parse_recipe(dump_recipe(RECIPE), "x")) == teacher_digest(RECIPE)


def test_golden() -> None:
    # sha256 of {"a":[1,2.5,null,true],"b":"\u00e9"}; a change here makes every stage on every disk run again.
    value: JSON = {"b": "é", "a": (1, 2.5, None, True)}
    assert digest(value) == "c66fca9242300f12718a1c583fc29f33790cbd7c712332cbc99734fd757a0385"
    assert digest(RECIPE.data) == digest(RECIPE.data.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("class", "1b25f44970f76b0015472021d7876e457816cada9b4fea2b056241980f1773e3"),
        ("instance", "f08a77de322a75a7972ccf9306718d2c3f3770d477438b26806f2df585c04877"),
        ("pencil", "9f52edc921e37cab5282e12374083cfd23cbafc2bd6224959e4df1f81aefa652"),
    ],
)
def test_a_field_that_is_new_and_off_changes_no_digest(rule: str, expected: str) -> None:
    """These are of programs before there were these fields: their runs on disk are still what they were."""
    assert teacher_digest(override(RECIPE, [f"teacher.labels.rule={rule}"])) == expected
    pulls = ("learn_confusions", "learn_temperature", "calibrated", "proximal")
    numbers = ("teacher.labels.pulls.repeats=3", "teacher.labels.freeze_patience=2")
    new = [*(f"teacher.labels.pulls.{pull}=true" for pull in pulls), *numbers]
    for on in [
        "teacher.labels.known_mass=0.98",
        *(["teacher.labels.pencil.keep_meta=true"] if rule == "pencil" else new),
    ]:
        assert teacher_digest(override(RECIPE, [f"teacher.labels.rule={rule}", on])) != expected


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=3), plain, max_size=4))
@settings(deadline=None, max_examples=50)
def test_the_order_of_keys_does_not_matter(value: dict[str, JSON]) -> None:
    assert digest(dict(reversed(value.items()))) == digest(value)


def test_what_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest({"x": math.nan})


def test_differences() -> None:
    new = override(RECIPE, ["teacher.epochs=3", "seed=1", "data.train=5", "data.noise.pairs.a=b", "compare.seeds=1,2"])
    assert differences(RECIPE, RECIPE, ["teacher", "data", "seed"]) == []
    assert differences(RECIPE, new, ["teacher", "student"]) == ["teacher.epochs: 30 -> 3"]
    assert differences(RECIPE, new, {"seed", "compare"}) == ["seed: 0 -> 1", "compare.seeds: [0] -> [1, 2]"]
    assert differences(RECIPE, new, ["data"]) == ["data.train: none -> 5", 'data.noise.pairs.a: nothing -> "b"']
    assert differences(RECIPE, new, ["tea"]) == []
