"""The whole of `train`: a run from images to results, resumed bit for bit, refused where it must be."""

import csv
import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from thumbnet_tf import evaluate, loop
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.runs import RunDir
from thumbnet_tf.train import make_strategy, train

CLASSES = ("blue", "green", "red")


@pytest.fixture
def folder(tmp_path, photos):
    """Returns an image folder of three classes, tinted so that they can be told apart."""
    root = tmp_path / "photos"
    for index, name in enumerate(CLASSES):
        for part, count in (("train", 10), ("test", 3)):
            (root / part / name).mkdir(parents=True)
            images = photos(count, 40, seed=index if part == "train" else 10 + index).astype(int)
            images[..., 2 - index] += 60
            for i, image in enumerate(images):
                png = tf.io.encode_png(np.clip(image, 0, 255).astype(np.uint8))
                (root / part / name / f"{i}.png").write_bytes(png.numpy())
    return root


@pytest.fixture
def config(tmp_path, folder, tiny_resnet):
    def make(name: str = "run", **values) -> Config:
        common = {
            "dataset": f"folder:{folder}",
            "image_size": 32,
            "ratio": 2,
            "width": 0.0625,
            "downscaler_width": 4,
            "fm_tap": "stage1",
            "batch_size": 4,
            "teacher_epochs": 1,
            "epochs": 2,
            "checkpoint_seconds": 0.0,
            "methods": ("direct", "thumbnet"),
            "strategy": "none",
            "run_dir": str(tmp_path / name),
        }
        return Config(**{**common, **values})

    return make


