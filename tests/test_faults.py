"""What can go wrong in a run: each is told in one line, and nothing already on disk is lost."""

import dataclasses
import errno
import fcntl
import os
import shutil
import signal

import pytest
import tensorflow as tf
from train_helpers import assert_same, interrupt_at, state_of

from thumbnet_tf import cache_files, loop, teachers
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.data import sources
from thumbnet_tf.runs import RunDir
from thumbnet_tf.train import train


def test_another_configuration_is_refused_with_the_difference_named(config, direct_run):
    before = (direct_run.path / "config.json").read_text()
    with pytest.raises(UserError) as error:
        train(config(methods=("direct",), learning_rate=0.5, seed=3))
    assert "seed was 0 and is now 3" in str(error.value)
    assert "learning_rate was 0.003 and is now 0.5" in str(error.value)
    assert (direct_run.path / "config.json").read_text() == before
    train(config(methods=("direct",), checkpoint_seconds=9.0))  # only says how often, so it may change


def test_teacher_and_images_are_the_same_wherever_they_lie(tmp_path):
    run = RunDir(tmp_path)
    cfg = Config(teacher="runs/r/ratio2")
    run.claim(cfg)
    run.bind_data({"classes": []})
    run.claim(dataclasses.replace(cfg, teacher=str(tmp_path / "kept" / "ratio2")))
    with pytest.raises(UserError, match="teacher was 'runs/r/ratio2' and is now 'train'"):
        run.claim(dataclasses.replace(cfg, teacher="train"))
    with pytest.raises(UserError, match="--teacher must be where T lies now, or what it was before. Received: rusn/r"):
        teachers.facts(dataclasses.replace(cfg, teacher="rusn/r"), run)
    assert teachers.facts(cfg, run) == {}  # gone since; the run has its own copy
    images = dataclasses.replace(cfg, dataset="folder:then")
    moved = RunDir(tmp_path / "moved")
    moved.path.mkdir()
    moved.claim(images)
    moved.bind_data({"classes": []})
    moved.claim(dataclasses.replace(images, dataset="folder:now"))
    with pytest.raises(UserError, match="dataset was 'folder:then' and is now 'tf_flowers'"):
        moved.claim(dataclasses.replace(images, dataset="tf_flowers"))


@pytest.mark.slow
def test_images_are_the_same_wherever_they_lie(config, folder, tmp_path):
    run = train(config(methods=("direct",)))
    kept = shutil.move(folder, tmp_path / "kept")
    assert train(config(methods=("direct", "area"), dataset=f"folder:{kept}")).path == run.path
    image = next(kept.rglob("*.png"))
    image.write_bytes(tf.io.encode_png(255 - tf.io.decode_png(image.read_bytes())).numpy())
    with pytest.raises(UserError, match=r"the data changed since this run started \("):
        train(config(methods=("direct", "area", "bicubic"), dataset=f"folder:{kept}"))


