"""Every kernel compiles for real chips, on a machine without one, and fits into their registers.

`pytest -s tests/kernels/test_compile.py` prints what ptxas says of each.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 replaces the compiler", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from distill.kernels import row_gradient, row_update, soft_ce
from distill.kernels.launch import block_of, compile_options

KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "soft_ce": (soft_ce.soft_ce_kernel, {"WRITE_GRADIENT": True, "WRITE_LABELS": True}),
    "soft_ce, loss only": (soft_ce.soft_ce_kernel, {"WRITE_GRADIENT": False, "WRITE_LABELS": False}),
    "row_gradient": (row_gradient.row_gradient_kernel, {}),
    "sgd": (row_update.sgd_kernel, {"MOMENTUM": 0.9, "MEAN": True}),
    "sgd, no momentum": (row_update.sgd_kernel, {"MOMENTUM": 0.0, "MEAN": False}),
    "adam": (
        row_update.adam_kernel,
        {"BETA1": 0.9, "BETA2": 0.999, "LOG_BETA1": -0.1, "LOG_BETA2": -0.001, "EPS": 1e-8, "MEAN": False},
    ),
}
PLAIN = ("soft_ce", "row_gradient", "sgd", "adam")
FORMS = [
    *((name, dtype, c) for name in PLAIN for dtype, c in (("fp32", 1), ("fp32", 10), ("bf16", 1000), ("fp32", 5000))),
    *((name, "fp16", 100) for name in KERNELS if name not in PLAIN),
]
# Arguments of one type; all others (logits, labels, tables) vary.
FIXED = {
    **dict.fromkeys(("rows_ptr", "ranked_ptr", "order_ptr"), "*i64"),
    **dict.fromkeys(("loss_ptr", "gradient_ptr", "derivative_ptr", "scale_ptr", "step_ptr"), "*fp32"),
    **dict.fromkeys(("R", "B", "C"), "i32"),
    "touched_ptr": "*u8",
    "steps_ptr": "*i32",
}


def source(name: str, dtype: str, classes: int, block: int) -> ASTSource:
    """A kernel as a launch on tensors from torch's allocator, which aligns them, would specialise it."""
    kernel, constants = KERNELS[name]
    constants = {**constants, "BLOCK": block} | ({"C": 1} if classes == 1 else {})  # Triton makes every 1 a constant
    types = {argument: FIXED.get(argument, f"*{dtype}") for argument in kernel.arg_names}
    signature = types | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(kernel.arg_names) if signature[a].startswith("*")}
    return ASTSource(kernel, signature, constexprs=constants, attrs=aligned)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("name", "dtype", "classes"), FORMS)
def test_compiles_without_spills(
    name: str,
    dtype: str,
    classes: int,
    arch: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # empty, so that ptxas does run
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    block = block_of(classes)
    options = compile_options(block)
    capsys.readouterr()
    compiled = triton.compile(source(name, dtype, classes, block), target=GPUTarget("cuda", arch, 32), options=options)
    report = capsys.readouterr().out
    assert f".target sm_{arch}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    used = re.findall(r"Used (\d+) registers", report)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    form = f"{dtype} C {classes}, block {block}, {options['num_warps']} warps"
    print(f"sm_{arch} {name} {form}: {used} registers; frame, spill stores, spill loads {frames}")
    assert used, f"ptxas reported no registers:\n{report}"
    assert set(frames) == {("0", "0", "0")}, report
