"""A comparison without its runs: comparison.toml and results.json, which tables, verdicts and page come from again.

Two small text files can be kept with a paper, read by a sceptic, and reported together with arms or seeds that another
machine adds. Read and written without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from distill.errors import RunError
from distill.recipe.grid import Cell
from distill.recipe.schema import Recipe
from distill.report.comparison import Comparison
from distill.report.results import CELLS, CellResult
from distill.store.atomic import read_json, write_json

RESULTS = "results.json"
_Text = Annotated[str, StringConstraints(max_length=10_000)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Told(BaseModel):
    """A cell of results.json; what its key says already is not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: _Text
    state: Literal["finished", "failed", "missing"]
    reason: _Text | None = None
    temperature: _Number | None = None
    seconds: _Number = 0.0
    metrics: dict[_Text, _Number] = Field(default_factory=dict)
    digest: _Text = ""
    commit: _Text = "unknown"
    finished: _Text = ""
    machine: dict[_Text, _Text] = Field(default_factory=dict)
    versions: dict[_Text, _Text] = Field(default_factory=dict)

    def result(self, cell: Cell) -> CellResult:
        """As the cell's run would give it, but that there is none."""
        if self.state != "finished":
            return CellResult(cell, self.state, self.reason or "")
        known = self.model_dump(include={"digest", "finished", "machine", "versions"}, exclude_unset=True)
        provenance = {"commit": self.commit, "machine": self.machine, **known}
        return CellResult(cell, self.state, "", "", self.temperature, self.seconds, self.metrics, provenance)


class _Results(BaseModel):
    """results.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1]
    recipe_arms: dict[_Text, tuple[_Text, ...]]
    cells: tuple[_Told, ...]


def write_results(comparison: Comparison, folder: Path) -> None:
    """results.json: all numbers, differences and verdicts, and where each cell's came from."""
    write_json(folder / RESULTS, {"schema_version": 1, **comparison.record()})


def without_runs(comparison: Comparison) -> Comparison:
    """That names no run and no place of this machine, to be written where there are none."""
    own = comparison.recipe
    plain = Recipe.model_fields["checkpoints"].default
    data = own.data.model_copy(update={"root": type(own.data).model_fields["root"].default})
    recipe = own.model_copy(update={"checkpoints": plain, "data": data})
    return Comparison(recipe, tuple(replace(result, run="") for result in comparison.results))


def is_published(folder: Path) -> bool:
    """Whether results.json is all that is known of the cells: where there are runs, these are read."""
    return (folder / RESULTS).is_file() and not (folder / CELLS).exists()


def published(folder: Path, recipe: Recipe) -> Callable[[Cell], CellResult]:
    """What a folder without runs knows of each cell.

    Args:
        folder: with results.json.
        recipe: of its comparison.toml.

    Raises:
        RunError: results.json is damaged, or of other arms than the recipe's.
    """
    path = folder / RESULTS
    try:
        found = _Results.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"{path}: {where}: {first['msg']}", cure="Take the file again from where it came.") from error
    _check_arms(path, found.recipe_arms, recipe)
    told = {each.key: each for each in found.cells}
    return lambda cell: told[cell.key].result(cell) if cell.key in told else CellResult(cell, "missing", "not run")


def _check_arms(path: Path, told: Mapping[str, tuple[str, ...]], recipe: Recipe) -> None:
    """An edited recipe would give the numbers to arms that were never run."""
    for name in recipe.compare.names:
        own = tuple(recipe.compare.assignments(name))
        if name in told and told[name] != own:
            raise RunError(
                f"{path}: arm {name} was {list(told[name])}, and is {list(own)} in the recipe beside it",
                cure="The two files belong together: take both again from where they came.",
            )
