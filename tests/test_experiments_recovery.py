"""What bicubic thumbnails lose and students win back, with intervals over the same images."""

import math
import shutil

import numpy as np
import pytest

from experiments import recovery
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows


def test_golden_numbers():
    # lost: 0, 1, 1, 0, mean 2/4, deviation sqrt(1/3); won: 0, 1, 1/2, 0, mean 3/8
    # beyond half of it: 0, 1/2, 0, 0, mean 1/8, deviation 1/4; half an interval is 1.96 deviations by sqrt(4)
    found = recovery.compared(np.array([1, 1, 1, 0.0]), np.array([1, 0, 0, 0.0]), np.array([1, 1, 0.5, 0.0]))
    numbers = {name: float(value) for name, value in found.items()}
    assert (numbers["lost"], numbers["won"], numbers["over"]) == (0.5, 0.375, 0.125)
    assert numbers["lost_half"] == pytest.approx(1.96 * math.sqrt(1 / 3) / 2, rel=1e-4)
    assert numbers["over_half"] == pytest.approx(1.96 * 0.25 / 2, rel=1e-4)
    row = {"method": "thumbnet", "split": "test", "seeds": "3", **found}
    assert recovery.markdown([row]).splitlines()[2] == (
        "| `thumbnet` | test | 50.0 ± 56.6 | 37.5 ± 46.9 | 12.5 ± 24.5 | 0.75 | 3 |"
    )
    assert " | - | " in recovery.markdown([row | {"lost": "-0.010000"}])


def test_what_runs_won_is_the_difference_of_their_accuracies(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "RESULTS", tmp_path)
    recovery.collect("discs", [str(tiny_run.path)])
    rows = read_rows(tmp_path / "discs_recovery.csv", recovery.COLUMNS, words=("method", "split"))
    top1 = {(row["method"], row["split"]): float(row["top1"]) for row in read_rows(tiny_run.path / "results.csv")}
    assert {(row["method"], row["split"]) for row in rows} >= {("thumbnet", "validation"), ("thumbnet", "test")}
    for row in rows:
        teacher, base, student = (top1[method, row["split"]] for method in ("original", "bicubic", row["method"]))
        assert float(row["lost"]) == pytest.approx(teacher - base, abs=2e-6)
        assert float(row["won"]) == pytest.approx(student - base, abs=2e-6)
        assert row["seeds"] == "1"


def test_mistakes_are_named(tiny_run, tmp_path, monkeypatch):
    run = shutil.copytree(tiny_run.path, tmp_path / "run")
    monkeypatch.setattr(recovery, "RESULTS", tmp_path)
    with pytest.raises(UserError, match="each seed is counted once"):
        recovery.collect("discs", [str(run)] * 2)
    answers = run / "bicubic" / "logits_validation.npy"
    answers.write_bytes(answers.read_bytes()[:90])
    with pytest.raises(UserError, match=r"answers to the validation images are missing or broken; `python -m thumb"):
        recovery.collect("discs", [str(run)])
    answers.unlink()
    with pytest.raises(UserError, match=r"missing or broken; .*bicubic/logits_validation.npy"):
        recovery.collect("discs", [str(run)])
    assert not list(tmp_path.glob("*.csv"))
