"""Labels that somebody has looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.data.corrections import corrected
from distill.data.loader import open_data
from distill.errors import DataError
from distill.recipe.load import parse_recipe

CLASSES = ("cat", "dog", "frog")
GIVEN = torch.arange(9) % 3
PATHS = tuple(f"{CLASSES[i % 3]}/{i}.png" for i in range(9))


def read(folder: Path, text: str | bytes, paths: tuple[str, ...] = ()) -> dict[int, int]:
    """What a file changes."""
    path = folder / "c.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = corrected(str(path), GIVEN, CLASSES, paths)
    return {i: int(label) for i, label in enumerate(found) if label != GIVEN[i]}


def test_rows_with_a_label_are_corrected_and_no_others(tmp_path: Path) -> None:
    assert read(tmp_path, "index,label\n0,dog\n4,2\n5,\n6,  \n") == {0: 1, 4: 2}
    assert read(tmp_path, "label,index\nfrog,0\n") == {0: 2}
    assert read(tmp_path, "index,label\n") == {}
    assert read(tmp_path, b"\xef\xbb\xbfindex,label\r\n0,dog\r\n") == {0: 1}


def test_the_list_of_suspects_with_one_more_column(tmp_path: Path) -> None:
    header = "index,path,given,learned,confidence,given_probability,label\n"
    rows = "4,dog/4.png,dog,cat,0.97,0.01,cat\n0,cat/0.png,cat,frog,0.6,0.3,\n"
    assert read(tmp_path, header + rows, PATHS) == {4: 0}
    assert read(tmp_path, header.replace("\n", ",true\n") + "4,,dog,cat,0.97,0.01,cat,cat\n") == {4: 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.csv:1: header 'nothing', expected one column 'index'"),
        ("index,learned\n0,dog\n", "c.csv:1: header 'index,learned', expected one column 'label'"),
        ("index,label,label\n0,dog,dog\n", "expected one column 'label'"),
        ("index;label\n0;dog\n", "expected one column 'index', with commas between the columns and not semicolons"),
        ("index\tlabel\n0\tdog\n", "with commas between the columns and not tabs"),
        ("index,label\n0,cow\n", "c.csv:2: label 'cow', expected a class name or 0 to 2"),
        ("index,label\n9,cat\n", "c.csv:2: index '9', expected 0 to 8"),
        ("index,label\n1,cat\n1,frog\n", "c.csv:3: index 1 again, it is also in line 2"),
        ("index,label\n1\n", "c.csv:2: 1 fields, expected 2: index,label"),
        ("index,label\n\n", "c.csv:2: 0 fields"),
        (
            "index,path,label\n4,dog/3.png,cat\n",
            "c.csv:2: path is 'dog/3.png', but the data have 'dog/4.png' at index 4",
        ),
        ("index,given,label\n4,frog,cat\n", "c.csv:2: given is 'frog', but the data have 'dog' at index 4"),
        ('index,label\n"0,dog\n', "cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, text, PATHS)
    assert message in caught.value.message
    assert caught.value.message.startswith(str(tmp_path)) or "is not there" in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.corrections: .*none\.csv is not there"):
        corrected(str(tmp_path / "none.csv"), GIVEN, CLASSES)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_they_count_in_every_part_which_stays_what_it_was(tmp_path: Path, rate: float) -> None:
    kind = "symmetric" if rate else "none"
    asked = [f"data.noise.kind={kind}", f"data.noise.rate={rate}", "data.meta=50"]
    before = open_data(parse_recipe("", "r.toml", asked))
    chosen = [int(part[0]) for part in (before.splits.train, before.splits.meta, before.splits.test)]
    rows = "".join(f"{i},{(int(before.labels.given[i]) + 1) % 10}\n" for i in chosen)
    (tmp_path / "c.csv").write_text(f"index,label\n{rows}")
    after = open_data(parse_recipe("", "r.toml", [*asked, f'data.corrections="{tmp_path}/c.csv"']))
    for name in ("train", "validation", "meta", "test"):
        assert torch.equal(getattr(before.splits, name), getattr(after.splits, name))
    assert (before.labels.given != after.labels.given).nonzero().flatten().tolist() == sorted(chosen)
    assert after.corrected == 3
    # Without planted noise what was looked at is the truth; planted noise has a truth of its own.
    assert torch.equal(after.labels.true, after.labels.given if not rate else before.labels.true)