def test_where_files_cannot_be_locked_is_one_line(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    refused = pytest.raises(UserError, match=r"run must lie where files can be locked \(No locks available\)")
    with refused, RunDir(tmp_path / "run").lock():
        pass
    with (
        pytest.raises(UserError, match="cache must lie where files can be locked"),
        cache_files.lock(tmp_path / "cache"),
    ):
        pass


@pytest.mark.usefixtures("direct_run")
def test_changed_data_is_refused_on_resume(config, folder):
    shutil.copy(folder / "train" / "red" / "0.png", folder / "train" / "red" / "99.png")
    with pytest.raises(UserError, match=r"the data changed since this run started"):
        train(config(methods=("direct", "bicubic")))


@pytest.mark.slow
def test_an_image_changed_in_place_is_refused_on_resume(config, folder):
    path = folder / "train" / "red" / "0.png"
    image = path.read_bytes()
    path.write_bytes(image + b"one")  # behind the image's end, where no decoder looks
    train(config(methods=("direct",)))
    path.write_bytes(image + b"two")
    with pytest.raises(UserError, match=r"the data changed since this run started \(contents was"):
        train(config(methods=("direct", "bicubic")))


def test_a_batch_that_does_not_fit_tells_what_to_lower(config, monkeypatch):
    def out_of_memory(*args):
        def step(batch):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

        return step, step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_compiled", out_of_memory)
        with pytest.raises(UserError, match=r"original, step 0: a batch doesn't fit into memory; lower --batch_size"):
            train(config(methods=("direct",)))


@pytest.mark.parametrize("content", [b"no image", b"", None])
def test_an_image_that_is_lost_while_training_is_told(config, folder, monkeypatch, content):
    cfg = config(methods=("direct",), memory_limit_gb=0.0)
    path, read = next((folder / "train" / "red").iterdir()), sources.load

    def load(*args, **kwargs):
        dataset = read(*args, **kwargs)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        return dataset

    monkeypatch.setattr(sources, "load", load)
    told = {
        b"no image": r"an image can't be read any more \(Unknown image file format",
        b"": r"an image can't be read any more \(Input is empty",
        None: rf"a file of the data is gone \({path}; No such file",
    }
    with pytest.raises(
        UserError, match=rf"original, step \d: {told[content]}.*\); restore it and give the same command"
    ):
        train(cfg)


def test_threads_can_not_change_in_a_process_that_runs(config):
    tf.constant(1) + 1
    with pytest.raises(UserError, match=r"--intra_op_threads can't change once TensorFlow runs .* Received: 7"):
        train(config(intra_op_threads=7))


def test_a_folder_with_other_files_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="must be a new, an empty or a run's directory"):
        train(config())
    assert os.listdir(tmp_path / "run") == ["thesis.txt"]


def test_a_second_process_is_kept_out(config, tmp_path):
    with RunDir(tmp_path / "run").lock(), pytest.raises(UserError, match="another process is at work in --run_dir"):
        train(config())


def test_nan_stops_with_the_steps_named(config):
    with pytest.raises(
        UserError, match=r"original: .*loss.* became NaN or infinite in the 25 steps before step 6; lower"
    ):
        train(config(teacher_learning_rate=1e30, clip_norm=0.0, optimizer="sgd"))


def test_too_many_open_files_are_not_taken_for_too_large_a_batch():
    error = tf.errors.ResourceExhaustedError(None, None, "data/1.jpg; Too many open files")
    expected = pytest.raises(UserError, match=r"original, step 3: .*no more open files; raise its limit \(ulimit -n\)")
    with expected, loop.explained(Config(), lambda: "original, step 3"):
        raise error


@pytest.mark.slow
def test_a_failed_checkpoint_leaves_the_last_one(config, direct_run, monkeypatch):
    whole = state_of(direct_run)
    save, saved = tf.train.CheckpointManager.save, []

    def full_disk(self, *args, **kwargs):
        if len(saved) == 3:
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
        saved.append(1)
        return save(self, *args, **kwargs)

    message = r"checkpoints can't be written \(No space left on device\); what was saved before is intact"
    with monkeypatch.context() as patch:
        patch.setattr(tf.train.CheckpointManager, "save", full_disk)
        with pytest.raises(UserError, match=message):
            train(config("failed", methods=("direct",)))
    assert_same(whole, state_of(train(config("failed", methods=("direct",)))))


@pytest.mark.slow
def test_a_broken_checkpoint_falls_back_to_the_one_before(config, monkeypatch, tmp_path):
    whole = state_of(train(config("whole", methods=("direct",))))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGINT)
        with pytest.raises(loop.Interrupted):
            train(config(methods=("direct",)))
    folder = tmp_path / "run" / "original" / "checkpoints"
    newest = sorted(folder.glob("ckpt-*.data*"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    assert_same(whole, state_of(train(config(methods=("direct",)))))


def test_a_broken_model_file_is_one_line(tmp_path):
    run = RunDir(tmp_path)
    run.method("direct").mkdir()
    (run.path / "direct" / "student.keras").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"student.keras can't be loaded as a Keras model"):
        run.load_model("direct", "student")
    with pytest.raises(UserError, match=r"finish the training first. Received: .*/area/student.keras, which"):
        run.load_model("area", "student")


def test_evaluate_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="must hold the config.json of a run"):
        RunDir.existing(tmp_path)
    with pytest.raises(UserError, match="Received: nothing"):
        RunDir.existing("")


