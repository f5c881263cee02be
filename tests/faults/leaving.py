"""Workers that train nothing: the first of them is asked to stop in its first cell, and takes its time to end."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

from distill.stages.cells import Outcome


def serve(pipe: Connection) -> None:
    """As `distill.stages.workers.serve`; the comparison's folder is where they agree on who is the first."""
    while True:
        cell, folder, *_ = pipe.recv()
        try:
            (folder / "asked").touch(exist_ok=False)
        except FileExistsError:
            pipe.send(Outcome(cell.number, "finished"))
            continue
        pipe.send(Outcome(cell.number, "interrupted"))
        time.sleep(1.0)
        return


def die(pipe: Connection) -> None:
    """As `distill.stages.workers.serve`: ends in its first cell."""
    pipe.recv()
    os._exit(3)
