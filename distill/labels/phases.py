"""Where a training stands: labels move after its first epochs, and stay as they are in its last or once settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.errors import StoreError


class Settled:
    """Notices that labels have settled: for some epochs no more of them prefer another class than the given one.

    While a network finds wrong labels the share that has moved grows; once it learns the others by heart its answers
    repeat what was given, and labels that follow them turn back. Nothing is settled before the first label has moved.

    Args:
        patience: so many epochs without a larger share; 0: labels never count as settled.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.most = 0.0  # the largest share of labels that had moved
        self.waited = 0  # epochs since

    def __bool__(self) -> bool:
        return 0 < self.patience <= self.waited

    def end_epoch(self, moved: float) -> bool:
        """An epoch is over, after which this share of the labels has moved. Returns whether they settled by it."""
        if self or not self.patience:
            return False
        self.waited = 0 if moved > self.most or moved == 0 == self.most else self.waited + 1
        self.most = max(moved, self.most)
        return bool(self)

    def state_dict(self) -> dict[str, float]:
        """Everything that a resumed run needs."""
        return {"most": self.most, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """The inverse of `state_dict`."""
        self.most, self.waited = float(state["most"]), int(state["waited"])


class Phases:
    """Counts the epochs for a rule that is told of their ends only, and may be stopped within one.

    Args:
        epochs: of the training.
        warmup_epochs: the first ones, in which labels do not move; they come first where both are asked for.
        freeze_epochs: the last ones, in which labels stay as they are.
    """

    def __init__(self, epochs: int, *, warmup_epochs: int = 0, freeze_epochs: int = 0) -> None:
        self.warmup_epochs = warmup_epochs
        self.moving_until = epochs - freeze_epochs  # the last epoch, counted from 1, that labels may move in
        self.ended = 0  # epochs that are over

    @property
    def warming(self) -> bool:
        """Whether the epoch of the moment is one of the first."""
        return self.ended < self.warmup_epochs

    @property
    def frozen(self) -> bool:
        """Whether the epoch of the moment is one of the last."""
        return not self.warming and self.ended >= self.moving_until

    def end_epoch(self, epoch: int) -> None:
        """An epoch, counted from 1, is over."""
        self.ended = epoch

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"ended": self.ended}

    def load_state_dict(self, state: object) -> None:
        """The inverse of `state_dict`.

        Raises:
            StoreError: the state belongs to a rule that counts no epochs.
        """
        ended = state.get("ended") if isinstance(state, dict) else None
        if not isinstance(ended, int) or isinstance(ended, bool) or ended < 0:
            raise StoreError(
                f"saved labels: the epochs that are over are {ended!r}, expected a number",
                cure="go on with the recipe that they were saved with, or delete the resume state to start again.",
            )
        self.ended = ended
