"""What oneDNN gives: two processes are asked, and what both say stands side by side."""

import os
import pathlib
import subprocess

import pytest

from experiments import onednn
from thumbnet_tf import benchmark_training
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A page and a folder of results, and a benchmark that writes medians at once; gives what it was asked."""
    asked = []

    def run(command, cwd, env):
        asked.append((env["TF_ENABLE_ONEDNN_OPTS"], env["PATH"] == os.environ["PATH"], *command[1:4]))
        speed = 4 if env["TF_ENABLE_ONEDNN_OPTS"] == "1" else 1
        rows = [
            {"case": case, "image_size": size, "ratio": 4, "median": speed * (number + 1)}
            for size in (128, 224)
            for number, case in enumerate(benchmark_training.ABOUT)
        ]
        folder = pathlib.Path(command[4].removeprefix("--out="))
        write_rows(folder / "benchmark_training.csv", benchmark_training.COLUMNS, rows)
        return subprocess.CompletedProcess(command, 0)

    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "README.md").write_text("<!-- table benchmark_onednn -->\n<!-- end of table -->\n")
    monkeypatch.setattr(onednn.subprocess, "run", run)
    monkeypatch.setattr(onednn, "ROOT", tmp_path)
    monkeypatch.setattr(onednn, "RESULTS", tmp_path)
    return asked


def test_both_are_measured_and_compared(place, tmp_path):
    assert onednn.main() == 0
    assert place == [(each, True, "-m", "thumbnet_tf.benchmark", "--what=training") for each in ("1", "0")]
    rows = read_rows(tmp_path / "benchmark_onednn.csv")
    assert len(rows) == 2 * 2 * len(benchmark_training.ABOUT)
    assert {row["onednn"] for row in rows if row["median"] == "4"} == {"0", "1"}  # the fourth without, the first with
    page = (tmp_path / "experiments" / "README.md").read_text().splitlines()
    columns = ("images/s, {} px", "/ step_uncached", "times without oneDNN")
    shown = [column.format(sizes) for sizes in ("128 to 32", "224 to 56") for column in columns]
    assert page[1] == f"| case | {' | '.join(shown)} |"
    assert page[4] == "| `step_cached` | 8 | 2.00 | 4.00 | 8 | 2.00 | 4.00 |"


def test_a_benchmark_that_fails_changes_nothing(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onednn.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 137))
    with pytest.raises(UserError, match="the benchmark failed; see above. Received: code 137"):
        onednn.measure("1")
    assert onednn.main() == 1
    assert not (tmp_path / "benchmark_onednn.csv").exists() and "code 137" in capsys.readouterr().err
