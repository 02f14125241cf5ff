"""What a user sees on the command line: one clear line and an exit code for each mistake, help, a real small run."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from absl import flags as absl_flags
from train_helpers import assert_same, state_of

from thumbnet_tf import flags
from thumbnet_tf.config import Config, FlagError, UserError, to_flagfile
from thumbnet_tf.data.fine_detail import FineDetail
from thumbnet_tf.runs import RunDir

ROOT = pathlib.Path(__file__).parent.parent


def command(*arguments: str, module: str = "train", cwd: pathlib.Path = ROOT, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    call = [sys.executable, "-m", f"thumbnet_tf.{module}", *arguments]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **options)


def parse(*arguments: str) -> Config:
    values = absl_flags.FlagValues()
    flags.define(Config, flag_values=values)
    absl_flags.DEFINE_string("flagfile", "", "", flag_values=values)
    rest = values(["train", *arguments])
    return flags.parsed(Config, rest[1:], flag_values=values)


def test_flags_become_the_configuration():
    cfg = parse("--methods=direct,no_fm", "--epochs=3", "--learning_rate=2", "--notensorboard", "--dataset=folder:x y")
    assert cfg == Config(
        methods=("direct", "no_fm"), epochs=3, learning_rate=2.0, tensorboard=False, dataset="folder:x y"
    )


def test_the_later_flag_wins_and_flagfiles_nest(tmp_path):
    (tmp_path / "base.flags").write_text("# a comment\n--epochs=2\n--seed=4\n")
    (tmp_path / "more.flags").write_text(f"--flagfile={tmp_path}/base.flags\n--epochs=5\n")
    assert parse(f"--flagfile={tmp_path}/more.flags").epochs == 5
    assert parse(f"--flagfile={tmp_path}/more.flags").seed == 4
    assert parse(f"--flagfile={tmp_path}/more.flags", "--epochs=7").epochs == 7


def test_run_flags_repeat_a_configuration(tmp_path):
    cfg = Config(methods=("no_mm",), seed=8, w_kd=0.25, tensorboard=False, dataset="folder:a b", run_dir="x")
    (tmp_path / "run.flags").write_text(to_flagfile(cfg, "header"))
    assert parse(f"--flagfile={tmp_path}/run.flags") == cfg


def test_a_word_that_is_no_flag_is_refused():
    with pytest.raises(UserError, match="takes flags only, as --name=value. Received: quickstart"):
        parse("quickstart")


def test_flagfile_name():
    assert flags.flagfile_name(["--epochs=1", "--flagfile=a/b.flags"]) == "a/b.flags"
    assert flags.flagfile_name(["--flagfile", "c.flags"]) == "c.flags"
    assert flags.flagfile_name(["--epochs=1"]) is None


def test_what_is_given_is_known_though_it_be_the_default(tmp_path):
    (tmp_path / "some.flags").write_text(f"--run_dir={Config.run_dir}\n")
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("flagfile", "", "", flag_values=values)
    flags.define(Config, flag_values=values)
    values(["train", "--epochs=3", f"--flagfile={tmp_path}/some.flags"])
    assert [name for name in ("run_dir", "epochs", "ratio", "other") if flags.is_given(name, values)] == [
        "run_dir",
        "epochs",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epohcs=3",), "Unknown command line flag 'epohcs'. Did you mean: epochs"),  # found by absl
        pytest.param(("--methods=bicubik",), "Received: 'bicubik'", marks=pytest.mark.slow),  # found by Config
    ],
)
def test_a_wrong_flag_ends_with_one_line_and_code_2(arguments, message, tmp_path):
    result = command(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (
            "train",
            ("--dataset=folder:nowhere",),
            "--dataset=folder:PATH takes an existing folder; correct the path (commands that take no --dataset have "
            "--data_dir to say where it lies now). Received: nowhere",
        ),
        pytest.param(
            "evaluate",
            ("--run_dir=nowhere",),
            "--run_dir must hold the config.json of a run made by thumbnet_tf.train. Received: nowhere",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["train", "evaluate"],
)
def test_a_mistake_found_later_ends_with_one_line_and_code_1(module, arguments, message, tmp_path):
    result = command(*arguments, module=module, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == f"error: {message}"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("--seed=-1", absl_flags.Error, "flag --seed=-1: -1 is not an integer in the range [0, 2147483647]"),
        ("--epochs=many", absl_flags.Error, "flag --epochs=many"),
        ("--flagfile=nowhere.flags", absl_flags.Error, "nowhere.flags"),
        ("--ratio=3", FlagError, "--ratio must be 2 or 4. Received: 3"),
    ],
)
def test_other_wrong_flags_are_named(argument, error, message):
    with pytest.raises(error, match=re.escape(message)):
        parse(argument)


def test_a_home_directory_is_found_as_a_shell_would(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("--run_dir=~/runs/x", "--cache_dir=a/~/b").run_dir == "/home/me/runs/x"
    assert parse("--cache_dir=a/~/b").cache_dir == "a/~/b"


@pytest.mark.parametrize("module", ["train", pytest.param("predict", marks=pytest.mark.slow)])
def test_help_lists_the_options(module):
    result = command("--help", module=module)
    assert result.returncode == 1  # absl's way
    assert "--run_dir" in result.stdout
    assert f"python -m thumbnet_tf.{module}" in result.stdout


@pytest.mark.slow
def test_a_flagfile_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "x.flags").write_bytes(bytes(range(128, 256)))
    result = command(f"--flagfile={tmp_path}/x.flags")
    assert result.returncode == 2
    assert "can't decode byte" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.fixture
def sliver(monkeypatch, tmp_path_factory):
    """Prepares a sliver of fine_detail, where the smoke run looks for it."""
    data_dir = tmp_path_factory.mktemp("tfds")
    monkeypatch.setattr(FineDetail, "split_sizes", {"train": 60, "validation": 12, "test": 24})
    FineDetail(data_dir=data_dir).download_and_prepare()
    return data_dir


@pytest.mark.slow
def test_smoke_flags_run_every_step(sliver, tmp_path):
    result = command(
        "--flagfile=experiments/smoke.flags", f"--data_dir={sliver}", f"--run_dir={tmp_path}/run", "--batch_size=30"
    )
    assert result.returncode == 0, result.stderr
    for method in ("original", "direct", "bicubic", "thumbnet"):
        assert any(line.startswith(method) and line.count("%") == 3 for line in result.stdout.splitlines())
    assert "test split, 24 images" in result.stdout
    again = command(f"--flagfile={tmp_path}/run/run.flags")
    assert again.returncode == 0, again.stderr
    assert again.stdout == result.stdout


def arguments_of_a_short_run(data_dir, run_dir) -> list[str]:
    return [
        "--flagfile=experiments/smoke.flags",
        f"--data_dir={data_dir}",
        f"--run_dir={run_dir}",
        "--methods=thumbnet",
        "--batch_size=4",
        "--teacher_epochs=2",
        "--epochs=2",
        "--checkpoint_seconds=0",
    ]


@contextlib.contextmanager
def started(*arguments: str, **options) -> Iterator[subprocess.Popen]:
    """Starts a training that doesn't outlive the block."""
    call = [sys.executable, "-m", "thumbnet_tf.train", *arguments]
    process = subprocess.Popen(call, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


STEPS = 30  # of each method of a short run: two epochs of 60 images in batches of 4


def steps_saved(run: RunDir) -> int:
    """Returns how many steps of all methods a start would not have to take again."""
    total = 0
    for method in ("original", "thumbnet"):
        saved = [int(path.stem.removeprefix("ckpt-")) for path in run.method(method).glob("checkpoints/*.index")]
        total += STEPS if run.is_done(method) else max(saved, default=0)
    return total


def await_steps(run: RunDir, count: int, process: subprocess.Popen) -> None:
    """Waits until so many steps are saved, or the process has ended."""
    end = time.monotonic() + 240
    while process.poll() is None and steps_saved(run) < count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_kill_9_at_ten_random_moments(sliver, tmp_path):
    whole, parts = RunDir(tmp_path / "whole"), RunDir(tmp_path / "parts")
    assert command(*arguments_of_a_short_run(sliver, whole.path)).returncode == 0
    rng = np.random.default_rng(0)
    amid = []  # the methods that were under way when they were killed
    for _ in range(10):
        with started(*arguments_of_a_short_run(sliver, parts.path), stderr=subprocess.DEVNULL) as process:
            await_steps(parts, steps_saved(parts) + rng.integers(1, 7), process)
            time.sleep(rng.uniform(0.0, 0.1))  # about a step: any moment of it
        left = {path.parent.parent.name for path in parts.path.glob("*/checkpoints/*.index")}
        if process.returncode == -signal.SIGKILL:
            amid += left - set(parts.finished_methods())
    assert len(amid) >= 6 and set(amid) == {"original", "thumbnet"}
    result = command(*arguments_of_a_short_run(sliver, parts.path))
    assert result.returncode == 0, result.stderr
    assert_same(state_of(whole), state_of(parts))


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_its_own_code(sliver, tmp_path):
    arguments = arguments_of_a_short_run(sliver, tmp_path / "run")
    with started(*arguments, stderr=subprocess.PIPE, text=True) as process:
        await_steps(RunDir(tmp_path / "run"), 1, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "interrupted by SIGTERM; the state is saved. The same command goes on." in errors
