"""Several machines, each a process on localhost: one result, one writer, and a clear end when one of them is gone."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from multi_worker_helpers import Machines, await_pause, environment
from run_helpers import write_discs
from train_helpers import assert_same, rows, state_of

from thumbnet_tf import distribution, train
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.distribution import Job, Task, task_of
from thumbnet_tf.runs import RunDir

STEPS = 5  # of 21 training images in batches of 4
TWO = ("a:1", "b:2")


# --- TF_CONFIG


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "expected"),
    [
        ({"worker": ["a:1", "b:2"]}, "worker", 0, Task("worker 0", True, TWO)),
        ({"worker": ["a:1", "b:2"]}, "worker", 1, Task("worker 1", False, TWO)),
        ({"worker": ["b:2"], "chief": ["a:1"]}, "chief", 0, Task("chief 0", True, TWO)),
        ({"worker": ["b:2"], "chief": ["a:1"]}, "worker", 0, Task("worker 0", False, TWO)),
    ],
)
def test_place_in_the_job(cluster, kind, index, expected):
    for strategy in ("multi_worker", "auto"):
        assert task_of(Config(strategy=strategy), environment(cluster, kind, index)) == expected
    for strategy in ("none", "mirrored"):
        assert task_of(Config(strategy=strategy), environment(cluster, kind, index)) == Task()


def test_auto_stays_on_one_machine_where_no_other_is_named():
    for variables in ({}, {"TF_CONFIG": "{}"}, environment({"worker": ["a:1"]}, "worker", 0)):
        assert task_of(Config(), variables) == Task()
    assert task_of(Config(strategy="multi_worker"), environment({"worker": ["a:1"]}, "worker", 0)).machines == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "worker",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1", "b:2"]}}',
        '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": "0"}}',
        '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "evaluator", "index": 0}}',
        '{"cluster": {"worker": ["a", "b"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:2"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"chief": ["a:1", "b:2"]}, "task": {"type": "chief", "index": 0}}',
    ],
)
def test_a_wrong_tf_config_is_told_with_a_right_one(text):
    with pytest.raises(FlagError) as error:
        task_of(Config(strategy="multi_worker"), {"TF_CONFIG": text})
    message = str(error.value)
    assert message.endswith(f"Received: {text or 'nothing'}")
    example = message[message.index("{") : message.index(": the same cluster")]
    assert task_of(Config(strategy="multi_worker"), {"TF_CONFIG": example}).machines == 2


# --- agreement


def test_alone_nothing_is_asked_of_others():
    job = Job(tf.distribute.get_strategy())
    job._total = None  # would be called if it were
    assert job.sum([True, 3]) == [1, 3]
    assert job.from_chief(7) == 7
    with job.chief_first():
        job.barrier()
    with pytest.raises(tf.errors.UnavailableError), job.watched(lambda: "never said"):
        raise tf.errors.UnavailableError(None, None, "disk")


def test_a_lost_machine_is_one_line():
    job = Job(tf.distribute.get_strategy(), Task("worker 1", False, TWO))
    text = "Graph execution error:\n\nCollective ops is aborted by: task 0 stopped\nsending beats [type.googleapis.c]"
    with pytest.raises(UserError) as error, job.watched(lambda: "thumbnet, step 3"):
        raise tf.errors.UnavailableError(None, None, text)
    assert str(error.value).startswith("thumbnet, step 3: another machine was lost")
    assert "the last checkpoint is intact" in str(error.value)
    assert str(error.value).endswith("Received: task 0 stopped sending beats")


def test_a_directory_that_is_not_shared_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "SHARED_SECONDS", 0.1)
    chief, other = (Job(tf.distribute.get_strategy(), Task("", is_chief, TWO)) for is_chief in (True, False))
    path = tmp_path / "start"
    distribution.await_shared(path, chief, "2\n")  # it has just written the file
    path.write_text("1\n")  # of another start
    with pytest.raises(UserError, match=f"one directory that all machines share; .* Received: {tmp_path}$"):
        distribution.await_shared(path, other, "2\n")
    path.write_bytes(b"\xff\n2")
    distribution.await_shared(path, other)
    path.write_text("2\n")
    distribution.await_shared(path, other, "2\n")


def test_machines_with_other_flags_are_refused(tmp_path):
    run = RunDir(tmp_path)
    run.claim(Config(methods=("direct",)))
    run.join(Config(methods=("direct",), data_dir="elsewhere"))
    with pytest.raises(UserError, match="epochs was 10 and is now 3"):
        run.join(Config(methods=("direct",), epochs=3))
    job = types.SimpleNamespace(is_chief=True, machines=2, from_chief=lambda value: 7)  # what the first machine says
    with pytest.raises(UserError, match="--methods must be the same on all machines, .* others. Received: bicubic$"):
        train._claim(RunDir(tmp_path), Config(methods=("bicubic",)), job)


def test_a_cpu_is_one_replica():
    with pytest.raises(FlagError, match="--cpu_devices must be 1 with several machines: .* Received: 2"):
        distribution._multi_worker(Config(cpu_devices=2), Task("worker 0", True, TWO))


# --- whole jobs


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    images = tmp_path_factory.mktemp("discs")
    write_discs(images / "train", 8)  # 3 of 24 become validation: uneven shares of one batch
    write_discs(images / "test", 3)
    return [
        *(f"--dataset=folder:{images}", "--image_size=32", "--ratio=2", "--width=0.0625", "--downscaler_width=4"),
        *("--fm_tap=stage1", "--batch_size=4", "--teacher_epochs=1", "--epochs=1", "--methods=thumbnet"),
        *("--optimizer=sgd", "--learning_rate=0.01", "--teacher_learning_rate=0.01", "--clip_norm=0.5"),
        "--mixup_alpha=1",
        "--notensorboard",
    ]


@pytest.fixture(scope="module")
def two(arguments, tmp_path_factory) -> tuple[RunDir, list[tuple[int, str]]]:
    """Returns a run of two machines, and how each ended; beside it lies a run of one machine."""
    folder = tmp_path_factory.mktemp("runs")
    with (
        Machines(2, *arguments, f"--run_dir={folder}/two") as together,
        Machines(1, *arguments, f"--run_dir={folder}/one", "--strategy=none") as alone,
    ):
        ends = together.ends()
        assert [code for code, _ in [*ends, *alone.ends()]] == [0, 0, 0], ends
    return RunDir(folder / "two"), ends


@pytest.mark.slow
@pytest.mark.xdist_group("multi_worker")
def test_two_machines_train_like_one(two):
    run, ends = two
    one = RunDir(run.path.parent / "one")
    for method, name in (("original", "teacher"), ("thumbnet", "downscaler"), ("thumbnet", "student")):
        alone, together = one.load_model(method, name), run.load_model(method, name)
        for x, y in zip(alone.variables, together.variables, strict=True):
            np.testing.assert_allclose(y, x, atol=1e-5, rtol=0, err_msg=f"{method} {name} {x.path}")
    for method in ("original", "thumbnet"):
        [alone], [together] = rows(one.path / method / "metrics.csv"), rows(run.path / method / "metrics.csv")
        assert together["step"] == alone["step"] == str(STEPS)
        for column in alone:
            if alone[column] and column != "images_per_second":
                assert float(together[column]) == pytest.approx(float(alone[column]), rel=1e-4, abs=1e-5), column
    assert (run.path / "results.csv").read_text() == (one.path / "results.csv").read_text()
    assert "test split, 9 images" in ends[0][1]
    assert "test split" not in ends[1][1]
    assert f"done; the first machine has written models, logs and results to {run.path}" in ends[1][1]
    assert (run.path / "log.txt").read_text().count("validation: 3 images") == 1  # the chief's alone
    names = {path.relative_to(run.path) for path in run.path.rglob("*")}
    assert names - {path.relative_to(one.path) for path in one.path.rglob("*")} == {pathlib.Path("start")}


@pytest.mark.slow
@pytest.mark.xdist_group("multi_worker")
def test_a_killed_machine_ends_the_job_and_both_resume_bit_for_bit(arguments, two, tmp_path):
    command, pause = [*arguments, f"--run_dir={tmp_path}/run", "--checkpoint_seconds=0"], tmp_path / "pause"
    with Machines(2, *command, PAUSE=pause, PAUSE_STEP=STEPS + 3) as machines:  # thumbnet's fourth step
        await_pause(pause, machines)
        machines.processes[1].send_signal(signal.SIGKILL)
        started = time.monotonic()
        (code, output), (killed, _) = machines.ends()
    assert time.monotonic() - started < 60
    assert (code, killed) == (1, -signal.SIGKILL)
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: thumbnet, step 3: another machine was lost or has ended")
    assert "the last checkpoint is intact" in last
    assert "Traceback" not in output
    again = Machines(2, *command).ends()
    assert [code for code, _ in again] == [0, 0], again
    assert all("thumbnet: resuming at step 3" in output for _, output in again)
    assert_same(state_of(two[0]), state_of(RunDir(tmp_path / "run")))


@pytest.mark.slow
@pytest.mark.xdist_group("multi_worker")
def test_a_killed_chief_ends_the_job(arguments, tmp_path):
    pause = tmp_path / "pause"
    with Machines(2, *arguments, f"--run_dir={tmp_path}/run", PAUSE=pause, PAUSE_STEP=2) as machines:
        await_pause(pause, machines)
        machines.processes[0].send_signal(signal.SIGKILL)
        pause.unlink()
        started = time.monotonic()
        (killed, _), (code, output) = machines.ends()
    assert time.monotonic() - started < 60
    assert (killed, code) == (-signal.SIGKILL, 1)
    assert output.strip().splitlines()[-1].startswith("error: original, step ")
    assert "Traceback" not in output


@pytest.mark.slow
def test_sigterm_ends_a_machine_that_does_not_train_yet():
    code = (
        "import time\nfrom thumbnet_tf import distribution\nfrom thumbnet_tf.config import Config\n"
        "distribution.start(Config(strategy='multi_worker'))\nprint('started', flush=True)\ntime.sleep(60)\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = environment({"worker": [address]}, "worker", 0)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=os.environ | place, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "started\n"
            process.terminate()
            assert process.wait(timeout=20) == -signal.SIGTERM
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.xdist_group("multi_worker")
def test_sigterm_to_any_machine_saves_and_ends_all_and_both_resume(arguments, two, tmp_path):
    command, pause = [*arguments, f"--run_dir={tmp_path}/run"], tmp_path / "pause"
    with Machines(2, *command, PAUSE=pause, PAUSE_STEP=2) as machines:
        await_pause(pause, machines)
        machines.processes[1].send_signal(signal.SIGTERM)
        pause.unlink()
        for code, output in machines.ends():
            assert code == 128 + signal.SIGTERM
            assert "interrupted by SIGTERM; the state is saved." in output
    again = Machines(2, *command).ends()
    assert [code for code, _ in again] == [0, 0], again
    assert all("original: resuming at step 3" in output for _, output in again)
    assert_same(state_of(two[0]), state_of(RunDir(tmp_path / "run")))


@pytest.mark.slow
@pytest.mark.xdist_group("multi_worker")
def test_what_one_machine_began_two_can_go_on_with(arguments, two, tmp_path):
    command, pause = [*arguments, f"--run_dir={tmp_path}/run"], tmp_path / "pause"
    with Machines(1, *command, PAUSE=pause, PAUSE_STEP=2) as machine:
        await_pause(pause, machine)
        machine.processes[0].send_signal(signal.SIGTERM)
        pause.unlink()
        assert machine.ends()[0][0] == 128 + signal.SIGTERM
    again = Machines(2, *command).ends()
    assert [code for code, _ in again] == [0, 0], again
    assert all("original: resuming at step 3" in output for _, output in again)
    [whole], [parts] = (rows(run / "thumbnet" / "metrics.csv") for run in (two[0].path, tmp_path / "run"))
    for column in ("loss", "accuracy", "agreement", "val_loss"):
        assert float(parts[column]) == pytest.approx(float(whole[column]), rel=1e-4), column
    x, y = (RunDir(run).load_model("thumbnet", "student").variables for run in (two[0].path, tmp_path / "run"))
    for whole, parts in zip(x, y, strict=True):
        np.testing.assert_allclose(parts, whole, atol=1e-5, rtol=0, err_msg=whole.path)


@pytest.mark.slow
@pytest.mark.xdist_group("multi_worker")
def test_a_run_directory_of_its_own_ends_the_job(arguments, tmp_path):
    own = {0: (f"--run_dir={tmp_path}/mine",), 1: (f"--run_dir={tmp_path}/other",)}
    (first, said), (second, told) = Machines(2, *arguments, own=own).ends()
    assert (first, second) == (1, 1)
    assert told.strip().splitlines()[-1].startswith("error: --run_dir must be one directory that all machines share")
    assert "another machine was lost or has ended" in said.strip().splitlines()[-1]
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("multi_worker")
def test_a_batch_that_can_not_be_shared_is_told_by_all(arguments, tmp_path):
    for code, output in Machines(2, *arguments, f"--run_dir={tmp_path}/run", "--batch_size=5").ends():
        assert code == 1
        assert (
            output.strip().splitlines()[-1] == "error: --batch_size must be a multiple of the 2 replicas. Received: 5"
        )
    assert not (tmp_path / "run").exists()
