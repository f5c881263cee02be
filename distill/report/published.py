"""A comparison without its runs: comparison.toml, results.json and curves.csv, which all tables come from again.

These small text files can be kept with a paper, read by a sceptic, and reported together with arms or seeds that
another machine adds. results.json names the sha256 of the recipe beside it. One that has a cell's only numbers is never
written over: it is set aside. Read and written without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from distill.errors import RunError, UserError
from distill.recipe.grid import Cell
from distill.recipe.schema import Recipe
from distill.report.comparison import Comparison
from distill.report.curves import CURVES, read_curves, write_curves
from distill.report.results import CELLS, NOT_RUN, CellResult
from distill.report.runs import open_run, shares
from distill.store.atomic import mendable, sha256_of, write_bytes
from distill.store.json_files import read_json, write_json
from distill.store.manifest import misfits

COMPARISON, RESULTS = "comparison.toml", "results.json"  # the recipe of a comparison's folder, and its numbers
_Number: TypeAlias = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
# What an arm may name by its path.
_FILES = frozenset({"data.corrections", "data.noise.file", "data.root", "teacher.imported.source"})
_QUOTES = "\"'"
_AGAIN = "Take comparison.toml and results.json again from where they came."


class _Told(BaseModel):
    """A cell of results.json; what its key says already is not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    key: str
    state: Literal["finished", "failed", "missing"]
    reason: str | None = None
    temperature: _Number | None = None
    seconds: Annotated[_Number, Field(ge=0)] = 0.0
    metrics: Annotated[dict[str, _Number], AfterValidator(shares)] = Field(default_factory=dict)
    digest: str = ""
    commit: str = "unknown"
    finished: str = ""
    machine: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    def result(self, cell: Cell) -> CellResult:
        """As the cell's run would give it, but that there is none."""
        if self.state != "finished":
            return CellResult(cell, self.state, self.reason or "")
        known = self.model_dump(include={"digest", "finished", "versions"}, exclude_unset=True)
        provenance = {"commit": self.commit, "machine": self.machine, **known}
        return CellResult(cell, self.state, "", "", self.temperature, self.seconds, self.metrics, provenance)