def rows(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def state_of(run: RunDir) -> dict:
    """Returns all that a finished run must have alike: weights, metric rows without times, results."""
    weights = {}
    for path in sorted(run.path.rglob("*.keras")):
        model = keras.models.load_model(path, compile=False)
        for variable in model.variables:
            weights[f"{path.relative_to(run.path)}:{variable.path}"] = variable.numpy()
    metrics = {}
    for path in sorted(run.path.rglob("metrics.csv")):
        metrics[str(path.relative_to(run.path))] = [{**row, "images_per_second": ""} for row in rows(path)]
    return {"weights": weights, "metrics": metrics, "results": (run.path / "results.csv").read_text()}


def assert_same(a: dict, b: dict) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    assert len(a["weights"]) > 50
    for name, value in a["weights"].items():
        np.testing.assert_array_equal(value, b["weights"][name], err_msg=name)
    assert a["metrics"] == b["metrics"]
    assert a["results"] == b["results"]


def interrupt_at(monkeypatch, step: int, signal_number: int) -> list[int]:
    """Sends this process a signal before the given step of the process; returns the growing list of steps taken."""
    compiled, taken = loop._compiled, []

    def wrapped(*args):
        run_step, run_test = compiled(*args)

        def counting_step(batch):
            if len(taken) == step:
                os.kill(os.getpid(), signal_number)
            taken.append(1)
            run_step(batch)

        return counting_step, run_test

    monkeypatch.setattr(loop, "_compiled", wrapped)
    return taken


def test_a_run_leaves_what_is_promised(config):
    run = train(config())
    results = rows(run.path / "results.csv")
    assert ",".join(results[0]) == (
        "method,ratio,split,seed,examples,top1,top5,teacher_agreement,macs,macs_downscaler,params"
    )
    assert [(row["method"], row["split"], row["examples"]) for row in results] == [
        (method, split, count)
        for split, count in (("validation", "3"), ("test", "9"))
        for method in ("original", "direct", "thumbnet")
    ]
    by = {(row["method"], row["split"]): row for row in results}
    assert by["original", "test"]["teacher_agreement"] == "1.000000"
    assert by["original", "test"]["ratio"] == "1"
    assert by["thumbnet", "test"]["ratio"] == "2"
    assert by["thumbnet", "test"]["macs"] == by["direct", "test"]["macs"]
    assert int(by["thumbnet", "test"]["macs_downscaler"]) > int(by["direct", "test"]["macs_downscaler"]) == 0
    assert all(0 <= float(row[key]) <= 1 for row in results for key in ("top1", "top5", "teacher_agreement"))
    assert all(float(row["top5"]) == 1.0 for row in results)  # three classes

    metrics = rows(run.path / "thumbnet" / "metrics.csv")
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    assert [row["step"] for row in metrics] == ["6", "12"]  # 27 training images, batches of 4
    terms = {name: float(metrics[1][name]) for name in ("cl", "kd", "fm", "mm")}
    cfg = run.config()
    expected = cfg.w_cl * terms["cl"] + cfg.w_kd * terms["kd"] + cfg.w_fm * terms["fm"] + cfg.w_mm * terms["mm"]
    assert float(metrics[1]["loss"]) == pytest.approx(expected, rel=1e-5)
    assert 0 <= float(metrics[1]["agreement"]) <= 1
    assert float(metrics[1]["images_per_second"]) > 0
    assert rows(run.path / "original" / "metrics.csv")[0]["kd"] == ""

    data = json.loads((run.path / "data.json").read_text())
    assert data["classes"] == list(CLASSES)
    assert data["examples"] == {"train": 27, "validation": 3, "test": 9}
    assert not list(run.path.rglob("*partial*"))
    assert not list(run.path.rglob("checkpoints"))
    events = list((run.path / "thumbnet" / "tensorboard").iterdir())
    tags = set()
    for record in tf.data.TFRecordDataset([str(path) for path in events]):
        tags |= {value.tag for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value}
    assert {"loss", "kd", "val_accuracy", "learning_rate"} <= tags
    assert "original" in evaluate.table(run)


def test_results_equal_a_plain_count(config, folder):
    run = train(config(methods=("direct",)))
    teacher = keras.models.load_model(run.path / "original" / "teacher.keras", compile=False)
    right = total = 0
    for index, name in enumerate(CLASSES):
        for path in (folder / "test" / name).iterdir():
            image = tf.io.decode_png(path.read_bytes(), channels=3)
            crop = image[2:37, 2:37]  # 0.875 of 40 pixels
            crop = tf.round(tf.image.resize(tf.cast(crop, tf.float32), (32, 32), antialias=True))
            right += int(tf.argmax(teacher(crop[None], training=False)["logits"][0])) == index
            total += 1
    row = next(row for row in rows(run.path / "results.csv") if row["split"] == "test" and row["method"] == "original")
    assert float(row["top1"]) == pytest.approx(right / total, abs=1e-6)


@pytest.mark.parametrize("values", [{}, {"optimizer": "sgd", "ema_momentum": 0.9, "augment": "crop"}])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(config, monkeypatch, values):
    whole = state_of(train(config("whole", **values)))
    taken = []
    for step, number in ((3, signal.SIGINT), (4, signal.SIGTERM), (2, signal.SIGTERM)):  # teacher, thumbnet, thumbnet
        with monkeypatch.context() as patch:
            steps = interrupt_at(patch, step, number)
            with pytest.raises(loop.Interrupted) as stop:
                train(config("parts", **values))
            assert stop.value.exit_code == 128 + number
            taken.append(len(steps))
    assert taken == [4, 5, 3]  # the step that was under way is finished and saved
    with monkeypatch.context() as patch:
        steps = interrupt_at(patch, 10**9, signal.SIGINT)
        parts = state_of(train(config("parts", **values)))
    assert sum(taken) + len(steps) == 6 + 12  # no step was taken twice
    assert_same(whole, parts)


def test_a_finished_run_trains_nothing(config, monkeypatch):
    run = train(config())
    before = state_of(run)
    steps = interrupt_at(monkeypatch, 0, signal.SIGINT)
    train(config())
    assert steps == []
    assert_same(before, state_of(run))


def test_methods_can_be_added_to_a_finished_run(config):
    train(config(methods=("direct",)))
    run = train(config(methods=("bicubic",)))
    methods = [row["method"] for row in rows(run.path / "results.csv") if row["split"] == "test"]
    assert methods == ["original", "direct", "bicubic"]


def test_all_methods_see_the_same_first_batch_and_the_same_start(config):
    run = train(config(methods=("supervised", "no_fm"), epochs=1, learning_rate=0.0, weight_decay=0.0))
    a, b = (keras.models.load_model(run.path / m / "downscaler.keras", compile=False) for m in ("supervised", "no_fm"))
    for x, y in zip(a.trainable_variables, b.trainable_variables, strict=True):
        np.testing.assert_array_equal(x, y)
    teacher = keras.models.load_model(run.path / "original" / "teacher.keras", compile=False)
    student = keras.models.load_model(run.path / "no_fm" / "student.keras", compile=False)
    for x, y in zip(teacher.trainable_variables, student.trainable_variables, strict=True):
        np.testing.assert_array_equal(x, y)
    first, second = (rows(run.path / m / "metrics.csv")[0] for m in ("supervised", "no_fm"))
    assert first["cl"] == second["cl"]


def test_a_teacher_can_be_taken_from_another_run(config, tmp_path):
    train(config("first", methods=("direct",)))
    run = train(config("second", teacher=str(tmp_path / "first"), methods=("direct",)))
    for name in ("original", "direct"):
        np.testing.assert_array_equal(
            np.load(tmp_path / "first" / name / "logits_test.npy"), np.load(run.path / name / "logits_test.npy")
        )
    with pytest.raises(UserError, match="must have this run's --backbone=resnet18 --width=0.125 --image_size=32 and 3"):
        train(config("third", teacher=str(tmp_path / "first"), width=0.125))
    with pytest.raises(UserError, match="which doesn't exist"):
        train(config("fourth", teacher=str(tmp_path / "nowhere")))


def test_another_configuration_is_refused_with_the_difference_named(config):
    run = train(config(methods=("direct",)))
    before = (run.path / "config.json").read_text()
    with pytest.raises(UserError) as error:
        train(config(methods=("direct",), learning_rate=0.5, seed=3))
    assert "seed was 0 and is now 3" in str(error.value)
    assert "learning_rate was 0.003 and is now 0.5" in str(error.value)
    assert (run.path / "config.json").read_text() == before
    train(config(methods=("direct",), checkpoint_seconds=9.0))  # only says how often, so it may change


def test_changed_data_is_refused_on_resume(config, folder):
    train(config(methods=("direct",)))
    shutil.copy(folder / "train" / "red" / "0.png", folder / "train" / "red" / "99.png")
    with pytest.raises(UserError, match=r"the data changed since this run started"):
        train(config(methods=("direct", "bicubic")))


def test_a_folder_with_other_files_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="must be a new, an empty or a run's directory"):
        train(config())
    assert os.listdir(tmp_path / "run") == ["thesis.txt"]


