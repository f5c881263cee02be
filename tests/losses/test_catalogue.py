"""No public function of `distill.losses` without a case, and the tables that the documentation quotes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import torch

import distill.losses
from tests.losses import oracles
from tests.losses.catalogue import CASES, ELSEWHERE, OTHERS

COVERED = {case.covers for case in CASES.values()}


def public() -> set[str]:
    """module.name of each public function and class that is defined in the package's modules."""
    names = set()
    for module in pkgutil.iter_modules(distill.losses.__path__):
        if not module.name.startswith(ELSEWHERE):
            members = vars(importlib.import_module(f"distill.losses.{module.name}"))
            names |= {
                f"{module.name}.{name}"
                for name, member in members.items()
                if (inspect.isfunction(member) or inspect.isclass(member))
                and member.__module__ == f"distill.losses.{module.name}"
                and not name.startswith("_")
            }
    return names


def test_each_loss_has_a_case() -> None:
    missing, gone = public() - COVERED - OTHERS.keys(), (COVERED | OTHERS.keys()) - public()
    assert not missing, f"no case in tests/losses/catalogue.py: {sorted(missing)}"
    assert not gone, f"in tests/losses/catalogue.py but not in distill.losses: {sorted(gone)}"


def test_the_oracles_know_nothing_of_the_package() -> None:
    assert not [name for name in vars(oracles) if name in ("torch", "distill")]
    assert "distill" not in inspect.getsource(oracles)


def test_which_losses_depend_on_the_batch() -> None:
    """One more is a change of what users are told: docstrings, README."""
    assert {case.covers for case in CASES.values() if case.company} == {
        "relational.dist",
        "relational.mlkd",
        "soft.OnlineLabels",
    }


def test_docstrings_say_whether_the_batch_matters() -> None:
    for name in COVERED - {"logit.standardised", "learned_temperature.LearnedTemperature", "soft.cross_entropy"}:
        module, function = name.split(".")
        doc = " ".join((getattr(importlib.import_module(f"distill.losses.{module}"), function).__doc__ or "").split())
        if name != "soft.soft_cross_entropy":
            assert "depends on the batch" in doc or "depend on its batch" in doc or "not depend on it" in doc, name


def test_no_loss_is_left_to_the_batch_s_mean() -> None:
    """One value per image also where there is no image."""
    for name, case in CASES.items():
        if not case.company:
            empty = torch.zeros(0, 3)
            assert case.loss(empty, empty, torch.zeros(0, dtype=torch.int64)).shape == (0,), name
