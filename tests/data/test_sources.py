from pathlib import Path

import pytest

from distill.data import idx, sources
from distill.data.sources import list_sources, open_source
from distill.errors import DataError
from distill.recipe.schema import DataRecipe


def test_digits_is_the_default() -> None:
    source = open_source(DataRecipe())
    assert source.name == "digits"
    assert not source.decodes


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_a_missing_data_set_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    recipe = DataRecipe.model_validate({"source": name, "root": str(tmp_path)})
    with pytest.raises(DataError, match=f"{name}: not found in") as caught:
        open_source(recipe)
    assert str(tmp_path) in caught.value.message
    assert "data.root" in caught.value.cure
    assert "data.download" in caught.value.cure
    assert ("apt-get install dataset-fashion-mnist" in caught.value.cure) == (name == "fashion-mnist")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_download_is_torchvisions_and_its_failure_is_explained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def offline(url: str, root: str, filename: str, md5: str) -> None:
        asked.append(filename)
        assert url.startswith("http")
        assert len(md5) == 32
        raise OSError("no network")

    monkeypatch.setattr(sources, "download_and_extract_archive", offline)
    recipe = DataRecipe.model_validate({"source": name, "root": str(tmp_path), "download": True})
    with pytest.raises(DataError, match="no network"):
        open_source(recipe)
    assert len(asked) == 1


def test_nothing_is_downloaded_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(sources, "download_and_extract_archive", forbidden)
    with pytest.raises(DataError):
        open_source(DataRecipe(source="cifar10", root=str(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "digits", "root": "x"}, "data.root"),
        ({"source": "digits", "image_size": 16}, "data.image_size"),
        ({"source": "fashion-mnist", "image_size": 16}, "data.image_size"),
        ({"source": "folder"}, "data.root is empty"),
        ({"source": "folder", "root": "/no/such/folder"}, "/no/such/folder"),
        ({"source": "folder", "root": "~nosuchuser/x"}, "data.root: found '~nosuchuser/x'"),
        ({"source": "cifar10", "root": "~nosuchuser/x"}, "data.root: found '~nosuchuser/x'"),
    ],
)
def test_fields_without_a_use_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(DataRecipe.model_validate(fields))


def test_list_names_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "DEBIAN_FOLDER", tmp_path / "absent")
    rows = dict(list_sources())
    assert list(rows) == ["digits", "fashion-mnist", "cifar10", "cifar100", "folder"]
    assert "not found" in rows["fashion-mnist"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-images-idx3-ubyte").write_bytes(b"")
    assert "present in data" in dict(list_sources())["fashion-mnist"]


def test_the_debian_folder_is_absolute() -> None:
    assert idx.DEBIAN_FOLDER.is_absolute()