def test_a_mistake_before_the_first_step_can_be_corrected(config, direct_run, tmp_path):
    mistakes = [
        ({"dataset": "folder:nowhere"}, "--dataset=folder:PATH takes an existing folder; .* Received: nowhere"),
        ({"dataset": "folder:"}, "--dataset=folder:PATH takes a path; write folder:. for .* Received: none"),
        ({"batch_size": 999}, "--batch_size must not exceed the 27 train images; lower it or add images"),
        ({"teacher": "nowhere"}, "Received: nowhere, which holds no run"),
        ({"fm_tap": "stage9"}, "--fm_tap must be one of stage1, stage2 for this backbone. Received: 'stage9'"),
    ]
    for wrong, message in mistakes:
        with pytest.raises(UserError, match=message):
            train(config("second", **wrong))
        assert not (tmp_path / "second" / "original").exists()
    assert train(config("second", teacher=str(direct_run.path), methods=("direct",))).is_done("direct")


def test_an_unknown_tap_is_told_before_anything_is_trained(config, tmp_path):
    with pytest.raises(FlagError, match="--fm_tap must be one of stage1, stage2 for this backbone. Received: 'stage9'"):
        train(config(fm_tap="stage9"))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_first_start_that_died_early_can_be_repeated(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    (tmp_path / "run" / "config.json.partial").write_text("{")
    assert train(config(methods=("direct",))).is_done("direct")


def test_an_image_that_went_bad_is_a_change_of_data(config, folder, direct_run):
    options = {"teacher": str(direct_run.path), "on_bad_image": "skip"}
    train(config("second", methods=("direct",), **options))
    path = folder / "test" / "red" / "0.png"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"the data changed since this run started \(examples was .*\"test\": 9"):
        train(config("second", methods=("direct", "bicubic"), **options))


def test_a_teacher_of_other_classes_is_refused(config, folder, direct_run):
    for part in ("train", "test"):
        (folder / part / "red").rename(folder / part / "aquamarine")
    with pytest.raises(UserError, match="must know this dataset's classes in this order: aquamarine, blue, green"):
        train(config("second", teacher=str(direct_run.path)))


@pytest.mark.slow
def test_broken_caches_of_logits_are_computed_anew(config, direct_run):
    before = (direct_run.path / "results.csv").read_text()
    (direct_run.path / "direct" / "logits_test.npy").write_bytes(b"\x93NUMPY half")
    train(config(methods=("direct",)))
    assert (direct_run.path / "results.csv").read_text() == before


def test_metrics_without_steps_are_one_line(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step\n1,6\n2,12\n3,18\n")
    assert [row["epoch"] for row in loop._rows_until(path, 12)] == ["1", "2"]
    for text in ("epoch\n1\n", "epoch,step\n1\n", "epoch,step\n1,six\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"is no metrics.csv any more \(.*\); restore it, or delete it to go on"):
            loop._rows_until(path, 12)


def test_a_split_without_readable_images_is_told(config, folder):
    images = sorted((folder / "test").rglob("*.png"))
    for path in images:
        path.write_bytes(b"no image")
    cfg = config(on_bad_image="skip")
    with pytest.raises(UserError, match="the test split needs readable images; mend them. Received: test/blue/0.png "):
        sources.load(cfg)
    images[0].write_bytes((folder / "train" / "blue" / "0.png").read_bytes())
    assert sources.load(cfg).splits["test"].num_examples == 1


def test_broken_files_of_a_run_are_one_line(config, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGINT)
        with pytest.raises(loop.Interrupted):
            train(config(methods=("direct",)))
    path = RunDir(config().run_dir).path
    garbage = b"\xff\xfe\x00broken\n1\n"
    too_wide = (",".join(loop.COLUMNS) + "\n" + ",".join("1" for _ in (*loop.COLUMNS, "more"))).encode()
    for name, content in (
        ("original/metrics.csv", garbage),
        ("original/metrics.csv", too_wide),
        ("config.json", garbage),
    ):
        (path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.*restore it"):
            train(config(methods=("direct",)))
