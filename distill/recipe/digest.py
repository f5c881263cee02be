"""Digests: the same inputs give the same hexadecimal string, and a stage whose digest is on disk need not run again.

A digest covers what decides a result and nothing else: renaming a run or moving the data leaves it as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel

from distill.recipe.labels import reads
from distill.recipe.losses import settle
from distill.recipe.schema import Recipe
from distill.recipe.student_checks import label_rule

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


def digest(value: JSON | BaseModel) -> str:
    """SHA-256 in hexadecimal over canonical JSON: keys sorted, no spaces, ASCII, shortest decimals.

    Raises:
        ValueError: a number that is not finite.
        TypeError: a value that JSON does not have.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def teacher_digest(recipe: Recipe) -> str:
    """What decides a teacher: seed, data (not where the files are), augmentation (not how many views), teacher."""
    return digest(_teacher_inputs(recipe))


def inputs_digest(recipe: Recipe, images: str, given: str) -> str:
    """What decides a trained teacher: its part of the recipe, the images' fingerprint and the given labels' sha256."""
    return digest({"recipe": teacher_digest(recipe), "images": images, "given": given})


def export_digest(recipe: Recipe, weights_sha256: str) -> str:
    """What decides a store: the teacher's inputs, its weights, all of the views, and the shape of the files."""
    # A store without maps is what it was before there were any.
    left_out = {"batch_size"} if recipe.export.maps else {"batch_size", "maps"}
    export = recipe.export.model_dump(mode="json", exclude=left_out)
    views = recipe.views.model_dump(mode="json")
    return digest({"teacher": _teacher_inputs(recipe), "weights": weights_sha256, "views": views, "export": export})


def student_digest(recipe: Recipe, store_digest: str) -> str:
    """What decides a student: seed, data, views, student, and the store that it learns from."""
    # Which other teachers there are is in the digest of what is learned from, by their contents.
    student = recipe.student.model_dump(mode="json", exclude={"more_teachers", "test_every_epoch"})
    inputs = {"views": recipe.views.model_dump(mode="json"), "student": student}
    return digest({**_common_inputs(recipe), **inputs, "store": store_digest})


def arm_digest(recipe: Recipe) -> str:
    """What tells an arm of a comparison from others: two of the same train the same networks.

    All that the recipe says but for what nothing reads: other fields of the labels than their rule's, and students'
    where there are none. Where files lie is part of it, as what is in them is not known here.
    """
    unread = {"name", "compare", *(() if recipe.compare.students else ("student", "export"))}
    return digest({**recipe.model_dump(mode="json", exclude=unread), "teacher": _teacher_inputs(recipe)["teacher"]})


def another_student(asked: Recipe, found: Recipe) -> bool:
    """Whether a recipe asks for another student than a finished one's, by their recipes alone.

    Args:
        asked: a network that it leaves open fits whatever was chosen. What its loss leaves open is settled as a
            student's is; the temperature, which is by the labels of all its teachers, only where there is one.
        found: the finished student's, with nothing left open.
    """
    recipes = (asked, _settled(asked), _settled(found))
    written, wanted, have = (dict(_flat(_student_inputs(recipe))) for recipe in recipes)
    left_open = set() if asked.student.model else {"student.model"}
    if asked.student.more_teachers:
        left_open |= {name for name, value in written.items() if name.endswith(".temperature") and value is None}
    return any(wanted.get(name) != have.get(name) for name in (wanted.keys() | have.keys()) - left_open)


PLACES = ("data.root:", "data.download:", "data.noise.file:", "data.corrections:")
"""How `differences` begins its lines on where files lie, which decides nothing: what is in them does."""


def differences(old: Recipe, new: Recipe, tables: Collection[str]) -> list[str]:
    """Fields that differ, as `teacher.epochs: 20 -> 3`, in the schema's order.

    Args:
        old: before.
        new: after.
        tables: where to look: tables (`teacher`, `student.loss`) or single fields (`seed`).
    """
    before = dict(_flat(old.model_dump(mode="json")))
    after = dict(_flat(new.model_dump(mode="json")))
    lines = []
    for name in {**before, **after}:
        inside = any(name == table or name.startswith(f"{table}.") for table in tables)
        if inside and _show(before, name) != _show(after, name):
            lines.append(f"{name}: {_show(before, name)} -> {_show(after, name)}")
    return lines


def _common_inputs(recipe: Recipe) -> dict[str, Any]:
    # Where files lie does not count; what is in them (images, the labels of files) is for the stages to add, and so
    # is which of them were left out.
    data = recipe.data.model_dump(
        mode="json",
        exclude={"root": True, "download": True, "unreadable": True, "corrections": True, "noise": {"file"}},
    )
    return {"seed": recipe.seed, "data": data}


def _teacher_inputs(recipe: Recipe) -> dict[str, Any]:
    if recipe.teacher.imported.source:
        # Its weights decide it, wherever they came from; no view that is made here ever trained it.
        network = recipe.teacher.model_dump(mode="json", include={"model", "model_args"})
        return {**_common_inputs(recipe), "teacher": network | _imported_inputs(recipe)}
    views = recipe.views.model_dump(mode="json", exclude={"count"})
    teacher = recipe.teacher.model_dump(mode="json", exclude={"imported", "labels", "test_every_epoch"})
    teacher["labels"] = recipe.teacher.labels.model_dump(mode="json", include=set(reads(recipe.teacher.labels.rule)))
    pulls = teacher["labels"].get("pulls", {})
    pencil = teacher["labels"].get("pencil", {})
    for table, name in (
        (pulls, "learn_confusions"),
        (pulls, "learn_temperature"),
        (pulls, "calibrated"),
        (pulls, "proximal"),
        (teacher["labels"], "freeze_patience"),
        (teacher["labels"], "known_mass"),
        (pencil, "keep_meta"),
    ):
        if not table.get(name):  # labels without it are what they were before there was any
            table.pop(name, None)
    if pulls.get("repeats") == 1:
        del pulls["repeats"]
    return {**_common_inputs(recipe), "views": views, "teacher": teacher}


def _student_inputs(recipe: Recipe) -> dict[str, Any]:
    export = recipe.export.model_dump(mode="json", include={"format", "k", "features", "maps"})
    student = recipe.student.model_dump(mode="json", exclude={"test_every_epoch"})
    views = recipe.views.model_dump(mode="json")
    return {**_common_inputs(recipe), "views": views, "export": export, "student": student}


def _settled(recipe: Recipe) -> Recipe:
    """With nothing left open in the student's loss."""
    student = recipe.student
    loss = settle(student.loss, label_rule(recipe), student.epochs).loss
    return recipe.model_copy(update={"student": student.model_copy(update={"loss": loss})})


def _imported_inputs(recipe: Recipe) -> dict[str, Any]:
    return {"imported": recipe.teacher.imported.model_dump(mode="json", exclude={"source"})}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _show(flat: Mapping[str, Any], name: str) -> str:
    if name not in flat:
        return "nothing"
    return "none" if flat[name] is None else json.dumps(flat[name], ensure_ascii=False)
