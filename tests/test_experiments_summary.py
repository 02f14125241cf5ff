"""Runs of several seeds in one CSV."""

import pytest

from experiments import summary
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.evaluate import COLUMNS


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "RESULTS", tmp_path)

    def make(seed, methods=("bicubic", "original")):
        rows = [dict.fromkeys(COLUMNS, "1") | {"method": name, "split": "test", "seed": seed} for name in methods]
        (tmp_path / seed).mkdir()
        write_rows(tmp_path / seed / "results.csv", COLUMNS, rows)
        return str(tmp_path / seed)

    return make


def test_rows_are_in_the_order_of_methods_and_numbers_of_seeds(run, tmp_path):
    summary.collect("x", [run("10"), run("9")])
    found = [(row["method"], row["seed"]) for row in read_rows(tmp_path / "x.csv")]
    assert found == [("original", "9"), ("original", "10"), ("bicubic", "9"), ("bicubic", "10")]


def test_no_seed_counts_twice(run):
    with pytest.raises(UserError, match="each seed is counted once"):
        summary.collect("x", [run("1")] * 2)


def test_methods_have_the_same_seeds(run):
    with pytest.raises(UserError, match="every method must have the same seeds"):
        summary.collect("x", [run("1"), run("2", ("original",))])
