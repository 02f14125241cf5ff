"""Multiply-adds and weights in the result files are those of the models as they are built now."""

import pytest

from experiments import recount
from experiments.summary import RESULTS
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
    monkeypatch.chdir(RESULTS.parents[1])
    recount.recount(path)
    assert read_rows(path) == kept
    assert capsys.readouterr().out.count("'params': ('3',") == sum(row["method"] != "original" for row in kept)
