"""What oneDNN gives: three processes are asked for each benchmark, and what they say stands side by side."""

import os
import pathlib
import subprocess

import pytest

from experiments import onednn
from thumbnet_tf import benchmark_inference, benchmark_report, benchmark_training
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows

PLACES = "".join(f"<!-- table onednn_{what} -->\n<!-- end of table -->\n" for what in onednn.REPORTS)


def rows_of(what: str, speed: int) -> list[dict]:
    """Returns a benchmark's rows: 1, 2, 3 ... times `speed`."""
    if what == "training":
        return [
            {"case": case, "image_size": size, "ratio": 4, "median": speed * (number + 1)}
            for size in (128, 224)
            for number, case in enumerate(benchmark_training.ABOUT)
        ]
    return [
        {"case": case, "backbone": "resnet18", "model": model, "image_size": 224, "ratio": 1 if number == 1 else 4}
        | {"median": speed * number, "unit": "ms", "teacher_over_it": number}
        for case in benchmark_report.CASES
        for number, model in enumerate(("teacher", "thumbnet", "student"), 1)
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A page and a folder of results, and benchmarks that write made-up rows at once; gives what was asked."""
    asked = []

    def run(command, cwd, env):
        what = command[3].removeprefix("--what=")
        given = {name: text for name, text in env.items() if os.environ.get(name) != text}
        asked.append((what, given, env["PATH"] == os.environ["PATH"], command[5:]))
        columns = {"training": benchmark_training.COLUMNS, "inference": benchmark_inference.COLUMNS}[what]
        folder = pathlib.Path(command[4].removeprefix("--out="))
        rows = rows_of(what, {0: 6, 1: 4, 2: 1}[len(given)])
        write_rows(folder / f"benchmark_{what}.csv", columns, rows)
        return subprocess.CompletedProcess(command, 0)

    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "README.md").write_text(PLACES)
    monkeypatch.setattr(onednn.subprocess, "run", run)
    monkeypatch.setattr(onednn, "ROOT", tmp_path)
    monkeypatch.setattr(onednn, "RESULTS", tmp_path)
    return asked


def test_both_are_measured_and_compared(place, tmp_path):
    by_avx2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert onednn.main([]) == 0
    assert place == [
        (what, given, True, more)
        for what, more in (("training", ["--rounds=3"]), ("inference", ["--quick"]))
        for given in ({}, by_avx2, by_avx2 | {"TF_ENABLE_ONEDNN_OPTS": "0"})
    ]
    rows = read_rows(tmp_path / "onednn_training.csv")
    assert len(rows) == 3 * 2 * len(benchmark_training.ABOUT)
    assert {row["setting"] for row in rows if row["median"] == "6"} == {
        "as it is",
        "AVX2, no oneDNN",
    }  # 6 x 1, 1 x 6
    page = (tmp_path / "experiments" / "README.md").read_text().splitlines()
    columns = ("images/s, {} px", "/ step_uncached", "by AVX2", "/ step_uncached", "times without oneDNN")
    shown = [column.format(sizes) for sizes in ("128 to 32", "224 to 56") for column in columns]
    assert page[1] == f"| case | {' | '.join(shown)} |"
    assert page[4] == f"| `step_cached` |{' 12 | 2.00 | 8 | 2.00 | 4.00 |' * 2}"
    line = "| resnet18, 224 | frozen, batch 1 | 6.0 ms | 12.0 ms (2.0x) | 18.0 ms (3.0x) |"
    assert f"{line} 4.0 ms | 8.0 ms (2.0x) | 1.0 ms | 2.0 ms (2.0x) |" in page
    assert {text.count("|") for text in page if text.startswith("|")} == {12, 10}


def test_a_benchmark_that_fails_changes_nothing(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onednn.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 137))
    with pytest.raises(UserError, match="the benchmark failed; see above. Received: code 137"):
        onednn.measure("training", "AVX2")
    assert onednn.main([]) == 1
    assert not list(tmp_path.glob("*.csv")) and "code 137" in capsys.readouterr().err


def test_one_of_them_can_be_asked_for(place, tmp_path, capsys):
    assert onednn.main(["--training"]) == 2 and "python -m experiments.onednn" in capsys.readouterr().out
    assert not place
    assert onednn.main(["inference"]) == 0
    assert {what for what, *_ in place} == {"inference"} and not (tmp_path / "onednn_training.csv").exists()
