"""The loop that teacher and student share: epochs, learning rate, evaluation, resume.

A stage is a `Task`; the loop owns when things happen, the task what happens. Everything random is a function of the
seed and of how far training has come, so the saved state is weights, optimiser, labels and two counters, and a resumed
run ends with the same bits as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections import Counter

from torch import Tensor

from distill.data.loader import Batch
from distill.errors import RunError
from distill.store.bins import write_bins
from distill.store.checkpoint import load_weights, save_weights
from distill.training.events import EpochDone, Listener, MetricsFile, StageStarted, StepDone
from distill.training.interrupt import Interrupted, StopRequest, listen_for_stop
from distill.training.resume import restore, save
from distill.training.task import Plan, Progress, Task

REPORT_EVERY = 10  # steps between looks at the losses; each look waits for the device
_JUDGED = ("validation", "test", "epoch")  # metrics that are kept of the best epoch
_IMAGES = "images"  # trained on in this epoch, beside the sums of the losses
SAVE_EVERY = 600.0  # seconds between saves inside a long epoch


def fit(task: Task, plan: Plan, listener: Listener, metrics_file: MetricsFile) -> dict[str, float]:
    """Trains to the end, from the saved state when there is one.

    Returns:
        The last epoch's metrics, those of the best epoch by validation as `best_...`, and `seconds`.

    Raises:
        Interrupted: asked to stop; the state is on disk.
        RunError: the loss is no longer finite.
        StoreError: the saved state is damaged or belongs to another recipe.
    """
    if not plan.epochs:
        return _untrained(task, plan, listener)
    progress = restore(task, plan)
    metrics_file.rewind(plan.stage, progress.epoch, progress.step)
    listener(StageStarted(plan.stage, str(plan.run), plan.epochs, plan.steps, progress.epoch, progress.step))
    with listen_for_stop() as stop:
        while not progress.over(plan):
            _train_epoch(task, plan, progress, listener, stop)
            _end_epoch(task, plan, progress, listener)
            # After the last epoch too: the caller's next stage must not begin. What is left to do here is short.
            if stop:
                raise Interrupted(plan.stage, f"after epoch {progress.epoch} of {plan.epochs}")
    if progress.best_sha256:
        plan.best_weights.check(progress.best_sha256)  # the caller's next stage may go on with them
    best = {f"best_{name}": value for name, value in progress.best.items()}
    return {**progress.last, **best, "seconds": progress.seconds}


def _untrained(task: Task, plan: Plan, listener: Listener) -> dict[str, float]:
    """The scores of the initial weights, a control: much of what distillation gains needs no knowledge."""
    plan.best_weights.forget()
    listener(StageStarted(plan.stage, str(plan.run), 0, plan.steps, 0, 0))
    began = time.monotonic()
    metrics = task.end_epoch(0) | _validation(task, plan) | _test(task, plan) | {"epoch": 0.0}
    if "validation_accuracy" in metrics:
        save_weights(plan.best_weights.path, task.judged.state_dict())
        metrics |= {f"best_{name}": value for name, value in metrics.items() if name.startswith(_JUDGED)}
    return metrics | {"seconds": time.monotonic() - began}


def _validation(task: Task, plan: Plan) -> dict[str, float]:
    """Scores on validation, where there is some."""
    scores = plan.evaluate(task.judged, "validation")
    return scores.named("validation") if scores.count else {}


def _test(task: Task, plan: Plan) -> dict[str, float]:
    """Scores on test; how they come about by confidence is left in the run folder, of the last time."""
    scores = plan.evaluate(task.judged, "test")
    if scores.bins.count and math.isfinite(scores.ece):
        write_bins(plan.run, list(scores.bins.count), list(scores.bins.confidence), list(scores.bins.correct))
    return scores.named("test")


def _test_of_best(task: Task, plan: Plan, sha256: str) -> dict[str, float]:
    """Scores on test of the best epoch's weights, as its own epoch would have had them."""
    if sha256:
        plan.best_weights.check(sha256)
    last = {name: value.clone() for name, value in task.judged.state_dict().items()}
    load_weights(plan.best_weights.path, task.judged)
    try:
        return plan.evaluate(task.judged, "test").named("test")
    finally:
        task.judged.load_state_dict(last)


