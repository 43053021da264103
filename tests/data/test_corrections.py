from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resnetkit.data.corrections import read_corrections
from resnetkit.data.folder import Dataset, Split, read_dataset
from resnetkit.errors import DataError
from resnetkit.storage import csv_line


@pytest.fixture
def dataset():
    paths = ["blue/1.png", "blue/2.png", "=red/1.png", "=red/2.png", "green/é,1.png"]
    split = Split(Path("photos"), paths, np.array([0, 0, 2, 2, 1], np.int32))
    return Dataset(Path("photos"), ("blue", "green", "=red"), {"all": split})


@pytest.fixture
def write(tmp_path):
    def made(*rows, header="path,label,suggested,score,verdict,new_label"):
        file = tmp_path / "suspects.csv"
        lines = [",".join(header.split(",")) + "\n", *map(csv_line, rows)]
        file.write_text("".join(lines), encoding="utf-8")
        return file

    return made


def test_verdicts_relabel_and_drop(dataset, write):
    file = write(
        ["blue/1.png", "blue", "green", 3.1, "relabel", ""],
        ["blue/2.png", "blue", "green", 3.0, " Relabel ", "=red"],
        ["=red/1.png", "=red", "green", 2.9, "DROP", ""],
        ["=red/2.png", "=red", "green", 2.8, "keep", ""],
        ["green/é,1.png", "green", "blue", 2.7, "", ""],
    )
    assert "'=red/1.png" in file.read_text(encoding="utf-8")  # escaped, so no spreadsheet runs it
    corrections = read_corrections(file, dataset)
    assert corrections.relabeled == {"blue/1.png": 1, "blue/2.png": 2}
    assert corrections.dropped == {"=red/1.png"}
    assert corrections.describe() == "2 images relabeled, 1 dropped"
    split = corrections.apply(dataset.splits["all"])
    assert list(split.paths) == ["blue/1.png", "blue/2.png", "=red/2.png", "green/é,1.png"]
    assert split.labels.tolist() == [1, 2, 2, 1]
    assert split.labels.dtype == np.int32


def test_what_a_spreadsheet_saves_is_read(dataset, tmp_path):
    """A byte order mark, CRLF, other columns in another order, an empty line."""
    file = tmp_path / "judged.csv"
    text = "\r\nverdict,note,path,suggested\r\nrelabel,sure,blue/1.png,green\r\n\r\n,,,\r\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.lstrip().encode())
    assert read_corrections(file, dataset).relabeled == {"blue/1.png": 1}


def test_names_may_begin_and_end_with_spaces(tmp_path):
    split = Split(Path("photos"), [" a/1.png ", "b/2.png"], np.array([0, 1], np.int32))
    dataset = Dataset(Path("photos"), (" a", "b"), {"all": split})
    file = tmp_path / "suspects.csv"
    file.write_text("path,label,verdict,new_label\n a/1.png , a,drop,\nb/2.png ,b,relabel, a\n")
    found = read_corrections(file, dataset)
    assert (found.dropped, found.relabeled) == ({" a/1.png "}, {"b/2.png": 0})


def test_a_cell_that_is_too_long_is_an_error(dataset, tmp_path):
    file = tmp_path / "suspects.csv"
    file.write_text(f"path,verdict\n{'a' * 140_000},drop\n")
    with pytest.raises(DataError, match=r"line 2: not valid CSV"):
        read_corrections(file, dataset)


