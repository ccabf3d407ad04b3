"""Tables of every format: written and read back, read in pieces, and rejected if damaged."""

import contextlib
import io
import itertools
import json
import os
import sys
import tracemalloc
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from hiercls_jax.tables import (
    FORMATS,
    Columns,
    TableError,
    numpy_files,
    open_table,
    parquet_files,
    read_labels,
    write_table,
)
from hiercls_jax.tables.columns import read_names
from hiercls_jax.tables.table import Identifiers

CLASSES = ("cat", "dog, small", 'the "lion"', "naïve.fox")  # what CSV and Parquet must quote
ROWS = 11


def example(rows=ROWS, seed=0) -> np.ndarray:
    """Float32 `[rows, 4]` with numbers of every size, the smallest normal one included."""
    values = np.random.default_rng(seed).dirichlet(np.full(4, 0.1), rows).astype(np.float32)
    values[0] = [1, 0, np.finfo(np.float32).tiny, 1 / 3]
    return values


def write(path, values, classes=CLASSES, step=4):
    """Write a table in chunks of `step` rows."""
    with write_table(path, classes, len(values)) as write_chunk:
        for start in range(0, len(values), step):
            write_chunk(values[start : start + step])
    return str(path)


def read(name, classes=CLASSES, size=3) -> np.ndarray:
    """Read a whole table in chunks, each but the last of the size that was asked for."""
    table = open_table(str(name), classes)
    chunks = list(table.chunks(size))
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert {chunk.dtype for chunk in chunks} == {np.dtype(np.float32)}
    assert table.rows == sum(map(len, chunks))
    return np.concatenate(chunks)


def fails(function, *args) -> str:
    """The one line with which a function refuses its input."""
    with pytest.raises(TableError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Both ways.


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read(tmp_path, suffix):
    """Every float32 comes back bit for bit; columns with names may have any order."""
    values = example()
    name = write(tmp_path / f"p.{suffix}", values)
    np.testing.assert_array_equal(read(name), values)
    if suffix in ("csv", "parquet"):
        np.testing.assert_array_equal(read(name, CLASSES[::-1]), values[:, ::-1])


@pytest.mark.parametrize("suffix", FORMATS)
def test_chunks_are_the_table(tmp_path, suffix):
    """Chunks of any size, however the writer cut the file, are the same table."""
    values = example(23)
    for i, step in enumerate((1, 5, 23)):
        name = write(tmp_path / f"p{i}.{suffix}", values, step=step)
        for size in (1, 4, 5, 23, 100):
            np.testing.assert_array_equal(read(name, size=size), values)


def test_other_programs_read_what_is_written(tmp_path):
    """NumPy, Python's csv and pyarrow see the array, under the names of the classes."""
    values = example()
    np.testing.assert_array_equal(np.load(write(tmp_path / "p.npy", values)), values)
    with np.load(write(tmp_path / "p_fine.npz", values)) as file:
        assert file.files == ["p_fine"]
        np.testing.assert_array_equal(file["p_fine"], values)
    table = pq.read_table(write(tmp_path / "p.parquet", values))
    assert table.column_names == list(CLASSES)
    np.testing.assert_array_equal(np.stack(table.columns, axis=1), values)
    text = Path(write(tmp_path / "p.csv", values)).read_text(encoding="utf-8")
    assert text.startswith('cat,"dog, small","the ""lion""",naïve.fox\n')
    assert text.count("\n") == 1 + ROWS


def test_names_are_written(tmp_path):
    """CSV and Parquet take names of classes as they take numbers."""
    names = np.array([["a,b", "c"], ["d", '"e"']])
    for suffix in ("csv", "parquet"):
        with write_table(tmp_path / f"t.{suffix}", ("x", "y"), 2, str) as write_chunk:
            write_chunk(names)
    assert (tmp_path / "t.csv").read_text() == 'x,y\n"a,b",c\nd,"""e"""\n'
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"x": "a,b", "y": "c"},
        {"x": "d", "y": '"e"'},
    ]


