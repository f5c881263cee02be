import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.loader import ImageData, open_data, ordered_batches, steps_per_epoch, training_batches
from distill.data.memory import MemorySource
from distill.data.noise import Labels
from distill.data.split import Splits
from distill.data.views import make_views
from distill.errors import DataError
from distill.recipe.schema import Recipe, ViewsRecipe

NO_VIEWS = ViewsRecipe()


def recipe(**fields: object) -> Recipe:
    return Recipe.model_validate({"name": "test", **fields})


def small(images: torch.Tensor | None = None, train: int = 20) -> ImageData:
    """30 images; pixel (0, 0) of image i is i."""
    if images is None:
        images = torch.randint(0, 256, (30, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images[:, :, 0, 0] = torch.arange(30, dtype=torch.uint8)[:, None]
    targets = torch.arange(30) % 3
    source = MemorySource("small", ("a", "b", "c"), images, targets)
    rest = torch.arange(train, 30)
    splits = Splits(torch.arange(train), rest[:3], rest[3:5], rest[5:])
    channels = images.shape[1]
    return ImageData(source, splits, Labels((targets + 1) % 3, targets), (0.25,) * channels, (0.5,) * channels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(12):
        path = tmp_path / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    return tmp_path


def folder_recipe(root: Path) -> Recipe:
    return recipe(data={"source": "folder", "root": str(root), "image_size": 8, "test": 2, "validation": 2})


def test_drawings_in_the_alpha_channel_are_no_black_images(tmp_path: Path) -> None:
    """Black on a transparent ground is black all over once transparency is dropped."""
    for index in range(12):
        drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        drawing.paste((0, 0, 0, 255), (index % 4, 0, 4 + index % 4, 4))
        path = tmp_path / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        drawing.save(path)
    with pytest.raises(DataError, match="are all of one and the same colour") as found:
        open_data(folder_recipe(tmp_path))
    assert "transparency" in str(found.value.cure)


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_open_data_on_digits() -> None:
    data = open_data(recipe(data={"noise": {"kind": "symmetric", "rate": 0.4}}))
    assert data.shape == (1, 8, 8)
    assert data.num_classes == 10
    pixels = data.source.fetch(data.splits.train).double() / 255
    assert data.mean == pytest.approx([pixels.mean().item()], abs=1e-12)
    assert data.std == pytest.approx([pixels.std(correction=0).item()], abs=1e-12)
    assert 0.3 < data.labels.is_noisy[data.splits.train].float().mean() < 0.4
    assert not data.labels.is_noisy[data.splits.test].any()
    again = open_data(recipe(data={"noise": {"kind": "symmetric", "rate": 0.4}}))
    assert again.mean == data.mean
    assert torch.equal(again.labels.given, data.labels.given)


def test_statistics_do_not_see_other_parts(folder: Path) -> None:
    data = open_data(folder_recipe(folder))
    red = data.source.fetch(data.splits.train)[:, 0].double() / 255
    assert data.mean == pytest.approx([red.mean().item(), 0, 0])
    assert data.std[0] == pytest.approx(red.std(correction=0).item())


def test_a_constant_channel_is_not_divided_by_zero(folder: Path) -> None:
    data = open_data(folder_recipe(folder))
    assert data.std[1:] == (1e-3, 1e-3)
    for batch in ordered_batches(data, data.splits.test, batch_size=2, device="cpu"):
        assert batch.images.isfinite().all()
        assert (batch.images[:, 1:] == 0).all()


def test_padding_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(DataError, match="crop_padding = 8"):
        open_data(recipe(views={"crop_padding": 8}))
    open_data(recipe(views={"crop_padding": 7}))


def batches(data: ImageData, **changes: object) -> list:
    options = {"batch_size": 6, "epoch": 0, "seed": 0, "views": NO_VIEWS, "numbered": False, "device": "cpu"}
    return list(training_batches(data, data.splits.train, **{**options, **changes}))  # type: ignore[arg-type]


def test_a_batch_holds_what_it_says() -> None:
    data = small()
    made = batches(data)
    assert len(made) == steps_per_epoch(20, 6) == 3
    for batch in made:
        assert batch.images.shape == (6, 2, 4, 4)
        assert batch.images.dtype == torch.float32
        assert batch.indices.dtype == batch.given.dtype == batch.view.dtype == torch.int64
        assert torch.equal(batch.rows, batch.indices)
        assert torch.equal(batch.given, data.labels.given[batch.indices])
        expected = (data.source.fetch(batch.indices).double() / 255 - 0.25) / 0.5
        assert torch.allclose(batch.images.double(), expected, atol=1e-6)
    seen = torch.cat([batch.indices for batch in made])
    assert len(seen.unique()) == 18


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), epoch=st.integers(0, 50), start=st.integers(0, 6), numbered=st.booleans())
def test_starting_later_gives_the_same_batches(seed: int, epoch: int, start: int, numbered: bool) -> None:
    data = small()
    views = ViewsRecipe(crop_padding=1, flip=True, count="orbit")
    options = {"seed": seed, "epoch": epoch, "batch_size": 4, "views": views, "numbered": numbered}
    whole, later = batches(data, **options), batches(data, **options, start=start)
    assert len(later) == max(0, 5 - start)
    for a, b in zip(whole[start:], later, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.view, b.view)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(torch.cat([batch.indices for batch in batches(small(), seed=seed, epoch=epoch)]).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_a_large_batch_size_is_lowered() -> None:
    made = batches(small(), batch_size=64)
    assert [len(batch.indices) for batch in made] == [20]
    assert steps_per_epoch(20, 64) == 1
    for rows, size in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="rows in batches"):
            steps_per_epoch(rows, size)
    with pytest.raises(ValueError, match="start"):
        batches(small(), start=-1)


def test_numbered_views_are_the_pixels_that_export_saw() -> None:
    data = small()
    views = ViewsRecipe(crop_padding=1, flip=True, count=3)
    rows = data.splits.train
    exported = {
        k: torch.cat(
            [b.images for b in ordered_batches(data, rows, batch_size=7, device="cpu", view=k, views=views, seed=5)]
        )
        for k in range(3)
    }
    position = {int(row): number for number, row in enumerate(rows)}
    for epoch in range(4):
        for batch in batches(data, views=views, numbered=True, epoch=epoch, seed=77, view_seed=5):
            for image, row, k in zip(batch.images, batch.rows.tolist(), batch.view.tolist(), strict=True):
                assert torch.equal(image, exported[k][position[row]])


def test_teacher_views_change_with_the_epoch() -> None:
    data = small()
    views = ViewsRecipe(crop_padding=1, flip=True)
    (batch,) = batches(data, batch_size=20, epoch=3, views=views)
    assert (batch.view == 3).all()
    pixels = make_views(data.source.fetch(batch.rows), batch.rows, batch.view, views, 0, numbered=False)
    assert torch.allclose(batch.images, (pixels / 255 - 0.25) / 0.5, atol=1e-6)


def test_ordered_batches_give_all_rows_in_order() -> None:
    data = small()
    rows = torch.tensor([29, 3, 3, 0, 17])
    made = list(ordered_batches(data, rows, batch_size=2, device="cpu"))
    assert [len(batch.indices) for batch in made] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.indices for batch in made]), rows)
    first = (torch.cat([batch.images for batch in made])[:, 0, 0, 0] * 0.5 + 0.25) * 255
    assert first.round().tolist() == rows.tolist()
    assert all((batch.view == -1).all() for batch in made)
    assert list(ordered_batches(data, rows[:0], batch_size=2, device="cpu")) == []
    with pytest.raises(ValueError, match="views"):
        next(ordered_batches(data, rows, batch_size=2, device="cpu", view=0))


