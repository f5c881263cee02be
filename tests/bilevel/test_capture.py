"""No part of a step makes the host wait for the device, so that a step can be captured in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill.bilevel import hygiene
from distill.bilevel.estimators import APPROXIMATIONS, ESTIMATORS
from distill.bilevel.label_step import LabelStep
from distill.bilevel.step import HeldOutStep, NextBatchStep, PlainStep, Step, Training
from distill.data.loader import Batch
from distill.errors import BilevelError
from distill.labels.learned import Learned
from distill.labels.tables import class_table, instance_table
from tests.bilevel import cases
from tests.nosync import no_host_sync

N, SIZE = 24, 8
CPU = torch.device("cpu")


def batch_of(number: int, device: torch.device) -> Batch:
    images, given, _ = cases.batch(number, SIZE)
    rows = torch.arange(SIZE) + number * SIZE % N
    return Batch(*(t.to(device) for t in (rows, images.float(), given, rows, torch.zeros_like(rows))))


def build(
    meta: str, kind: str, estimator: str, device: torch.device, clip: float, mean: float = 0.0
) -> tuple[Training, Step]:
    torch.manual_seed(0)
    model = cases.NETWORKS["conv-batchnorm"]().to(device).train()
    given = torch.cat([batch_of(number, CPU).given for number in range(N // SIZE)])
    if kind == "class":
        table = class_table(cases.C, 0.7, device)
    else:
        table = instance_table(torch.arange(N), given, cases.C, 0.7, device)
    rule = Learned(table, step=1.0, optimizer="adam")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    training = Training(model, optimizer, rule, 5, clip_norm=clip)
    label_step, meta_batch = LabelStep(rule, ESTIMATORS[estimator], mean), batch_of(2, device)
    steps: dict[str, Step] = {
        "plain": PlainStep(training),
        "held-out": HeldOutStep(training, label_step, lambda number: meta_batch),
        "next-batch": NextBatchStep(training, label_step),
    }
    return training, steps[meta]


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name not in APPROXIMATIONS])
@pytest.mark.parametrize(("meta", "kind"), [("plain", "class"), ("held-out", "class"), ("next-batch", "instance")])
@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_the_host_never_waits(meta: str, kind: str, estimator: str, clip: float) -> None:
    _, step = build(meta, kind, estimator, CPU, clip, mean=0.5)
    batches = [batch_of(number, CPU) for number in range(3)]
    step(batches[0], 0, learn=True)
    with no_host_sync():
        for number in (1, 2):
            step(batches[number], number, learn=True)
    step.check()


def test_masks_are_refused_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for model in (cases.NETWORKS["dropout"](), cases.NETWORKS["vit"]()):
        with pytest.raises(BilevelError, match="CUDA graph"), hygiene._training_pass(model, _CUDA, 0, "float32"):
            pass
    with hygiene._training_pass(nn.Sequential(nn.Dropout(0.0)), _CUDA, 0, "float32"):
        pass


_CUDA = torch.device("cuda:0")


@pytest.mark.gpu
@pytest.mark.parametrize(("meta", "kind"), [("held-out", "class"), ("next-batch", "instance")])
@pytest.mark.parametrize("estimator", ["one-sided", "forward-mode"])
def test_captured_steps_are_the_eager_ones(meta: str, kind: str, estimator: str) -> None:
    """Two steps in one graph, the second of which judges the first's labels where the next batch is the judge.

    No running mean of the meta gradient: its bias correction counts on the host, and a graph would keep one count.
    """
    results = []
    for captured in (False, True):
        training, step = build(meta, kind, estimator, _CUDA, clip=0.3)
        batches = [batch_of(number, _CUDA) for number in range(2)]

        def two_steps(step: Step = step, batches: list[Batch] = batches) -> None:
            if isinstance(step, NextBatchStep):
                step.pending = None
            step(batches[0], 0, learn=True)
            step(batches[1], 1, learn=isinstance(step, HeldOutStep))

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                two_steps()
        torch.cuda.current_stream().wait_stream(side)
        play = two_steps
        if captured:
            graph = torch.cuda.CUDAGraph()
            training.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                two_steps()
            play = graph.replay
        for _ in range(3):
            play()
        torch.cuda.synchronize()
        step.check()
        results.append(_everything(training))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def _everything(training: Training) -> dict[str, Tensor]:
    assert isinstance(training.rule, Learned)
    return {**training.model.state_dict(), "phi": training.rule.table.phi}