# Files of other programs.


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", ">f8", "i1", "u4", ">i8", "?"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_numpy_files_of_any_real_type(tmp_path, suffix, dtype):
    """Numbers of any size and byte order are read as float32."""
    values = (example() if "f" in dtype else example() > 0.2).astype(dtype)
    path = tmp_path / f"p.{suffix}"
    np.savez_compressed(path, values) if suffix == "npz" else np.save(path, values)
    np.testing.assert_array_equal(read(path), values.astype(np.float32))


def test_numpy_header_versions(tmp_path):
    """Versions 1 and 2 of the header are read; version 3 is for arrays with named fields."""
    with open(tmp_path / "p.npy", "wb") as file:
        np.lib.format.write_array(file, example(), version=(2, 0))
    np.testing.assert_array_equal(read(tmp_path / "p.npy"), example())
    with open(tmp_path / "p.npy", "wb") as file:
        np.lib.format.write_array(file, example(), version=(3, 0))
    assert "version (3, 0), allowed are" in fails(read, tmp_path / "p.npy")


def test_one_array_of_several(tmp_path):
    """`file.npz:key` chooses an array, as of this project's own predictions."""
    path = tmp_path / "predictions.npz"
    np.savez(path, **{"test/p_fine": example(), "test/labels_fine": np.arange(ROWS) % 4})
    np.testing.assert_array_equal(read(f"{path}:test/p_fine"), example())
    assert read_labels(f"{path}:test/labels_fine", CLASSES).tolist() == (np.arange(11) % 4).tolist()
    assert f"has 2 arrays, choose one; allowed are '{path}:test/p_fine'" in fails(read, path)
    assert "has no array 'p'" in fails(read, f"{path}:p")


