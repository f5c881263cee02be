"""Run folders: what was asked, what was done, and with what. No torch."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from distill.errors import RecipeError, RunError, StoreError
from distill.recipe.load import dump_recipe, load_recipe
from distill.recipe.schema import Recipe
from distill.store.atomic import leads_out, mendable, sha256_of, write_bytes
from distill.store.json_files import parse_json, read_json, write_json
from distill.store.manifest import installed_versions, misfits

RECIPE, RECORD, METRICS = "recipe.toml", "run.json", "metrics.jsonl"
_LISTED = 10  # runs in an error
WEIGHTS = "model.safetensors"  # what every finished teacher and student has written


def shares(metrics: dict[str, float]) -> dict[str, float]:
    """Lets metrics through whose accuracies are shares: a file that says 17 is damaged, and no network that good.

    Raises:
        ValueError: an accuracy is none.
    """
    for name, value in metrics.items():
        if name.endswith("accuracy") and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected a share from 0 to 1")
    return metrics


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageRecord(_Closed):
    """A finished stage, and what made it: results carry their inputs."""

    digest: str = Field(description="Of everything that decided the result, the data included.")
    seconds: float = Field(description="Time that its training or export took, over all its interruptions.")
    finished: str = Field(description="UTC.")
    metrics: Annotated[dict[str, float], AfterValidator(shares)] = Field(
        description="Last epoch's, and the best epoch's by validation as best_..."
    )
    files: dict[str, str] = Field(description="sha256 of what it wrote, by path in the run folder.")
    commit: str = Field(description="git commit of the program, '+' when its files were changed, or 'unknown'.")
    versions: dict[str, str]
    machine: dict[str, str]
    imported: dict[str, str] = Field(
        default_factory=dict,
        description="Of a teacher that was not trained here: where from, its weights, its classes.",
    )


class RunRecord(_Closed):
    """run.json."""

    schema_version: Literal[1] = 1
    kind: Literal["teacher", "student"]
    name: str
    seed: int
    created: str = Field(description="UTC.")
    begun: str = Field(description="Digest of the teacher or student that this folder is for.")
    teacher: str = Field(default="", description="Of a student: the digest of the teacher that its store came from.")
    stages: dict[str, StageRecord] = Field(default_factory=dict)

    @field_validator("stages")
    @classmethod
    def _name_weights(cls, stages: dict[str, StageRecord]) -> dict[str, StageRecord]:
        for stage in ("teacher", "student"):
            if stage in stages and WEIGHTS not in stages[stage].files:
                raise ValueError(f"{stage} is finished and names no {WEIGHTS}")
        return stages


@dataclass
class Run:
    """An open run folder."""

    folder: Path
    recipe: Recipe
    record: RunRecord

    def done(self, stage: str, digest: str) -> bool:
        """Whether this stage was finished with the same inputs and its files are still there."""
        found = self.record.stages.get(stage)
        return found is not None and found.digest == digest and all((self.folder / f).is_file() for f in found.files)

    def metrics(self, stage: str) -> dict[str, float]:
        """Of a finished stage."""
        return self.record.stages[stage].metrics

    def epochs(self, stage: str) -> dict[int, dict[str, float]]:
        """What metrics.jsonl says of a stage's epochs, counted from 0; without what is missing, torn or not finite."""
        try:
            text = (self.folder / METRICS).read_text("utf-8", "replace")
        except OSError:
            return {}
        entries = [_entry(line) for line in text.split("\n")]
        lines = [entry for entry in entries if (entry.get("event"), entry.get("stage")) == ("epoch", stage)]
        return {
            line["epoch"]: {name: value for name, value in line["metrics"].items() if type(value) in (int, float)}
            for line in lines
            if type(line.get("epoch")) is int and isinstance(line.get("metrics"), dict)
        }

    def finish(
        self,
        stage: str,
        digest: str,
        metrics: Mapping[str, float],
        files: Mapping[str, str],
        device: str,
        imported: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Records a finished stage. Last of all: before this, the stage counts as not done."""
        stage_record = StageRecord(
            digest=digest,
            seconds=metrics["seconds"],
            finished=now(),
            metrics={name: value for name, value in metrics.items() if name != "seconds"},
            files=dict(files),
            commit=program_commit(),
            versions=installed_versions(),
            machine={**host(), "device": device},
            imported=dict(imported),
        )
        self._replace(self.record.model_copy(update={"stages": {**self.record.stages, stage: stage_record}}))

    def add_metrics(self, stage: str, metrics: Mapping[str, float]) -> None:
        """Records what was measured of a finished stage's network afterwards."""
        record = self.record.stages[stage]
        measured = record.model_copy(update={"metrics": {**record.metrics, **metrics}})
        self._replace(self.record.model_copy(update={"stages": {**self.record.stages, stage: measured}}))

    def forget(self, stage: str) -> None:
        """Takes a stage's record away, before its files are made again."""
        if stage in self.record.stages:
            rest = {name: kept for name, kept in self.record.stages.items() if name != stage}
            self._replace(self.record.model_copy(update={"stages": rest}))

    def keep_recipe(self, recipe: Recipe) -> None:
        """Writes the recipe that the folder's files now belong to, where it is another."""
        path, text = self.folder / RECIPE, dump_recipe(recipe).encode()
        if not path.is_file() or path.read_bytes() != text:
            write_bytes(path, text)
        self.recipe = recipe

    def reread(self) -> None:
        """Takes over what other processes have recorded since the folder was opened."""
        self.record = open_run(self.folder).record

    def _replace(self, record: RunRecord) -> None:
        write_json(self.folder / RECORD, record.model_dump(mode="json"))
        self.record = record


def _entry(line: str) -> dict[str, Any]:
    """A line of metrics.jsonl; empty where it is none."""
    with suppress(ValueError):
        entry = parse_json(line)
        return entry if isinstance(entry, dict) else {}
    return {}


def make_run(
    folder: Path, recipe: Recipe, *, kind: Literal["teacher", "student"], begun: str, teacher: str = ""
) -> Run:
    """Opens the run that is there when it is for the same teacher or student, else begins a new one in its place.

    Whether something would be lost by that is for the caller to ask first.
    """
    if (folder / RECORD).exists():
        run = open_run(folder)
        if run.record.begun == begun:
            return run
    record = RunRecord(kind=kind, name=recipe.name, seed=recipe.seed, created=now(), begun=begun, teacher=teacher)
    run = Run(folder, recipe, record)
    run.keep_recipe(recipe)
    run._replace(record)
    return run


def open_run(folder: Path) -> Run:
    """Opens an existing run folder.

    Raises:
        RunError: it is none, or its files are damaged.
        StoreError: it may not be looked into.
    """
    try:
        there = all((folder / name).is_file() for name in (RECORD, RECIPE))
    except OSError as error:
        raise mendable(folder / RECORD, "read", error) from error
    if not there:
        # A comparison's folder, or that of all runs, holds the ones that may have been meant.
        place = folder if any(folder.glob(f"*/{RECORD}")) else folder.parent
        raise RunError(f"{folder}: not a run folder, expected {RECIPE} and {RECORD} in it", cure=known_runs(place))
    try:
        record = RunRecord.model_validate(read_json(folder / RECORD))
        return Run(folder, load_recipe(folder / RECIPE), record)
    except (ValidationError, RecipeError) as error:
        reason = "; ".join(str(error).splitlines()[:3]) if isinstance(error, RecipeError) else misfits(error)
        raise RunError(
            f"{folder}: damaged run folder: {reason}", cure="restore it; or delete it and train again."
        ) from error


def known_runs(folder: Path) -> str:
    """The names of some, for an error; how many there are besides."""
    runs = sorted(p.parent.name for p in folder.glob(f"*/{RECORD}")) if folder.is_dir() else []
    more = f" and {len(runs) - _LISTED} more" if len(runs) > _LISTED else ""
    listed = ", ".join(runs[:_LISTED])
    return f"runs in {folder}: {listed}{more}." if runs else "make one with `distill teacher RECIPE`."


def damaged_files(run: Run) -> list[str]:
    """One sentence for each file of a finished stage that is missing or not what was written."""
    problems = []
    for stage, record in run.record.stages.items():
        for name, expected in record.files.items():
            path = run.folder / name
            if leads_out(path, run.folder):
                problems.append(f"{run.folder / RECORD}: {stage} names {name!r}, which is outside the run folder")
            elif problem := _damage(path, stage, expected):
                problems.append(problem)
    return list(dict.fromkeys(problems))  # a folder that may not be entered is told of once, not for each file


def _damage(path: Path, stage: str, expected: str) -> str:
    """What is wrong with a file that a stage wrote; "" where nothing is."""
    try:
        if not path.is_file():
            return f"{path}: missing; {stage} wrote it"
        return "" if sha256_of(path) == expected else f"{path}: sha256 differs from what {stage} wrote"
    except StoreError as error:
        return error.message
    except OSError as error:
        return mendable(path, "read", error).message


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def program_commit() -> str:
    """The git commit of this program's own checkout, with '+' when its files were changed; 'unknown' when installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--", "distill") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def host() -> dict[str, str]:
    """Python and processor; the stage adds the device."""
    return {"python": platform.python_version(), "platform": platform.platform(), "processor": platform.machine()}
