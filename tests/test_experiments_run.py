"""The runner of experiment rows: what is trained with which teacher, what is noted, what is not run again."""

import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from experiments import run
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.evaluate import COLUMNS


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Two rows of a set in a folder of their own, and a training that writes results at once; gives its commands."""
    started = []
    for name in ("rows", "results"):
        (tmp_path / name).mkdir()
    for name in ("discs_32_original", "discs_32_bicubic"):
        methods = "" if name.endswith("original") else "bicubic"
        (tmp_path / "rows" / f"{name}.flags").write_text(f"--dataset=folder:discs\n--methods={methods}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "ROWS", tmp_path / "rows")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "cores", lambda: 3)

    def folder_of(flags):
        return tmp_path / flags["run_dir"]

    def train(command):
        started.append(command[3:])
        flags = dict(part.removeprefix("--").split("=") for part in command[3:])
        if flags["seed"] == "7":
            return 143
        method = flags["flagfile"].split("_")[-1].removesuffix(".flags")
        if folder_of(flags).exists():  # a finished run: nothing is left to train
            return 0
        common = dict.fromkeys(COLUMNS, "1") | {"seed": flags["seed"], "top1": f"0.{flags['seed']}5"}
        folder = folder_of(flags)
        folder.mkdir(parents=True)
        found = [common | {"method": m, "split": s} for m in ("original", method) for s in ("validation", "test")]
        write_rows(folder / "results.csv", COLUMNS, found if method != "original" else found[:2])
        (folder / method).mkdir()
        (folder / method / "done.json").write_text("{}")
        (folder / method / "metrics.csv").write_text("epoch,kd,val_kd\n1,0.9,0.9\n2,0.5,0.7\n")
        (folder / "config.json").write_text(Config().to_json())
        digest = hashlib.sha256(b"T").hexdigest()
        facts = {"fingerprint": "f" * 64} | ({"teacher_file": digest} if "teacher" in flags else {})
        (folder / "data.json").write_text(json.dumps(facts))
        if method == "original":
            (folder / method / "teacher.keras").write_bytes(b"T")
        return 0

    monkeypatch.setattr(run, "train", train)
    return started


def test_each_row_and_seed_is_trained_once_with_its_teacher(rows, tmp_path, capsys):
    options = run.Options(rows=("discs_32_original", "discs_32_bicubic"), seeds=("0", "1"))
    assert run.main(options) == 0
    assert rows[0] == ["--flagfile=rows/discs_32_original.flags", "--seed=0", "--run_dir=runs/discs_32_original_seed0"]
    assert rows[3] == [
        "--flagfile=rows/discs_32_bicubic.flags",
        "--seed=1",
        "--run_dir=runs/discs_32_bicubic_seed1",
        "--teacher=runs/discs_32_original_seed1",
    ]
    noted = read_rows(tmp_path / "results" / "discs_32.csv")
    assert [(row["row"], row["seed"], row["split"], row["method"], row["top1"]) for row in noted] == [
        (f"discs_32_{method}", seed, split, method, f"0.{seed}5")
        for method in ("bicubic", "original")
        for seed in ("0", "1")
        for split in ("test", "validation")
    ]
    assert {(row["cores"], row["kd"], row["val_kd"], row["fm"]) for row in noted} == {("3", "0.5", "0.7", "")}
    assert {row["date"] for row in noted} == {datetime.date.today().isoformat()}
    digest = hashlib.sha256(b"T").hexdigest()[:12]
    assert {(row["method"], row["seed"], row["teacher"]) for row in noted} == {
        (method, seed, digest) for method in ("bicubic", "original") for seed in ("0", "1")
    }
    assert {(row["data"], row["precision"]) for row in noted} == {("ffffffffffff", "float32")}
    capsys.readouterr()
    assert run.main(options) == 0
    assert len(rows) == 4  # nothing anew
    assert "discs_32_bicubic, seed 1 is measured; --again trains it where its run" in capsys.readouterr().err


def test_seeds_stand_in_their_order_beside_the_minutes_that_they_took(rows, tmp_path, monkeypatch):
    clock = iter([0.0, 90.0, 1000.0, 1204.0])
    monkeypatch.setattr(run, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    assert run.main(run.Options(rows=("discs_32_original",), seeds=("10", "9"))) == 0
    noted = read_rows(tmp_path / "results" / "discs_32.csv")
    assert [(row["seed"], row["minutes"]) for row in noted] == 2 * [("9", "3.4")] + 2 * [("10", "1.5")]


def test_sets_of_one_full_size_share_their_teacher(rows, tmp_path, monkeypatch):
    (tmp_path / "rows" / "discs_64_bicubic.flags").write_text("--methods=bicubic\n")
    monkeypatch.setitem(run.TEACHER_SETS, "discs_64", "discs_32")
    assert run.main(run.Options(rows=("discs_32_original",), seeds=("1",))) == 0
    assert run.main(run.Options(rows=("discs_64_bicubic",), seeds=("1",))) == 0
    assert len(rows) == 2 and rows[1][-1] == "--teacher=runs/discs_32_original_seed1"
    assert [row["row"] for row in read_rows(tmp_path / "results" / "discs_64.csv")] == ["discs_64_bicubic"] * 2


def test_a_teacher_that_is_measured_but_not_there_is_trained_first(rows, tmp_path):
    path = tmp_path / "results" / "discs_32.csv"
    write_rows(path, run.COLUMNS, [{"row": "discs_32_original", "seed": 1, "minutes": 9}])
    assert run.main(run.Options(rows=("discs_32_bicubic",), seeds=("1",), dataset="folder:elsewhere")) == 0
    assert [command[0] for command in rows] == [
        f"--flagfile=rows/discs_32_{row}.flags" for row in ("original", "bicubic")
    ]
    assert all("--dataset=folder:elsewhere" in command for command in rows)
    assert [row["row"] for row in read_rows(path)] == ["discs_32_bicubic"] * 2 + ["discs_32_original"] * 2


def test_what_is_measured_is_trained_again_on_request_where_its_run_is_missing(rows, tmp_path, capsys):
    path = tmp_path / "results" / "discs_32.csv"
    old = [{"row": f"discs_32_{name}", "seed": 1, "split": "test", "minutes": 9} for name in ("original", "bicubic")]
    write_rows(path, run.COLUMNS, old)
    options = run.Options(rows=("discs_32_bicubic",), seeds=("1",), again=True)
    assert run.main(options) == 0
    assert len(rows) == 2  # its T too
    assert [row["top1"] for row in read_rows(path) if row["split"] == "test"] == ["0.15", "0.15"]
    assert run.main(options) == 0
    assert len(rows) == 2
    assert "discs_32_bicubic, seed 1 is measured\n" in capsys.readouterr().err
    # killed between the end of a training and its note: the same command notes it
    write_rows(path, run.COLUMNS, old)
    with pytest.raises(UserError, match="runs/discs_32_bicubic_seed1 holds other results than .*discs_32.csv; delete"):
        run.main(run.Options(rows=("discs_32_bicubic",), seeds=("1",)))
    assert run.main(options) == 0
    assert len(rows) == 4  # started, and found finished
    assert [row["top1"] for row in read_rows(path) if row["split"] == "test"] == ["0.15", "0.15"]


def test_a_teacher_of_other_results_is_not_taken_for_the_measured_one(rows, tmp_path):
    path = tmp_path / "results" / "discs_32.csv"
    assert run.main(run.Options(rows=("discs_32_bicubic",))) == 0
    (tmp_path / "rows" / "discs_32_area.flags").write_text("--methods=area\n")
    (tmp_path / "runs" / "discs_32_original_seed0" / "original" / "teacher.keras").write_bytes(b"trained by hand")
    with pytest.raises(UserError, match="original_seed0 is missing or holds another T .*: discs_32_bicubic. Take"):
        run.main(run.Options(rows=("discs_32_area",)))
    assert len(rows) == 2 and len(read_rows(path)) == 4


def test_no_row_is_left_unsaid_beside_a_teacher_that_did_not_teach_it(rows, tmp_path, capsys):
    for name in ("thumbnet", "area"):
        (tmp_path / "rows" / f"discs_32_{name}.flags").write_text(f"--methods={name}\n")
    measured = [{"row": f"discs_32_{name}", "seed": 0, "minutes": 9} for name in ("original", "bicubic")]
    write_rows(tmp_path / "results" / "discs_32.csv", run.COLUMNS, measured)
    options = run.Options(rows=("discs_32_thumbnet",))
    with pytest.raises(UserError, match="runs/discs_32_original_seed0 is missing or .*: discs_32_bicubic. Take"):
        run.main(options)
    assert not rows
    both = run.Options(rows=("discs_32_thumbnet", "discs_32_bicubic"), again=True)
    jobs = run.jobs(both)
    assert [row for row, _ in jobs] == ["discs_32_original", "discs_32_thumbnet", "discs_32_bicubic"]
    run.check_teachers(jobs, both)
    assert "train anew too" not in capsys.readouterr().err
    assert run.main(run.Options(rows=("discs_32_thumbnet",), again=True)) == 0
    assert len(rows) == 2
    assert "with T of seed 0, train anew too: discs_32_bicubic; another" in capsys.readouterr().err
    assert run.main(run.Options(rows=("discs_32_thumbnet",), seeds=("1",))) == 0  # a seed with nothing measured
    assert len(rows) == 4


def test_a_row_goes_on_in_the_precision_that_it_was_begun_in(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "bfloat16_pays", lambda: True)
    with open(tmp_path / "rows" / "discs_32_original.flags", "a") as file:
        file.write("--mixed_precision=mixed_bfloat16\n")
    begun = tmp_path / "runs" / "discs_32_original_seed0"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text(Config(mixed_precision="float32").to_json())
    options = run.Options(rows=("discs_32_original",), seeds=("0", "1"))
    assert "--mixed_precision=mixed_bfloat16" in run.command("discs_32_original", "0", options)  # nothing trained yet
    (begun / "data.json").write_text("{}")
    assert "--mixed_precision=float32" in run.command("discs_32_original", "0", options)
    assert "--mixed_precision=mixed_bfloat16" in run.command("discs_32_original", "1", options)


@pytest.mark.parametrize("pays", [True, False])
def test_rows_in_bfloat16_are_trained_in_float32_where_that_is_faster(rows, tmp_path, monkeypatch, pays):
    monkeypatch.setattr(run, "bfloat16_pays", lambda: pays)
    with open(tmp_path / "rows" / "discs_32_original.flags", "a") as file:
        file.write("--mixed_precision=mixed_bfloat16\n")
    assert run.main(run.Options(rows=("discs_32_bicubic",))) == 0
    assert ["--mixed_precision=float32" in command for command in rows] == [not pays, False]


@pytest.mark.slow
def test_whether_bfloat16_pays_is_measured(monkeypatch):
    monkeypatch.setattr(run.timing, "SLOW", 1000.0)  # no machine lies beyond it
    assert run.bfloat16_pays()
    monkeypatch.undo()
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0, stdout="14.6\n"))
    assert not run.bfloat16_pays()


def test_what_another_command_has_trained_meanwhile_is_not_trained_again(rows, monkeypatch):
    options = run.Options(rows=("discs_32_bicubic",))
    jobs = run.jobs(options)
    assert run.main(options) == 0
    monkeypatch.setattr(run, "jobs", lambda options: jobs)
    assert run.main(options) == 0
    assert len(rows) == 2  # T and the row, once each


def test_a_teacher_that_is_there_but_not_measured_is_measured(rows, tmp_path):
    teacher = tmp_path / "runs" / "discs_32_original_seed0" / "original"
    teacher.mkdir(parents=True)
    (teacher / "done.json").write_text("{}")
    assert run.jobs(run.Options(rows=("discs_32_bicubic",))) == [("discs_32_original", "0"), ("discs_32_bicubic", "0")]


def test_a_training_gets_the_signal_to_end_and_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.3)\n    pathlib.Path('saved').touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\npathlib.Path('ready').touch()\ntime.sleep(60)\n"
    )

    def preempt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=preempt).start()
    assert run.train([sys.executable, "-c", code]) == 143
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    assert run.train([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


def test_results_of_commands_side_by_side_are_all_noted(rows, tmp_path):
    names = [f"discs_32_x{number}" for number in range(4)]
    for name in names:
        (tmp_path / "rows" / f"{name}.flags").write_text("--methods=bicubic\n")
        folder = tmp_path / "runs" / name
        (folder / "bicubic").mkdir(parents=True)
        found = [
            dict.fromkeys(COLUMNS, "1") | {"method": "bicubic", "split": split} for split in ("test", "validation")
        ]
        write_rows(folder / "results.csv", COLUMNS, found)
        (folder / "data.json").write_text("{}")
        (folder / "config.json").write_text(Config().to_json())
    threads = [threading.Thread(target=run.note, args=(name, "1", tmp_path / "runs" / name, 2.0)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["row"] for row in read_rows(tmp_path / "results" / "discs_32.csv")] == sorted(2 * names)


def test_counts_of_todays_models_are_no_other_results(rows, tmp_path):
    options = run.Options(rows=("discs_32_bicubic",), again=True)
    assert run.main(options) == 0
    path = tmp_path / "results" / "discs_32.csv"
    counted = [row | {"macs": "7", "macs_downscaler": "8", "params": "9"} for row in read_rows(path)]
    write_rows(path, run.COLUMNS, counted)
    assert run.jobs(options) == []
    write_rows(path, run.COLUMNS, [row | {"top1": "0.9"} for row in counted])
    assert run.jobs(options) == [("discs_32_original", "0"), ("discs_32_bicubic", "0")]


def test_generic_rows_have_no_teacher(rows, tmp_path):
    (tmp_path / "rows" / "generic_net_bicubic.flags").write_text("--methods=\n")
    assert run.main(run.Options(rows=("generic_net_bicubic",))) == 0
    assert rows == [
        ["--flagfile=rows/generic_net_bicubic.flags", "--seed=0", "--run_dir=runs/generic_net_bicubic_seed0"]
    ]


def test_a_training_that_ends_badly_stops_the_list(rows, capsys):
    assert run.main(run.Options(rows=("discs_32_original",), seeds=("7", "0"))) == 143
    assert "ended with code 143; the same command goes on" in capsys.readouterr().err
    assert len(rows) == 1


def test_mistakes_are_named(rows, tmp_path):
    with pytest.raises(FlagError, match="--rows takes names that --list shows. Received: other"):
        run.Options(rows=("other",))
    with pytest.raises(FlagError, match="--seeds takes whole numbers"):
        run.Options(rows=("discs_32_original",), seeds=("a",))
    with pytest.raises(FlagError, match="--seeds takes whole numbers.*Received: '00'"):
        run.Options(rows=("discs_32_original",), seeds=("00",))
    with pytest.raises(FlagError, match="--rows must name at least one row"):
        run.Options()
    assert run.main(run.Options(list=True, dataset="folder:x")) == 0
    with pytest.raises(FlagError, match="of one folder of photographs.*Received: folder:x, with rows of fine_detail"):
        (tmp_path / "rows" / "discs_32_other.flags").write_text("--dataset=fine_detail\n")
        run.Options(rows=("discs_32_other", "discs_32_original"), dataset="folder:x")
    with pytest.raises(FlagError, match="of one folder of photographs.*with rows of folder:thumbnails"):
        (tmp_path / "rows" / "generic_net_bicubic.flags").write_text("--dataset=folder:thumbnails\n")
        run.Options(rows=("generic_net_bicubic",), dataset="folder:x")