def test_a_second_process_is_kept_out(config, tmp_path):
    with RunDir(tmp_path / "run").lock(), pytest.raises(UserError, match="another process is training in --run_dir"):
        train(config())


def test_nan_stops_with_the_steps_named(config):
    with pytest.raises(
        UserError, match=r"original: .*loss.* became NaN or infinite in the 25 steps before step 6; lower"
    ):
        train(config(teacher_learning_rate=1e30, clip_norm=0.0, optimizer="sgd"))


def test_a_failed_checkpoint_leaves_the_last_one(config, monkeypatch):
    whole = state_of(train(config("whole", methods=("direct",))))
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
            train(config(methods=("direct",)))
    assert_same(whole, state_of(train(config(methods=("direct",)))))


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


def test_a_broken_model_file_is_one_line(config):
    run = train(config(methods=("direct",)))
    (run.path / "direct" / "student.keras").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"student.keras can't be loaded as a Keras model"):
        run.load_model("direct", "student")


def test_evaluate_needs_a_run(tmp_path):
    with pytest.raises(UserError, match="must hold the config.json of a run"):
        RunDir.existing(tmp_path)
    with pytest.raises(UserError, match="Received: nothing"):
        RunDir.existing("")


def test_strategy(config):
    assert make_strategy(config(strategy="none")).num_replicas_in_sync == 1
    assert make_strategy(config(strategy="mirrored", cpu_devices=2)).num_replicas_in_sync == 2
    with pytest.raises(UserError, match="--batch_size must be a multiple of the 2 replicas. Received: 5"):
        make_strategy(config(strategy="mirrored", cpu_devices=2, batch_size=5))
    with pytest.raises(UserError, match="--cpu_devices can't change once TensorFlow runs"):
        make_strategy(config(cpu_devices=3))


def test_two_replicas_train_and_resume(config, monkeypatch):
    values = {"strategy": "mirrored", "cpu_devices": 2, "methods": ("bicubic",), "teacher_epochs": 1, "epochs": 1}
    whole = state_of(train(config("whole", **values)))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8, signal.SIGTERM)
        with pytest.raises(loop.Interrupted):
            train(config("parts", **values))
    assert_same(whole, state_of(train(config("parts", **values))))


def test_a_mistake_before_the_first_step_can_be_corrected(config, tmp_path, folder):
    for wrong in ({"dataset": "folder:nowhere"}, {"batch_size": 999}, {"teacher": "nowhere"}, {"fm_tap": "stage9"}):
        with pytest.raises(UserError):
            train(config(**wrong))
        assert not (tmp_path / "run" / "original").exists()
    run = train(config(methods=("direct",)))
    assert run.is_done("direct")


