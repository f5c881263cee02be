"""Half precision that a device only emulates is told before hours are spent on it, and never float32."""

from __future__ import annotations

import pytest
import torch

from distill.recipe.schema import TeacherRecipe
from distill.training import device as module
from distill.training.device import emulated_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def stage(precision: str) -> TeacherRecipe:
    return TeacherRecipe.model_validate({"precision": precision})


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_emulated_precision_names_the_field_and_a_cure(monkeypatch, precision: str) -> None:
    monkeypatch.setattr(module, "_has_arithmetic", lambda device, precision: False)
    note = emulated_precision(CPU, stage(precision), "teacher")
    assert note is not None
    assert note.startswith(f"[teacher] precision: this processor has no {precision} arithmetic")
    assert note.endswith('set teacher.precision = "float32"')
    assert "this GPU" in (emulated_precision(GPU, stage(precision), "student") or "")
    assert emulated_precision(CPU, stage("float32"), "teacher") is None


def test_torch_is_asked_what_the_device_has(monkeypatch) -> None:
    for precision, asked in (("bfloat16", "_is_mkldnn_bf16_supported"), ("float16", "_is_mkldnn_fp16_supported")):
        for found in (False, True):
            monkeypatch.setattr(torch.ops.mkldnn, asked, lambda found=found: found)
            assert (emulated_precision(CPU, stage(precision), "teacher") is None) == found
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert emulated_precision(GPU, stage("bfloat16"), "teacher") is not None
    assert emulated_precision(GPU, stage("float16"), "teacher") is None