def test_csv_by_hand(tmp_path):
    """A byte order mark, CRLF, blank lines, spaces, quotes, integers and exponents are read."""
    path = tmp_path / "p.csv"
    text = (
        '\ufeffnaïve.fox, cat ,"dog, small","the ""lion"""\r\n\r\n0.1,"1e-1", 5E-1,0.3\r\n1,0,0,0'
    )
    path.write_bytes(text.encode())
    wanted = np.float32([[0.1, 0.5, 0.3, 0.1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(read(path), wanted)
    path.write_text("0.1,0.5,0.3,0.1\n0,0,0,1\n")  # without names, in the hierarchy's order
    np.testing.assert_array_equal(read(path), wanted)


def test_csv_header_of_numbers(tmp_path):
    """Classes may be called by numbers: the line of their names is a header all the same."""
    (tmp_path / "p.csv").write_text("7,3,5\n0.1,0.2,0.7\n")
    assert (
        read(tmp_path / "p.csv", ("3", "5", "7")).tolist() == np.float32([[0.2, 0.7, 0.1]]).tolist()
    )


@pytest.mark.parametrize("group", [1, 4, 100])
@pytest.mark.parametrize("whole", [True, False])
def test_parquet_by_pyarrow(tmp_path, monkeypatch, group, whole):
    """Row groups of any size and columns of any type, read whole or by blocks of columns."""
    if not whole:
        monkeypatch.setattr(parquet_files, "GROUP_BYTES", 0)
        monkeypatch.setattr(parquet_files, "BLOCK", 3)
    values = example()
    columns = [values[:, 0], values[:, 1].astype(np.float64), (values[:, 2] > 0).astype(np.int8)]
    columns.append(values[:, 3].astype(np.float16))
    pq.write_table(pa.table(columns, list(CLASSES)), tmp_path / "p.parquet", row_group_size=group)
    wanted = np.stack(columns, axis=1, dtype=np.float32, casting="unsafe")
    before = os.listdir(tmp_path)
    for size in (1, 3, 4, 100):
        np.testing.assert_array_equal(read(tmp_path / "p.parquet", size=size), wanted)
    assert os.listdir(tmp_path) == before


def test_parquet_names_with_dots(tmp_path):
    """A class called `a` is not mistaken for one called `a.b`, as a nested column would be."""
    classes = ("a.b", "a", "a.c")
    pq.write_table(pa.table([[0.1], [0.2], [0.7]], ["a", "a.b", "a.c"]), tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet", classes).tolist() == [np.float32([0.2, 0.1, 0.7]).tolist()]


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    """If pyarrow is not installed, the message says how to get it."""
    name = write(tmp_path / "p.parquet", example())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'hiercls_jax[parquet]', or use .npy" in fails(read, name)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("block", [1, 2**25])
def test_fortran_order(tmp_path, monkeypatch, suffix, block):
    """`np.save` writes `p[:, order]` column by column: it is read in blocks of any size."""
    monkeypatch.setattr(numpy_files, "BLOCK_BYTES", block)
    path, values = tmp_path / f"p.{suffix}", example()[:, [2, 0, 3, 1]]
    assert values.flags.f_contiguous
    np.savez(path, values) if suffix == "npz" else np.save(path, values)
    for size in (1, 3, ROWS, 100):
        np.testing.assert_array_equal(read(path, size=size), values)
    columns = Columns(CLASSES, names=CLASSES[::-1])
    (chunk,) = open_table(str(path), columns).chunks(100)
    np.testing.assert_array_equal(chunk, values[:, ::-1])


# Columns without names, and identifiers.


def unnamed(path, values):
    """Write numbers without names of their columns."""
    if path.suffix == ".csv":
        np.savetxt(path, values, delimiter=",")
    else:
        np.savez(path, values) if path.suffix == ".npz" else np.save(path, values)
    return str(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
def test_columns_without_names_need_a_stated_order(tmp_path, suffix):
    """If nothing states the order, the table is refused; given names put each column in place."""
    name = unnamed(tmp_path / f"p.{suffix}", example())
    why = "its columns have no names, so …"
    error = fails(open_table, name, Columns(CLASSES, unstated=why))
    assert error == f"{name}: {why}"
    table = open_table(name, Columns(CLASSES, unstated=why, names=CLASSES[::-1]))
    (chunk,) = table.chunks(100)
    np.testing.assert_array_equal(chunk, example()[:, ::-1])
    error = fails(open_table, name, Columns(CLASSES, names=(*CLASSES[:3], "wolf")))
    assert f"the names of the columns of {name}: unknown class 'wolf'" in error


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_are_not_given_twice(tmp_path, suffix):
    """A table that names its columns is matched by these names; others for it are refused."""
    name = write(tmp_path / f"p.{suffix}", example())
    assert "names its columns" in fails(open_table, name, Columns(CLASSES, names=CLASSES))
    (chunk,) = open_table(name, Columns(CLASSES[::-1], unstated="no order")).chunks(100)
    np.testing.assert_array_equal(chunk, example()[:, ::-1])


@pytest.mark.parametrize(
    ("text", "classes"),
    [("0,1,2\n0.5,0.25,0.25\n", "abc"), (",0,1\n7,0.5,0.25\n", "ab"), ("0,1\n0.5,0.5\n", "ab")],
)
def test_positions_are_no_names(tmp_path, text, classes):
    """The names 0, 1, 2 that pandas gives to columns without names are no names, nor a row."""
    (tmp_path / "p.csv").write_text(text)
    name, why = str(tmp_path / "p.csv"), "no order"
    assert open_table(name, Columns(tuple(classes))).rows == 1
    assert "no order" in fails(open_table, name, Columns(tuple(classes), unstated=why))
    numbers = tuple("210"[-len(classes) :])  # classes that are called so
    assert open_table(name, Columns(numbers, unstated=why)).classes == numbers


def test_two_hard_predictions_are_no_positions(tmp_path):
    """A file of zeros and ones alone has no header: its first line may be 0,1."""
    (tmp_path / "p.csv").write_text("0,1\n1,0\n")
    assert read(tmp_path / "p.csv", ("a", "b")).tolist() == [[0, 1], [1, 0]]


def ids(name, columns, size=3):
    """Return the name of the identifiers and all of them, read in chunks."""
    table = open_table(name, columns)
    chunks = list(table.id_chunks(size))
    assert all(len(chunk) == size for chunk in chunks[:-1])
    return table.ids.name, [id_ for chunk in chunks for id_ in chunk.tolist()]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("int_ids", [True, False])
def test_identifiers_go_through(tmp_path, suffix, int_ids):
    """A column of identifiers is written before the others and read back, in chunks of any size."""
    if suffix == "csv" and int_ids:
        pytest.skip("a CSV file has text alone")
    values, dtype = example(), np.dtype(np.int64 if int_ids else object)
    wanted = list(range(7, 18)) if int_ids else ['a, "1"', "naïve.png", *map(str, range(9))]
    column = np.empty(ROWS, dtype)
    column[:] = wanted
    path = tmp_path / f"p.{suffix}"
    with write_table(path, CLASSES, ROWS, ids=Identifiers("file", dtype, None)) as write_chunk:
        for start in range(0, ROWS, 4):
            write_chunk(values[start : start + 4], column[start : start + 4])
    columns = Columns(CLASSES, id="file" if int_ids else None)
    assert ids(str(path), columns) == ("file", wanted)
    np.testing.assert_array_equal(read(path, columns), values)


@pytest.mark.parametrize(
    ("text", "id_", "wanted"),
    [
        ("a,file,b\n1,x.png,0\n0,y.png,1\n", None, ("file", ["x.png", "y.png"])),
        (",a,b\n0,1,0\n1,0,1\n", None, ("id", ["0", "1"])),
        ("Unnamed: 0,b,a\n8,0,1\n9,1,0\n", None, ("id", ["8", "9"])),
        (",file,a,b\n0,x,1,0\n1,y,0,1\n", None, ("file", ["x", "y"])),
        ("n,a,b\n8,1,0\n9,0,1\n", "n", ("n", ["8", "9"])),
        ("x.png,1,0\ny.png,0,1\n", None, ("id", ["x.png", "y.png"])),
        ('"x, y",1,0\n"""z""",0,1\n', None, ("id", ["x, y", '"z"'])),
        ("key,0,1\nx,1,0\ny,0,1\n", None, ("key", ["x", "y"])),
    ],
)
def test_identifiers_in_csv(tmp_path, text, id_, wanted):
    """Rows are identified by the named column, the first of text, or the index of pandas."""
    (tmp_path / "p.csv").write_text(text)
    columns = Columns(("a", "b"), id=id_)
    assert ids(str(tmp_path / "p.csv"), columns, 1) == wanted
    assert read(tmp_path / "p.csv", columns).tolist() == [[1, 0], [0, 1]]


def test_identifiers_in_parquet(tmp_path):
    """Text, dictionaries, integers and dates identify rows; a row without one is named."""
    numbers = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    for column, id_, wanted in (
        (pa.array(["x", "y"]), None, ["x", "y"]),
        (pa.array(["x", "y"]).dictionary_encode(), None, ["x", "y"]),
        (pa.array([3, 4], "u4"), "key", [3, 4]),
        (pa.array([0, 1], "date32"), "key", ["1970-01-01", "1970-01-02"]),
    ):
        pq.write_table(pa.table(numbers | {"key": column}), tmp_path / "p.parquet")
        columns = Columns(("a", "b"), id=id_)
        assert ids(str(tmp_path / "p.parquet"), columns, 1) == ("key", wanted)
    pq.write_table(pa.table(numbers | {"key": ["x", None]}), tmp_path / "p.parquet")
    table = open_table(str(tmp_path / "p.parquet"), ("a", "b"))
    assert "row 1 (from 0): no identifier in 'key'" in fails(lambda: list(table.id_chunks(5)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.txt", "\ufeffdog, small\n\n cat \n"),
        ("n.json", '["dog, small", "cat"]'),
        ("n.csv", 'class\n"dog, small"\ncat\n'),
    ],
)
def test_names_of_columns_in_files(tmp_path, name, text):
    """One name a line, a CSV column with or without a header, or a JSON list."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_names(str(tmp_path / name)) == ("dog, small", "cat")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.txt", "\n", "has no names"),
        ("n.json", '{"cat": 1}', "allowed is a JSON list of names, or one name a line"),
        ("n.json", "[", "cannot be read"),
        ("n.csv", "cat,dog\n", "2 cells in a line, allowed is one"),
    ],
)
def test_names_that_are_none(tmp_path, name, text, message):
    """A file of names that holds something else is refused by its name."""
    (tmp_path / name).write_text(text)
    assert message in fails(read_names, str(tmp_path / name))
    assert "cannot be read" in fails(read_names, str(tmp_path / "missing.txt"))


# What is refused.


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files(tmp_path, suffix):
    """A file cut anywhere is refused with its name; in CSV, anywhere but inside its last number."""
    whole = tmp_path / f"whole.{suffix}"
    size = os.path.getsize(write(whole, example()))
    data = whole.read_bytes()
    last_number = len(data) if suffix != "csv" else data.rindex(b",")
    for cut in {0, 1, 5, size // 3, size // 2, size - 30, size - 9, size - 1}:
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(data[:cut])
        if cut <= last_number:
            assert str(path) in fails(read, path)


def test_a_truncated_array_names_the_row(tmp_path):
    """An .npy file says in which row it ends; so does a CSV file cut inside a row."""
    path = tmp_path / "p.npy"
    data = Path(write(path, example())).read_bytes()
    path.write_bytes(data[: 128 + 16 * 6 + 3])
    assert "is truncated: it ends in row 6 (from 0), with 99 bytes of the 176" in fails(read, path)
    path = tmp_path / "p.csv"
    path.write_text("0.1,0.2,0.3,0.4\n0.1,0.2,0.3")
    assert f"{path}, row 1 (from 0): 3 cells, allowed is 4" in fails(read, path)


def test_an_array_that_is_longer_than_its_header(tmp_path):
    """A file with more bytes than its header claims is damaged too."""
    path = tmp_path / "p.npy"
    path.write_bytes(Path(write(path, example())).read_bytes() + b"12")
    error = fails(read, path)
    wanted = "is damaged: it has 178 bytes, but its header's float32 [11, 4] allows 176"
    assert wanted in error


def test_a_flipped_bit_in_a_zip_archive(tmp_path):
    """A zip archive's checksum is compared, although it is read in pieces."""
    path = tmp_path / "p.npz"
    data = bytearray(Path(write(path, example())).read_bytes())
    data[data.index(b"NUMPY") + 150] ^= 1
    path.write_bytes(data)
    assert "Bad CRC-32" in fails(read, path)


class Planted:
    """Makes a folder if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("reader", [read, read_labels])
def test_object_arrays_are_never_unpickled(tmp_path, suffix, reader):
    """Nothing in a file is run: arrays of objects are refused by their header."""
    trap = tmp_path / "trap"
    array = np.array([[Planted(str(trap))] * 4] * 2, dtype=object)
    path = str(tmp_path / f"p.{suffix}")
    np.savez(path, array) if suffix == "npz" else np.save(path, array, allow_pickle=True)
    assert "Python objects, which are never unpickled" in fails(reader, path, CLASSES)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.ones((2, 5)),
            r"shape [2, 5], allowed is [N, 4], a column for each of the classes 'cat'",
        ),
        (np.ones(4), "shape [4], allowed is [N, 4]"),
        (np.ones((2, 4, 1)), "shape [2, 4, 1], allowed is [N, 4]"),
        (np.float64(1), "shape [], allowed is [N, 4]"),
        (np.ones((0, 4)), "no rows; at least one is needed"),
        (np.ones((2, 4), complex), "complex128, allowed are real numbers"),
        (np.ones((2, 4), "U3"), "allowed are real numbers"),
        (np.zeros(2, [("a", "f4")]), "allowed are real numbers"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_that_are_no_table(tmp_path, suffix, array, message):
    """Wrong shapes, types and orders are named, with what is allowed."""
    path = tmp_path / f"p.{suffix}"
    np.savez(path, array) if suffix == "npz" else np.save(path, array)
    error = fails(read, path)
    assert message in error
    assert str(path) in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "shape [0, 0], allowed is [N, 3]"),
        ("a,b,c\n", "no rows"),
        ("a,b,d\n1,0,0\n", "unknown class 'd'; allowed is one column for each of the 3 classes"),
        (",a,b,c\n0,1,0,0\n1,1,0\n", "row 1 (from 0): 3 cells, allowed is 4"),
        (
            "a,b,c,n\n0,1,0,5\n",
            "unknown class 'n'; allowed is one column for each of the 3 classes",
        ),
        ("a,b,c,n\n0,1,0,5\n", "; if that column identifies the rows, give --id=n"),
        ("a,b,d,n\n0,1,0,x\n", "unknown class 'd'"),
        ("a,b,b\n1,0,0\n", "two columns for class 'b'"),
        ("a,b\n1,0\n", "no column for class 'c'"),
        ("1,0\n1,0\n", "shape [2, 2], allowed is [N, 3]"),
        ("a,b,c\n1,0,0\n1,0\n", "row 1 (from 0): 2 cells, allowed is 3"),
        ("1,0,0\n1,0,0,0\n", "row 1 (from 0): 4 cells, allowed is 3"),
        ("a,b,c\n1,0,0\n\n1,zero,0\n", "row 1 (from 0): 'zero' in column 1, allowed are numbers"),
        ("1,0,0\n1,,0\n", "row 1 (from 0): '' in column 1, allowed are numbers"),
        ("1;0;0\n", "unknown class '1;0;0'"),
        ('a,b,"c\n1,0,0\n', "cannot be read"),
    ],
)
def test_csv_that_is_no_table(tmp_path, text, message):
    """Every fault of a CSV file is named with its row, counted from 0 without the header."""
    (tmp_path / "p.csv").write_text(text)
    assert message in fails(read, tmp_path / "p.csv", ("a", "b", "c"), 10)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1.0], "d": [0.0]}, "unknown class 'd'"),
        ({"a": [1.0]}, "no column for class 'b'"),
        ({"a": [1.0], "b": ["x"]}, "column 'b' is string, allowed are numbers"),
        ({"a": [1.0], "b": [[1.0]]}, "column 'b' is list<"),
        ({"a": pa.array([], "f4"), "b": pa.array([], "f4")}, "no rows"),
    ],
)
def test_parquet_that_is_no_table(tmp_path, table, message):
    """Columns that are not the classes, or no numbers, are named."""
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    assert message in fails(read, tmp_path / "p.parquet", ("a", "b"))


def test_files_that_are_none(tmp_path):
    """A missing file, a folder, other contents and an unknown suffix are one line each."""
    (tmp_path / "folder.npy").mkdir()
    for suffix in FORMATS:
        missing = tmp_path / f"none.{suffix}"
        assert f"{missing} cannot be read: " in fails(read, missing)
        (tmp_path / f"wrong.{suffix}").write_bytes(b"\xff\xfe\x00 no table \n at all")
        assert str(tmp_path / "wrong.") in fails(read, tmp_path / f"wrong.{suffix}")
    assert "folder.npy cannot be read: Is a directory" in fails(read, tmp_path / "folder.npy")
    assert "p.txt: allowed are files that end in .npy, .npz, .csv, .parquet" in fails(read, "p.txt")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "other.npz cannot be read: " in fails(read, tmp_path / "other.npz")


@given(data=st.binary(max_size=200), suffix=st.sampled_from(FORMATS))
def test_no_bytes_raise_anything_else(tmp_path_factory, data, suffix):
    """Whatever a file holds, it is a table or refused by name."""
    path = tmp_path_factory.mktemp("bytes") / f"p.{suffix}"
    path.write_bytes(data)
    for reader in (read, read_labels):
        with contextlib.suppress(TableError):
            reader(str(path), ("a", "b"))


FIELDS = st.sampled_from(["descr", "fortran_order", "shape", "x"])
VALUES = st.sampled_from(
    ["<f4", "|O", False, True, (2, 2), (-1, 2), (2**62, 2**62), (2.5, 2), (True, 2), None]
)


@given(header=st.dictionaries(FIELDS, VALUES))
def test_no_header_raises_anything_else(tmp_path_factory, header):
    """Whatever a header claims, also sizes beyond all memory, the file is refused by name."""
    path = tmp_path_factory.mktemp("header") / "p.npy"
    text = repr(header).encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(16))
    valid = {"descr": "<f4", "fortran_order": False, "shape": (2, 2)}
    if header != valid:
        assert str(path) in fails(read, path, ("a", "b"))


@pytest.mark.parametrize(
    "text", [b"{'shape': (2,", b"{'descr': '<f4', 'fortran_order': (\n", b"{" * 90]
)
def test_a_header_that_is_no_python_is_refused(tmp_path, text):
    """NumPy tries to parse a damaged header as Python 2 wrote it; its error is one of ours."""
    path = tmp_path / "p.npy"
    path.write_bytes(
        b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(118) + bytes(24)
    )
    assert f"{path} cannot be read: " in fails(read, path, ("a", "b"))


def zipped(path, head, zeros):
    """Write an archive of one array, a header and zeros; it is a thousandth as large on disk."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y.npy", head + bytes(zeros))
    return str(path)


def header(descr, shape) -> bytes:
    """The header of an `.npy` file."""
    file = io.BytesIO()
    head = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (header("|i1", (2**24,)), "has 16777216 rows, allowed is one for each of 2 samples"),
        (header("<U2097152", (2,)), "<U2097152, allowed are names of 1,024 characters"),
        (b"\x93NUMPY\x02\x00" + (2**24).to_bytes(4, "little"), "a header of 16,777,216 bytes"),
    ],
)
def test_small_files_of_labels_take_little_memory(tmp_path, head, message):
    """16 MB of rows, of a name or of a header, in a file of 16 kB, are refused unread."""
    name = zipped(tmp_path / "y.npz", head, 2**24)
    tracemalloc.start()
    assert message in fails(read_labels, name, ("a", "b"), 2)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_long_name_is_one_long_name(tmp_path):
    """One name of 100,000 characters does not make 1,000 short ones take as much memory each."""
    path = tmp_path / "y.csv"
    path.write_text("label\n" + "a\n" * 1000 + "x" * 100_000 + "\n")
    tracemalloc.start()
    error = fails(read_labels, str(path), ("a", "b"))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert "row 1000 (from 0): unknown class 'xxxx" in error
    assert len(error) < 1000


# Labels.


def save_labels(path, values):
    """Write one column in the format of the suffix."""
    suffix = path.suffix
    if suffix == ".npy":
        np.save(path, np.array(values))
    elif suffix == ".npz":
        np.savez(path, np.array(values))
    elif suffix == ".csv":
        path.write_text("label\n" + "".join(json.dumps(v) + "\n" for v in values))
    else:
        pq.write_table(pa.table({"label": values}), path)
    return str(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_labels_by_index_and_by_name(tmp_path, suffix):
    """Indices and names are the same labels, in every format."""
    path = tmp_path / f"y.{suffix}"
    for values in ([2, 0, 1, 1], ["c", "a", "b", "b"]):
        labels = read_labels(save_labels(path, values), ("a", "b", "c"))
        assert labels.tolist() == [2, 0, 1, 1]
        assert labels.dtype == np.int32


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 3], "row 2 (from 0): unknown class 3; allowed are 0 to 2, or the names 'a'"),
        ([0, -2, 3], "row 1 (from 0): unknown class -2; allowed are 0 to 2"),
        (
            ["a", "b", "d"],
            "row 2 (from 0): unknown class 'd'; allowed are 0 to 2, or the names 'a'",
        ),
    ],
)
def test_unknown_labels(tmp_path, suffix, values, message):
    """An unknown class is named, with its row."""
    path = save_labels(tmp_path / f"y.{suffix}", values)
    assert message in fails(read_labels, path, ("a", "b", "c"))