def test_an_unknown_tap_is_told_before_anything_is_trained(config, tmp_path):
    with pytest.raises(FlagError, match="--fm_tap must be one of stage1, stage2 for this backbone. Received: 'stage9'"):
        train(config(fm_tap="stage9"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_first_start_that_died_early_can_be_repeated(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    (tmp_path / "run" / "config.json.partial").write_text("{")
    assert train(config(methods=("direct",))).is_done("direct")


def test_an_image_that_went_bad_is_a_change_of_data(config, folder):
    train(config(methods=("direct",), on_bad_image="skip"))
    path = folder / "test" / "red" / "0.png"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"the data changed since this run started \(examples was .*\"test\": 9"):
        train(config(methods=("direct", "bicubic"), on_bad_image="skip"))


def test_skipped_images_are_listed(config, folder, caplog):
    (folder / "train" / "red" / "broken.png").write_bytes(b"not an image")
    run = train(config(methods=("direct",), on_bad_image="skip"))
    assert run.data_facts()["bad_images"]["train"][0][0] == "train/red/broken.png"
    assert "train/red/broken.png" in (run.path / "log.txt").read_text()


def test_a_teacher_of_other_classes_is_refused(config, folder, tmp_path):
    train(config("first", methods=("direct",)))
    for part in ("train", "test"):
        (folder / part / "red").rename(folder / part / "aquamarine")
    with pytest.raises(UserError, match="must know this dataset's classes in this order: aquamarine, blue, green"):
        train(config("second", teacher=str(tmp_path / "first")))


def test_moving_average_is_what_is_saved_and_validated(config, monkeypatch):
    momentum, weights = 0.5, []
    apply = keras.optimizers.SGD.apply_gradients

    def noting(self, grads_and_vars, **kwargs):
        result = apply(self, grads_and_vars, **kwargs)
        kernel = next(v for v in self._trainable_variables if v.path.endswith("logits/kernel"))
        tf.py_function(lambda value: weights.append(value.numpy().copy()), [kernel.value], [])
        return result

    monkeypatch.setattr(keras.optimizers.SGD, "apply_gradients", noting)
    values = {"optimizer": "sgd", "ema_momentum": momentum, "methods": ("direct",), "weight_decay": 0.0}
    run = train(config(**values))
    assert len(weights) == 6
    average = None
    for value in weights:  # Keras starts from the first value
        average = value if average is None else momentum * average + (1 - momentum) * value
    teacher = run.load_model("original", "teacher")
    saved = teacher.get_layer("logits").kernel.numpy()
    assert np.abs(saved - weights[-1]).max() > 1e-6
    np.testing.assert_allclose(saved, average, atol=1e-6)


def test_shipped_model_equals_its_parts(config, photos):
    run = train(config(methods=("bicubic", "thumbnet"), mixed_precision="mixed_bfloat16", epochs=1))
    images = photos(5, 32)
    for method in ("bicubic", "thumbnet"):
        shipped = run.load_model(method, "shipped")
        small, student = evaluate.load_parts(run, method)
        thumbnails = small(images, training=False).numpy()
        outputs = shipped(images)
        assert {layer.compute_dtype for layer in shipped.layers} == {"float32"}
        if method == "bicubic":
            np.testing.assert_array_equal(outputs["thumbnail"], thumbnails)
        else:  # convolutions in bfloat16 against float32
            assert np.abs(outputs["thumbnail"] - thumbnails).mean() < 2
        expected = student(thumbnails, training=False)["logits"]
        np.testing.assert_allclose(outputs["logits"], expected, atol=0.1 * np.abs(expected).max())
        assert keras.config.dtype_policy().name == "float32"


def test_broken_caches_of_logits_are_computed_anew(config):
    run = train(config(methods=("direct",)))
    before = (run.path / "results.csv").read_text()
    (run.path / "direct" / "logits_test.npy").write_bytes(b"\x93NUMPY half")
    train(config(methods=("direct",)))
    assert (run.path / "results.csv").read_text() == before


@pytest.mark.parametrize("name", ["config.json", "metrics.csv"])
def test_broken_files_of_a_run_are_one_line(config, monkeypatch, name):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGINT)
        with pytest.raises(loop.Interrupted):
            train(config(methods=("direct",)))
    path = RunDir(config().run_dir).path
    (path / name if name == "config.json" else path / "original" / name).write_bytes(b"\xff\xfe\x00broken\n1\n")
    with pytest.raises(UserError, match=rf"{name}.*restore it"):
        train(config(methods=("direct",)))


def test_names_that_are_no_utf8_are_read(config, folder):
    names = sorted((folder / "train" / "red").iterdir())
    os.rename(os.fsencode(names[0]), os.fsencode(names[0].parent) + b"/caf\xe9 x.png")
    run = train(config(methods=("direct",), memory_limit_gb=0.0))
    assert run.data_facts()["examples"]["train"] == 27


def test_top_k_counts_ties_once():
    logits = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    labels = np.array([1, 2, 0])
    assert evaluate.top_k(logits, labels, 1) == pytest.approx(1 / 3)
    assert evaluate.top_k(logits, labels, 2) == 1.0