def test_paths_need_not_be_text(tmp_path):
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    split = Split(Path("photos"), [f"a/{name}", "b/1.png"], np.array([0, 1], np.int32))
    dataset = Dataset(Path("photos"), ("a", "b"), {"all": split})
    file = tmp_path / "suspects.csv"
    file.write_bytes(b"path,verdict\na/\xff.png,drop\n")
    assert read_corrections(file, dataset).dropped == {f"a/{name}"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["blue/1.png", "blue", "green", 3, "remove", ""]], "line 2: unknown verdict 'remove'"),
        ([["blue/1.png", "blue", "green", 3, "relable", ""]], "Did you mean 'relabel'"),
        ([["blue/9.png", "blue", "green", 3, "drop", ""]], "line 2: photos has no image 'blue/9"),
        (
            [["blue/1.png", "blue", "gren", 3, "relabel", ""]],
            "line 2: unknown class 'gren'. Did you mean 'green'\\? Known: blue, green, =red",
        ),
        ([["blue/1.png", "blue", "", 3, "relabel", ""]], "line 2: .*new_label and suggested are"),
        ([["blue/1.png", "blue", "green", 3, "", "=red"]], "line 2: new_label is '=red', but the"),
        (
            [["blue/1.png", "green", "=red", 3, "relabel", ""]],
            "line 2: blue/1.png was judged with the label 'green', but its label is 'blue' now",
        ),
        (
            [
                ["blue/1.png", "blue", "green", 3, "drop", ""],
                ["blue/1.png", "blue", "green", 3, "relabel", ""],
            ],
            "line 3: blue/1.png has a different verdict on an earlier line",
        ),
    ],
)
def test_errors_name_the_line_and_what_is_allowed(dataset, write, rows, message):
    with pytest.raises(DataError, match=message):
        read_corrections(write(*rows), dataset)


def test_a_quote_hides_no_rows(dataset, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text('path,verdict,note\nblue/1.png,keep,"hm\nblue/2.png,drop,\n')
    with pytest.raises(DataError, match=r"mine\.csv, line 3: .* unmatched double quote"):
        read_corrections(file, dataset)


def test_a_column_that_comes_twice_is_refused(dataset, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("path,verdict,note,note,verdict\nblue/1.png,drop,,,\n")
    with pytest.raises(DataError, match="several columns called verdict; expected one"):
        read_corrections(file, dataset)


def test_another_file_is_explained(dataset, tmp_path):
    with pytest.raises(DataError, match=r"none\.csv cannot be read: No such file"):
        read_corrections(tmp_path / "none.csv", dataset)
    file = tmp_path / "wrong.csv"
    for text, message in (
        ("path;verdict\n", "columns path;verdict; expected.*path and verdict; separate them with"),
        ("", r"columns \(none\)"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_corrections(file, dataset)


def test_an_image_that_was_corrected_since_needs_no_verdict(dataset, write):
    file = write(["blue/1.png", "green", "blue", 3, "relabel", ""])
    assert read_corrections(file, dataset).describe() == "0 images relabeled, 0 dropped"


def test_identity_tells_corrections_apart(dataset, write):
    def identity(*rows):
        return read_corrections(write(*rows), dataset).identity()

    first = ["blue/1.png", "blue", "green", 3, "relabel", ""]
    second = ["blue/2.png", "blue", "green", 3, "relabel", ""]
    assert identity(first, second) == identity(second, first)
    assert identity(first) != identity(second)


def test_split_files_of_split_files_find_the_photos(tmp_path, flat_folder):
    """A run on the split.csv from another run records that file as its data."""
    runs = [tmp_path / "one", tmp_path / "two"]
    sources = [flat_folder, runs[0] / "split.csv"]
    for run, data in zip(runs, sources, strict=True):
        run.mkdir()
        (run / "environment.json").write_text(f'{{"data": "{data}"}}')
        (run / "recipe.yaml").write_text("")
        (run / "split.csv").write_text(
            "path,label,split\nblue/000.png,blue,train\nred/000.png,red,train\nred/001.png,red,val\n"
        )
    assert read_dataset(runs[1] / "split.csv").splits["train"].root == flat_folder


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"data": null}'])
def test_a_damaged_record_of_a_run_is_named(tmp_path, text):
    (tmp_path / "environment.json").write_text(text)
    (tmp_path / "recipe.yaml").write_text("")
    (tmp_path / "split.csv").write_text("path,label,split\n1.png,a,train\n2.png,b,train\n")
    with pytest.raises(DataError, match=r"environment\.json is damaged .* Copy the run folder"):
        read_dataset(tmp_path / "split.csv")