def test_decoded_batches_equal_decoded_images(folder: Path) -> None:
    data = open_data(folder_recipe(folder))
    for made in (
        batches(data, batch_size=3),
        list(ordered_batches(data, torch.arange(12), batch_size=5, device="cpu")),
    ):
        for batch in made:
            pixels = data.source.fetch(batch.rows).double() / 255
            red = (pixels[:, 0] - data.mean[0]) / data.std[0]
            assert torch.allclose(batch.images[:, 0].double(), red, atol=1e-4)
    assert not prefetchers()


def test_an_error_in_the_thread_reaches_the_caller(folder: Path) -> None:
    data = open_data(folder_recipe(folder))
    bad = data.source.files[int(data.splits.test[0])]  # not one of those that the statistics saw
    (folder / bad).write_bytes(b"")
    with pytest.raises(DataError, match=bad):
        list(ordered_batches(data, torch.arange(12), batch_size=2, device="cpu"))
    assert not prefetchers()


def test_leaving_early_leaves_no_thread(folder: Path) -> None:
    data = open_data(folder_recipe(folder))
    iterator = ordered_batches(data, torch.arange(12), batch_size=2, device="cpu")
    next(iterator)
    assert prefetchers()
    del iterator
    assert not prefetchers()


@pytest.mark.gpu
def test_batches_on_a_gpu_are_the_batches_on_the_cpu() -> None:
    data = small()
    views = ViewsRecipe(crop_padding=2, flip=True, count="orbit")
    for numbered in (True, False):
        options = {"views": views, "numbered": numbered, "batch_size": 4, "epoch": 2}
        for a, b in zip(batches(data, **options), batches(data, **options, device="cuda"), strict=True):
            assert b.images.device.type == b.indices.device.type == b.given.device.type == "cuda"
            assert b.rows.device.type == b.view.device.type == "cpu"
            assert torch.equal(a.indices, b.indices.cpu())
            assert torch.equal(a.given, b.given.cpu())
            assert torch.allclose(a.images, b.images.cpu(), atol=1e-6)