class _Results(BaseModel):
    """results.json."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    schema_version: Literal[1]
    recipe_sha256: str
    cells: list[_Told]

    @field_validator("cells")
    @classmethod
    def _once(cls, cells: list[_Told]) -> list[_Told]:
        if len({cell.key for cell in cells}) < len(cells):
            raise ValueError("a cell is there twice")
        return cells


def write_results(comparison: Comparison, folder: Path) -> None:
    """results.json: all numbers, differences and verdicts, and where each cell's came from; curves.csv.

    comparison.toml is in the folder already.
    """
    set_aside(folder, comparison.finished)
    named = {"schema_version": 1, "recipe_sha256": sha256_of(folder / COMPARISON)}
    write_json(folder / RESULTS, {**named, **comparison.record()})
    write_curves({result.cell.key: result.curves for result in comparison.results}, folder)


def set_aside(folder: Path, finished: Collection[str] = ()) -> None:
    """Renames a results.json that has the only numbers of other cells than these: finished ones without sound runs.

    Its curves go with it, and a copy of its recipe.

    Raises:
        StoreError: it cannot be renamed.
    """
    path = folder / RESULTS
    try:
        results = read_json(path)
        told = [cell for cell in results["cells"] if cell["state"] == "finished"]
        only = {cell["key"] for cell in told if cell["key"] not in finished and not _measured(folder, cell)}
    except (UserError, LookupError, TypeError):
        return  # there is none, or none that can be read
    if only:
        suffix = sha256_of(path)[:12]
        try:
            if (folder / CURVES).is_file():
                (folder / CURVES).rename(folder / f"curves-{suffix}.csv")
            recipe = folder / COMPARISON
            if recipe.is_file() and sha256_of(recipe) == results.get("recipe_sha256"):
                write_bytes(folder / f"comparison-{suffix}.toml", recipe.read_bytes())
            path.rename(folder / f"results-{suffix}.json")
        except OSError as error:
            raise mendable(path, "set aside", error) from error


def _measured(folder: Path, cell: Mapping[str, Any]) -> bool:
    """Whether a finished cell of results.json has its numbers in its own run too, undamaged."""
    try:
        return bool(cell["run"]) and cell["kind"] in open_run(folder / cell["run"]).record.stages
    except UserError:
        return False


def without_runs(comparison: Comparison) -> Comparison:
    """To be written where there are no runs: it names none, and not where anything lies on this machine.

    Of a noise file, of corrections and of a teacher from elsewhere the name is left, without the folders.
    """
    return Comparison(_without_places(comparison.recipe), tuple(map(_without_run, comparison.results)))


def _without_places(recipe: Recipe) -> Recipe:
    noise = recipe.data.noise.model_copy(update={"file": PurePath(recipe.data.noise.file).name})
    root = type(recipe.data).model_fields["root"].default
    corrections = PurePath(recipe.data.corrections).name
    imported = recipe.teacher.imported
    imported = imported.model_copy(update={"source": PurePath(imported.source).name})
    arms = {name: tuple(map(_without_place, assigned)) for name, assigned in recipe.compare.arms.items()}
    return recipe.model_copy(
        update={
            "checkpoints": Recipe.model_fields["checkpoints"].default,
            "data": recipe.data.model_copy(update={"root": root, "noise": noise, "corrections": corrections}),
            "teacher": recipe.teacher.model_copy(update={"imported": imported}),
            "compare": recipe.compare.model_copy(update={"arms": arms}),
        }
    )


def _without_place(assignment: str) -> str:
    field, _, value = assignment.partition("=")
    if field.replace(" ", "") not in _FILES:
        return assignment
    return f"{field}={json.dumps(PurePath(value.strip().strip(_QUOTES)).name)}"


def _without_run(result: CellResult) -> CellResult:
    return replace(result, run="", reason=NOT_RUN if result.state == "missing" else result.reason)


def is_published(folder: Path) -> bool:
    """Whether results.json is all that is known of the cells: where there are runs, these are read."""
    return (folder / RESULTS).is_file() and not (folder / CELLS).exists()


def published(folder: Path) -> Callable[[Cell], CellResult]:
    """What a folder without runs knows of each cell.

    Args:
        folder: with comparison.toml and results.json.

    Raises:
        RunError: results.json or curves.csv is damaged, or the numbers are of another recipe than the one beside them.
        StoreError: it is no JSON.
    """
    path = folder / RESULTS
    found = _results(path)
    if found.recipe_sha256 != sha256_of(folder / COMPARISON):
        raise RunError(f"{path}: its numbers are of another recipe than {COMPARISON} beside it", cure=_AGAIN)
    told, curves = {each.key: each for each in found.cells}, read_curves(folder)

    def read(cell: Cell) -> CellResult:
        if cell.key not in told:
            return CellResult(cell, "missing", NOT_RUN)
        result = told[cell.key].result(cell)
        return replace(result, curves=curves.get(cell.key, {})) if result.state == "finished" else result

    return read


def refuse_damaged(folder: Path) -> None:
    """Reads results.json, where there is one, and lets it be; beside runs it may be an earlier recipe's.

    Raises:
        RunError: it is damaged, or where there are no runs the recipe beside it is another.
        StoreError: it is no JSON.
    """
    if is_published(folder):
        published(folder)
    elif (folder / RESULTS).is_file():
        _results(folder / RESULTS)


def _results(path: Path) -> _Results:
    try:
        return _Results.model_validate(read_json(path), strict=True)
    except ValidationError as error:
        raise RunError(f"{path}: {misfits(error)}", cure=_AGAIN) from error
