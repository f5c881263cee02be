"""An image folder read by `distill.data.folder` and by torch's DataLoader over torchvision's ImageFolder.

The images are made here: photo-like JPEGs and small PNGs. Both sides read the same files in the same order into the
same batches. ImageFolder is given (a) torchvision's own Resize and CenterCrop, whose pixels differ from ours by
rounding, and (b) our decoder, so that only the machinery differs and the pixels are equal. Its workers are started
before the clock is (persistent_workers). The rounds are interleaved, each side in turn; the ratio is the median of the
rounds' ratios. `kept` is our second epoch on a folder that fits in memory, which decodes nothing.

Run: OMP_NUM_THREADS=1 python benchmarks/folder.py [--jpegs 200] [--pngs 2000] [--rounds 5] [--only PNG]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from distill.data.decode import decode, read_file
from distill.data.folder import FolderSource, _Kept, open_folder

BATCH = 64


def photo(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """Coloured noise whose amplitude falls with frequency, as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    channels = []
    for _ in range(3):
        spectrum = np.fft.rfft2(generator.standard_normal((height, width))) / frequency
        spectrum[0, 0] = 0
        field = np.fft.irfft2(spectrum, s=(height, width))
        channels.append(128 + 50 * field / field.std())
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def make_folder(root: Path, count: int, side: tuple[int, int], suffix: str) -> Path:
    """`count` images of two classes; a few different pictures, turned and mirrored."""
    generator = np.random.default_rng(0)
    pictures = [photo(generator, *side) for _ in range(16)]
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:05}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = pictures[number % 16]
        picture = picture.transpose(Image.Transpose(number // 16 % 2))
        picture.save(path, **({"quality": 90} if suffix == ".jpg" else {}))
    return root


def our_decoder(path: str, size: int) -> Tensor:
    """What ImageFolder is given for the same pixels as ours."""
    return torch.from_numpy(decode(read_file(path), size).transpose(2, 0, 1).copy())


def peer(root: Path, size: int, workers: int, *, ours: bool) -> Callable[[], Iterable[Tensor]]:
    """Epochs of torch's DataLoader, its workers running."""
    if ours:
        folder = ImageFolder(str(root), loader=partial(our_decoder, size=size))
    else:
        bicubic = v2.InterpolationMode.BICUBIC
        steps = [v2.Resize(size, interpolation=bicubic, antialias=True), v2.CenterCrop(size), v2.PILToTensor()]
        folder = ImageFolder(str(root), transform=v2.Compose(steps))
    loader = DataLoader(folder, BATCH, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (images for images, _ in loader)


def own(source: FolderSource) -> Callable[[], Iterable[Tensor]]:
    """Epochs of ours."""
    return lambda: source.stream(torch.split(torch.arange(len(source.files)), BATCH))


def seconds(epoch: Callable[[], Iterable[Tensor]]) -> float:
    """Of one epoch."""
    start = time.perf_counter()
    for _ in epoch():
        pass
    return time.perf_counter() - start


def compare(name: str, root: Path, size: int, rounds: int) -> None:
    """Prints a table for one folder and one size."""
    source = open_folder(root, size)
    source._kept = _Kept(None)
    kept = open_folder(root, size)
    sides: dict[str, Callable[[], Iterable[Tensor]]] = {"distill": own(source), "distill, kept": own(kept)}
    for workers in (0, 1, 2):
        for ours in (False, True):
            decoder = "our decoder" if ours else "torchvision"
            sides[f"DataLoader {workers}, {decoder}"] = peer(root, size, workers, ours=ours)
    ours = torch.cat(list(sides["distill"]()))
    for side, epoch in sides.items():  # also starts the workers, and fills what is kept
        difference = (torch.cat(list(epoch())).int() - ours.int()).abs()
        print(f"  {side}: largest difference {int(difference.max())}, mean {float(difference.double().mean()):.3f}")
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, epoch in sides.items():
            times[side].append(seconds(epoch))
    print(f"\n{name}, {len(source.files)} files to {size}x{size}, batches of {BATCH}, {source.workers} threads")
    print(f"{'':28}  images/s  distill is faster by")
    for side, taken in times.items():
        ratio = statistics.median(t / own for t, own in zip(taken, times["distill"], strict=True))
        print(f"{side:28}  {len(source.files) / statistics.median(taken):8,.0f}  {ratio:5.2f}")


def main() -> None:
    """Makes the folders, measures, removes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jpegs", type=int, default=200)
    parser.add_argument("--pngs", type=int, default=2000)
    parser.add_argument("--only", default="", help="JPEG or PNG; by default both")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    print(f"{versions}, {len(os.sched_getaffinity(0))} cores")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        jpegs = make_folder(Path(temporary) / "jpegs", arguments.jpegs, (500, 400), ".jpg")
        pngs = make_folder(Path(temporary) / "pngs", arguments.pngs, (32, 32), ".png")
        cases = (("JPEG 500x400", jpegs, 224), ("JPEG 500x400", jpegs, 64), ("PNG 32x32", pngs, 32))
        for name, root, size in cases:
            if name.startswith(arguments.only):
                compare(name, root, size, arguments.rounds)


if __name__ == "__main__":
    main()
