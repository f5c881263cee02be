"""The best epoch's weights on disk: always those that the resume state speaks of, whenever a process is killed.

They are written beside the state first, the state that names their digest is saved, and only then do they take their
place. So a file in that place is what the state says, or somebody else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import mendable, sha256_of, writable_folder
from distill.store.checkpoint import save_weights


class BestWeights:
    """best.safetensors of a stage.

    Args:
        path: where they lie.
        state: the stage's resume state.
    """

    def __init__(self, path: Path, state: Path) -> None:
        self.path, self.state = path, state
        self.coming = state.with_name(f"{state.stem}-{path.name}")

    def write(self, weights: Mapping[str, Tensor]) -> str:
        """Writes new ones, which wait for `keep`; their sha256.

        Raises:
            StoreError: they cannot be written.
        """
        writable_folder(self.coming.parent)
        return save_weights(self.coming, weights)

    def keep(self) -> None:
        """Puts those that wait, if there are any, in their place: the state that names them is on disk.

        Raises:
            StoreError: they cannot be moved.
        """
        try:
            with suppress(FileNotFoundError):
                self.coming.replace(self.path)
        except OSError as error:
            raise mendable(self.path, "written", error) from error

    def forget(self) -> None:
        """Removes those of an earlier training, those that wait too: training begins, or has had no best epoch yet.

        Whatever lies there would be recorded as what this training wrote.

        Raises:
            StoreError: they cannot be removed.
        """
        for path in (self.path, self.coming):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise mendable(path, "removed", error) from error

    def restore(self, sha256: str) -> None:
        """After a kill: keeps what the state names, forgets what it does not know yet.

        Args:
            sha256: of those that the state names; "": it names none.

        Raises:
            StoreError: others are in their place, or none.
        """
        if self.coming.is_file():
            if sha256 and sha256_of(self.coming) == sha256:
                self.keep()
            else:
                self.coming.unlink(missing_ok=True)
        if sha256:
            self.check(sha256)

    def check(self, sha256: str) -> None:
        """Refuses others in their place.

        Raises:
            StoreError: others are there, or none.
        """
        there = self.path.is_file()
        if there and sha256_of(self.path) == sha256:
            return
        found = "these are not the weights that training wrote there" if there else "missing, though training wrote it"
        raise StoreError(
            f"{self.path}: {found}", cure=f"restore the file; or delete {self.state} to start this stage again."
        )