def _train_epoch(task: Task, plan: Plan, progress: Progress, listener: Listener, stop: StopRequest) -> None:
    task.model.train()
    began = saved = time.monotonic()
    sums: dict[str, Tensor] = {}
    told: Counter[str] = Counter()
    for batch in task.batches(progress.epoch, progress.step):
        plan.schedule.step_update(progress.epoch * plan.steps + progress.step)
        losses = _step(task, plan, progress, batch, stop)
        for name, loss in losses.items():
            sums[name] = sums[name] + loss.double() if name in sums else loss.double()
        told.update(losses.keys())
        progress.step += 1
        progress.sums[_IMAGES] = progress.sums.get(_IMAGES, 0.0) + batch.images.shape[0]
        look = progress.step % REPORT_EVERY == 0 or progress.step == plan.steps
        shown = _look(task, plan, progress, losses) if look else {}
        listener(StepDone(plan.stage, progress.epoch, progress.step, batch.images.shape[0], shown))
        now = time.monotonic()
        if progress.step < plan.steps and (stop or now - saved > SAVE_EVERY):
            progress.epoch_seconds += now - began
            began = saved = now
            _add(progress, sums, told)
            save(task, plan, progress)
            if stop:
                raise Interrupted(plan.stage, f"in epoch {progress.epoch + 1} after step {progress.step}")
    progress.epoch_seconds += time.monotonic() - began
    _add(progress, sums, told)


def _step(task: Task, plan: Plan, progress: Progress, batch: Batch, stop: StopRequest) -> dict[str, Tensor]:
    """One step of the task.

    Raises:
        Interrupted: it failed after somebody asked to stop: Ctrl-C goes to the compilers that torch has started, too.
            Half a step is not saved.
    """
    try:
        return task.step(batch, progress.epoch, progress.epoch * plan.steps + progress.step)
    except RunError as error:
        if not stop:
            raise
        where = f"within step {progress.step + 1} of epoch {progress.epoch + 1}, back where it was last saved"
        raise Interrupted(plan.stage, where) from error


def _look(task: Task, plan: Plan, progress: Progress, losses: dict[str, Tensor]) -> dict[str, float]:
    """The losses as numbers; stops a run that has gone astray."""
    task.check()
    shown = {name: float(loss) for name, loss in losses.items()}
    _refuse_astray(plan, progress, shown)
    return shown


def _refuse_astray(plan: Plan, progress: Progress, values: dict[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise RunError(
                f"{plan.run}: the {plan.stage}'s {name} is {value} in epoch {progress.epoch + 1}, step {progress.step}",
                cure=f"lower {plan.stage}.optimizer.lr or add {plan.stage}.optimizer.warmup_epochs.",
            )


def _add(progress: Progress, sums: dict[str, Tensor], told: Counter[str]) -> None:
    for name, total in sums.items():
        progress.sums[name] = progress.sums.get(name, 0.0) + float(total)
        progress.told[name] = progress.told.get(name, 0) + told[name]
    sums.clear()
    told.clear()


def _end_epoch(task: Task, plan: Plan, progress: Progress, listener: Listener) -> None:
    began = time.monotonic()
    own = task.end_epoch(progress.epoch)
    scores = _validation(task, plan)
    better = bool(scores) and _better(scores, progress.best)
    ends = _ends(plan, progress, better=better)
    if plan.test_every_epoch or ends:
        scores |= _test(task, plan)
    if ends and not better and progress.best and not any(name.startswith("test") for name in progress.best):
        progress.best |= _test_of_best(task, plan, progress.best_sha256)
    seconds = progress.epoch_seconds + time.monotonic() - began
    images = progress.sums.pop(_IMAGES, 0.0)
    metrics = {name: total / progress.told[name] for name, total in progress.sums.items()}
    metrics |= own | {"lr": float(task.optimizer.param_groups[0]["lr"]), "epoch": float(progress.epoch + 1)}
    metrics |= scores
    _refuse_astray(plan, progress, metrics)  # the last step's weights, too, which no loss has seen
    if better:
        progress.best = {name: value for name, value in metrics.items() if name.startswith(_JUDGED)}
        progress.best_sha256 = plan.best_weights.write(task.judged.state_dict())
    speed = {"images_per_second": images / max(progress.epoch_seconds, 1e-9)}  # no part of the result
    listener(EpochDone(plan.stage, progress.epoch, plan.epochs, seconds, metrics | speed))
    progress.last, progress.sums, progress.told = metrics, {}, {}
    progress.seconds, progress.epoch_seconds = progress.seconds + seconds, 0.0
    progress.epoch, progress.step = progress.epoch + 1, 0
    save(task, plan, progress)
    plan.best_weights.keep()


def _ends(plan: Plan, progress: Progress, *, better: bool) -> bool:
    """Whether training is over with this epoch, which has just been better than all before or not."""
    after = Progress(progress.epoch + 1, best={"epoch": progress.epoch + 1.0} if better else progress.best)
    return after.over(plan)


def _better(metrics: dict[str, float], best: dict[str, float]) -> bool:
    """By validation accuracy, then by validation NLL; the earlier epoch stays when both tie."""
    if not best:
        return True
    here, there = ((m["validation_accuracy"], -m["validation_nll"]) for m in (metrics, best))
    return here > there
