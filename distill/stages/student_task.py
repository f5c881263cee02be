"""The student's side of `training.loop`: its step, and what it takes to go on after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.bilevel.hygiene import training_forward
from distill.bilevel.update import Update
from distill.data.loader import Batch, ImageData, steps_per_epoch, training_batches
from distill.errors import RunError
from distill.losses.criterion import Criterion, teaching_metrics
from distill.losses.lesson import Lesson, Outputs
from distill.losses.terms import Sizes
from distill.models.capture import Inside
from distill.recipe.losses import in_use, needs
from distill.recipe.schema import Recipe
from distill.seeding import derive, seeded
from distill.stages.common import build_network
from distill.stages.finished import stored_rows
from distill.stages.teachers import LearnedLookup, Teaching, lesson_of


class StudentTask:
    """A student, its optimiser and its loss.

    Args:
        recipe: settled, see `stages.settling`.
        data: the images.
        teaching: stores, or the teacher itself.
        labels: those that the teacher learned, where the loss reads them.
        device: where to train.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        teaching: Teaching,
        labels: LearnedLookup | None,
        device: torch.device,
    ) -> None:
        student = recipe.student
        self.recipe, self.data, self.teaching, self.labels, self.device = recipe, data, teaching, labels, device
        self.seed = recipe.seed if student.seed is None else student.seed
        self.epochs = student.epochs
        self.rows = stored_rows(data)
        self.steps = steps_per_epoch(self.rows.numel(), student.batch_size)
        self.needs = needs(student.loss)
        self.spec, self.model, self.optimizer = build_network(student, "student", data, self.seed, device)
        self.inside = Inside(
            self.model,
            torch.zeros(2, *data.shape, device=device),
            features="features" in self.needs,
            maps="maps" in self.needs,
            sizes=teaching.sides,
        )
        self.criterion = self._criterion()
        trained = nn.ModuleList([self.model, self.criterion])
        self.update = Update(trained, self.optimizer, student.precision, student.clip_norm)
        self.forward: nn.Module = torch.compile(self.model) if student.compile else self.model  # type: ignore[assignment]
        self.ema = ModelEmaV3(self.model, decay=student.ema_decay, use_warmup=True) if student.ema_decay else None

    def _criterion(self) -> Criterion:
        """The loss, with parameters that the seed decides and the optimiser moves."""
        sizes = Sizes(self.data.num_classes, self.inside.width, self.teaching.feature_width, self.rows.numel())
        with seeded(torch.device("cpu"), derive(self.seed, "student-loss")):
            criterion = Criterion(self.recipe.student.loss, sizes, self.epochs).to(self.device)
        for parameters in criterion.parameter_groups(self.recipe.student.optimizer.weight_decay):
            self.optimizer.add_param_group(parameters)
        return criterion

    @property
    def judged(self) -> nn.Module:
        """See `Task`: the mean of the weights where the recipe asks for one."""
        return self.model if self.ema is None else self.ema.module

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """See `Task`."""
        return training_batches(
            self.data,
            self.rows,
            batch_size=self.recipe.student.batch_size,
            epoch=epoch,
            seed=self.seed,
            views=self.recipe.views,
            view_seed=self.recipe.seed,  # the store's: the pixels must be those that the teacher saw
            numbered=not self.recipe.student.online,
            device=self.device,
            start=start,
        )

    def step(self, batch: Batch, epoch: int, number: int) -> dict[str, Tensor]:
        """See `Task`.

        Raises:
            RunError: torch cannot compile the student.
        """
        lesson = self._lesson(batch, number)
        told: dict[str, Tensor] = {}
        self.update.clear()
        # Of a batch that was lowered to the images that there are, too, each part has two: one has no batch statistics.
        parts = min(self.recipe.student.micro_batches, max(1, len(batch.given) // 2))
        for place, (rows, part) in enumerate(lesson.parts(parts)):
            share = (rows.stop - rows.start) / len(batch.given)
            with self._compiling():
                outputs = self._outputs(batch.images[rows], derive(self.seed, "student-forward", number, place))
            losses = self.criterion(outputs, part, epoch)
            with self._compiling():
                self.update.add(losses["loss"] * share)
            if part.teacher is not None:
                losses |= teaching_metrics(outputs.logits.detach(), part.teacher.logits)
            told = {name: told.get(name, 0.0) + share * value.detach() for name, value in losses.items()}
        self.update.settle()
        self.update.step()
        if self.ema is not None:
            self.ema.update(self.model, step=number)
        return told

    def _lesson(self, batch: Batch, number: int) -> Lesson:
        # Controls too say how near they are to the teacher, where that costs no forward pass.
        taught = self.teaching if self.needs - {"labels"} or not self.recipe.student.online else None
        negatives = next((term.negatives for name, term, _ in in_use(self.recipe.student.loss) if name == "crd"), None)
        contrast = None if negatives is None else self.teaching.contrast(negatives, number)
        return lesson_of(batch, taught, self.labels, contrast)

    def _outputs(self, images: Tensor, seed: int) -> Outputs:
        """The student's logits, and what else the loss reads of it."""
        precision = self.recipe.student.precision
        with self.inside as inside:
            logits = training_forward(self.forward, images, seed=seed, precision=precision).float()
            return Outputs(logits, inside.features, inside.maps)

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Around the forward and the backward pass: torch compiles each when it is first run.

        Raises:
            RunError: it cannot.
        """
        try:
            yield
        except Exception as error:
            if not self.recipe.student.compile or not isinstance(error, _compile_failures()):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(
                f"[student] compile: torch cannot compile {self.spec.name}: {reason}",
                cure="set student.compile=false, or install the C++ compiler that torch.compile needs.",
            ) from error

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """See `Task`."""
        return self.criterion.end_epoch()

    def check(self) -> None:
        """See `Task`; the losses show everything."""

    def state_dict(self) -> dict[str, Any]:
        """See `Task`."""
        state: dict[str, Any] = {"update": self.update.state_dict(), "criterion": dict(self.criterion.state_dict())}
        return state if self.ema is None else state | {"ema": dict(self.ema.module.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Task`."""
        self.update.load_state_dict(state["update"])
        self.criterion.load_state_dict(state["criterion"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])


def _compile_failures() -> tuple[type[Exception], ...]:
    """What torch.compile raises. Looked up when something has failed: the modules are private, and load slowly."""
    found: list[type[Exception]] = []
    # Inductor wraps a compiler's error in one of dynamo's as a rule, not always.
    for module, name in (("torch._dynamo.exc", "TorchDynamoException"), ("torch._inductor.exc", "CppCompileError")):
        with suppress(ImportError, AttributeError):
            found.append(getattr(import_module(module), name))
    return tuple(found)
