"""Multiply-adds and weights in the result files are those of the models as they are built now."""

import contextlib

import pytest

from experiments import recount
from experiments.summary import RESULTS
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows

WRONG = {"macs": "1", "macs_downscaler": "2", "params": "3"}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("flowers_32", ("flowers_32_direct", "flowers_32_narrow_thumbnet")),
        ("flowers_64", ("flowers_64_thumbnet",)),  # its T stands in another set's file
        ("quickstart", None),  # runs by one flagfile
    ],
)
def test_wrong_counts_become_those_of_the_file(name, rows, tmp_path, monkeypatch, capsys):
    good = read_rows(RESULTS / f"{name}.csv")
    kept = [row for row in good if rows is None or row["row"] in (*rows, f"{name}_original")]
    assert kept
    # T's own rows tell the number of classes, and stay
    bad = [row | ({} if row["method"] == "original" else WRONG) for row in kept]
    path = tmp_path / f"{name}.csv"
    write_rows(path, list(kept[0]), bad)
    monkeypatch.setattr(recount.run, "writing", contextlib.nullcontext)
    monkeypatch.chdir(RESULTS.parents[1])
    recount.recount(path)
    assert read_rows(path) == kept
    assert capsys.readouterr().out.count("'params': ('3',") == sum(row["method"] != "original" for row in kept)


def test_rows_noted_while_it_counts_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "flowers_32.csv"
    rows = [row for row in read_rows(RESULTS / "flowers_32.csv") if row["row"] in ("flowers_32_original",)]
    write_rows(path, list(rows[0]), rows[:1])

    def counted(*_):
        write_rows(path, list(rows[0]), rows[:2])
        return WRONG

    monkeypatch.setattr(recount, "counted", counted)
    monkeypatch.setattr(recount.run, "writing", contextlib.nullcontext)
    monkeypatch.chdir(RESULTS.parents[1])
    recount.recount(path)
    assert read_rows(path) == [row | WRONG for row in rows[:2]]


def test_a_file_without_rows_or_without_its_teacher_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"results are expected. Received: .*flowers_32.csv, which has none"):
        recount.recount(tmp_path / "flowers_32.csv")
    path = tmp_path / "quickstart.csv"
    rows = [row for row in read_rows(RESULTS / "quickstart.csv") if row["method"] == "thumbnet"]
    write_rows(path, list(rows[0]), rows)
    with pytest.raises(UserError, match=r"T's own row is expected in .*quickstart.csv: .* Received: none"):
        recount.recount(path)