def test_labels_in_csv(tmp_path):
    """With or without a header; classes that are called by numbers are taken by name."""
    path = tmp_path / "y.csv"
    for text, classes, wanted in (
        ("1\n0\n", "ab", [1, 0]),
        ("b\na\n", "ab", [1, 0]),
        ("kind\nb\n\na", "ab", [1, 0]),
        ("7\n3\n", "37", [1, 0]),
        ("1\n0\n", "10", [0, 1]),
    ):
        path.write_text(text)
        assert read_labels(str(path), tuple(classes)).tolist() == wanted
    path.write_text("label\na\nb,c\n")
    assert "row 1 (from 0): 2 cells, allowed is one" in fails(read_labels, str(path), "abc")
    path.write_text("a\nb,c\n")
    assert "row 1 (from 0): 2 cells, allowed is one" in fails(read_labels, str(path), "abc")


def test_samples_without_labels(tmp_path):
    """-1, an empty cell, null, and a blank line where there would be too few rows, are no label."""
    path = tmp_path / "y.csv"
    for text, wanted in (
        ('b\n""\na\n', [1, -1, 0]),
        ("1\n-1\n0\n", [1, -1, 0]),
        ('kind\n1\n""\n0\n', [1, -1, 0]),
        ("b\n\na\n", [1, -1, 0]),
        ("b\n\na\n\n\n", [1, -1, 0]),
        ("kind\n\nb\na\n", [-1, 1, 0]),
        ("b\na\n\n", [1, 0, -1]),
        ("kind\n\nb\n\na\n\na\n", [1, 0, 0]),  # rows enough without the blank lines
    ):
        path.write_text(text)
        assert read_labels(str(path), ("a", "b"), 3).tolist() == wanted, text
    path.write_text("b\n\n\n\na\n")
    assert "has 5 rows, allowed is one for each of 3 samples" in fails(
        read_labels, str(path), "ab", 3
    )
    np.save(tmp_path / "y.npy", [1, -1, 0])
    assert read_labels(str(tmp_path / "y.npy"), "ab").tolist() == [1, -1, 0]
    for values in ([1, None, 0], ["b", None, "a"]):
        pq.write_table(pa.table({"y": values}), tmp_path / "y.parquet")
        assert read_labels(str(tmp_path / "y.parquet"), "ab").tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: np.save(path / "y.npy", np.ones(3)), "float64 [3], allowed are integers"),
        (
            lambda path: np.save(path / "y.npy", np.ones((3, 1), int)),
            "[3, 1], allowed are integers",
        ),
        (lambda path: np.save(path / "y.npy", np.ones(0, int)), "no rows"),
        (lambda path: (path / "y.csv").write_text("label\n"), "no rows"),
        (lambda path: (path / "y.csv").write_text("0.5\n1.5\n"), "unknown class '1.5'"),
        (
            lambda path: pq.write_table(pa.table({"a": [1], "b": [1]}), path / "y.parquet"),
            "columns 'a', 'b', allowed is one",
        ),
        (
            lambda path: pq.write_table(pa.table({"a": [1.0]}), path / "y.parquet"),
            "double, allowed are integers or class names",
        ),
    ],
)
def test_labels_that_are_none(tmp_path, save, message):
    """Numbers that are no integers, and several columns, are refused."""
    save(tmp_path)
    (path,) = tmp_path.iterdir()
    error = fails(read_labels, str(path), ("a", "b", "c"))
    assert message in error
    assert str(path) in error


def test_rows_are_cut_anywhere():
    """`_rechunk` cuts pieces of any sizes, empty ones too, into chunks of one size."""
    for sizes in itertools.product(range(4), repeat=4):
        pieces = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        for size in (1, 2, 5):
            chunks = list(parquet_files._rechunk(iter(pieces), size))
            assert [x for chunk in chunks for x in chunk] == list(range(sum(sizes)))
            assert all(len(chunk) == size for chunk in chunks[:-1])
            assert all(0 < len(chunk) <= size for chunk in chunks)
