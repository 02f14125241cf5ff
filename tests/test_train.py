"""The whole of `train`: a run from images to results, resumed bit for bit."""

import concurrent.futures
import json
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from train_helpers import CLASSES, assert_same, interrupt_at, rows, state_of

from thumbnet_tf import costs, evaluate, loop, report_data, report_sections, teachers
from thumbnet_tf.config import UserError
from thumbnet_tf.distribution import start
from thumbnet_tf.train import train

STAGED_RUN = pytest.mark.xdist_group("staged_run")  # on one worker, so that it is trained once


@STAGED_RUN
def test_a_run_leaves_what_is_promised(staged_run):
    run = staged_run
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
    cfg = run.config()
    terms = [{name: float(row[name]) for name in ("loss", "cl", "kd", "fm", "mm")} for row in metrics]
    mapping, full = (cfg.w_fm * row["fm"] + cfg.w_mm * row["mm"] for row in terms)
    assert terms[0]["loss"] == pytest.approx(mapping, rel=1e-5)  # in the first epoch FM and MM act alone
    full += cfg.w_cl * terms[1]["cl"] + cfg.w_kd * terms[1]["kd"]
    assert terms[1]["loss"] == pytest.approx(full, rel=1e-5)
    assert min(min(row.values()) for row in terms) > 0
    for name in ("accuracy", "agreement"):  # of the 24 images of each epoch alone: validation's 3 aren't among them
        right = [24 * float(row[name]) for row in metrics]
        assert right == pytest.approx([round(count) for count in right], abs=1e-4) and 0 <= max(right) <= 24
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


def test_results_equal_a_plain_count(direct_run, folder):
    run = direct_run
    teacher = keras.models.load_model(run.path / "original" / "teacher.keras", compile=False)
    right = total = 0
    for index, name in enumerate(CLASSES):
        for path in (folder / "test" / name).iterdir():
            image = tf.io.decode_png(path.read_bytes(), channels=3)
            crop = image[2:37, 2:37]  # 0.875 of 40 pixels
            crop = tf.round(tf.image.resize(tf.cast(crop, tf.float32), (32, 32), antialias=True))
            right += int(tf.argmax(teacher(crop[None], training=False)["logits"][0])) == index
            total += 1
    by = {row["method"]: row for row in rows(run.path / "results.csv") if row["split"] == "test"}
    assert float(by["original"]["top1"]) == pytest.approx(right / total, abs=1e-6)
    said, own = (np.load(run.path / name / "logits_test.npy").argmax(-1).tolist() for name in ("original", "direct"))
    same = sum(a == b for a, b in zip(said, own, strict=True)) / total
    assert float(by["direct"]["teacher_agreement"]) == pytest.approx(same, abs=1e-6)
    small = run.load_model("direct", "student")
    for name, model in (("original", teacher), ("direct", small)):
        assert (by[name]["macs"], by[name]["macs_downscaler"]) == (str(costs.macs(model)), "0")
        assert by[name]["params"] == str(costs.parameters(model))


def interrupted(config, monkeypatch, stops, **values) -> dict:
    """Returns the state of a run that got these signals before these steps of its starts, and was started again."""
    taken = []
    for step, number in stops:
        with monkeypatch.context() as patch:
            steps = interrupt_at(patch, step, number)
            with pytest.raises(loop.Interrupted) as stop:
                train(config("parts", **values))
            assert stop.value.exit_code == 128 + number
            taken.append(len(steps))
    assert taken == [step + 1 for step, _ in stops]  # the step that was under way is finished and saved
    with monkeypatch.context() as patch:
        steps = interrupt_at(patch, 10**9, signal.SIGINT)
        parts = state_of(train(config("parts", **values)))
    assert sum(taken) + len(steps) == 6 + 12  # no step was taken twice
    return parts


@STAGED_RUN
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(config, staged_run, monkeypatch):
    stops = (3, signal.SIGINT), (4, signal.SIGTERM)  # T's training, then E's and S's
    assert_same(state_of(staged_run), interrupted(config, monkeypatch, stops, mapping_epochs=1))


@pytest.mark.slow
def test_averages_and_a_training_interrupted_twice_are_resumed_bit_for_bit(config, monkeypatch):
    values = {"optimizer": "sgd", "ema_momentum": 0.9, "augment": "crop"}
    stops = (3, signal.SIGINT), (4, signal.SIGTERM), (2, signal.SIGTERM)
    assert_same(state_of(train(config("whole", **values))), interrupted(config, monkeypatch, stops, **values))


@pytest.mark.slow
def test_a_signal_during_the_last_save_is_heeded(config, monkeypatch):
    save = loop.Checkpoints.save

    def signalled(self, step):
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", signalled)
        with pytest.raises(loop.Interrupted) as stop:
            train(config(methods=("direct",), checkpoint_seconds=1e9))
    assert stop.value.exit_code == 128 + signal.SIGTERM
    with concurrent.futures.ThreadPoolExecutor() as pool:  # where no signal can be handled
        assert pool.submit(train, config(methods=("direct",))).result().is_done("direct")


@STAGED_RUN
def test_a_finished_run_trains_nothing(config, staged_run, monkeypatch):
    before = state_of(staged_run)
    steps = interrupt_at(monkeypatch, 0, signal.SIGINT)
    train(config(mapping_epochs=1))
    assert steps == []
    assert_same(before, state_of(staged_run))


@pytest.mark.slow
@pytest.mark.usefixtures("direct_run")
def test_methods_can_be_added_to_a_finished_run(config):
    run = train(config(methods=("bicubic",)))
    methods = [row["method"] for row in rows(run.path / "results.csv") if row["split"] == "test"]
    assert methods == ["original", "direct", "bicubic"]
    assert run.config().methods == ("direct", "bicubic")
    assert "--methods=direct,bicubic\n" in (run.path / "run.flags").read_text()  # which repeats all of it


def test_a_start_that_is_refused_changes_nothing(config, direct_run, folder):
    before = {name: (direct_run.path / name).read_text() for name in ("config.json", "run.flags")}
    next((folder / "train" / "red").iterdir()).unlink()
    with pytest.raises(UserError, match="the data changed since this run started"):
        train(config(methods=("bicubic",)))
    assert {name: (direct_run.path / name).read_text() for name in before} == before


@pytest.mark.slow
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


def test_a_teacher_can_be_taken_from_another_run(config, direct_run, tmp_path):
    run = train(config("second", teacher=str(direct_run.path), methods=("direct",)))
    for name in ("original", "direct"):
        np.testing.assert_array_equal(
            np.load(direct_run.path / name / "logits_test.npy"), np.load(run.path / name / "logits_test.npy")
        )
    with pytest.raises(UserError, match="must have this run's --backbone=resnet18 --width=0.125 and --image_size=32"):
        train(config("third", teacher=str(direct_run.path), width=0.125))
    with pytest.raises(UserError, match="nowhere, which holds no run"):
        train(config("fourth", teacher=str(tmp_path / "nowhere")))


def test_strategy(config):
    assert start(config(strategy="none")).strategy.num_replicas_in_sync == 1
    assert start(config(strategy="mirrored", cpu_devices=2)).strategy.num_replicas_in_sync == 2
    with pytest.raises(UserError, match="--batch_size must be a multiple of the 2 replicas. Received: 5"):
        start(config(strategy="mirrored", cpu_devices=2, batch_size=5))
    with pytest.raises(UserError, match="--cpu_devices needs --strategy=mirrored or auto: .*Received: 2"):
        start(config(cpu_devices=2))
    with pytest.raises(UserError, match="--cpu_devices can't change once TensorFlow runs"):
        start(config(strategy="mirrored", cpu_devices=3))


@pytest.mark.slow
def test_two_replicas_train_and_resume(config, monkeypatch):
    values = {"strategy": "mirrored", "cpu_devices": 2, "methods": ("bicubic",), "teacher_epochs": 1, "epochs": 1}
    values |= {"mixup_alpha": 1.0}
    whole = state_of(train(config("whole", **values)))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8, signal.SIGTERM)
        with pytest.raises(loop.Interrupted):
            train(config("parts", **values))
    assert_same(whole, state_of(train(config("parts", **values))))


def test_skipped_images_are_listed(config, folder, direct_run):
    (folder / "train" / "red" / "broken.png").write_bytes(b"not an image")
    run = train(config("second", teacher=str(direct_run.path), methods=("direct",), on_bad_image="skip"))
    assert run.data_facts()["bad_images"]["train"][0][0] == "train/red/broken.png"
    assert "train/red/broken.png" in (run.path / "log.txt").read_text()


@pytest.mark.slow
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


@pytest.mark.slow
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
        else:  # a level where the sums of a convolution are rounded in another order
            np.testing.assert_allclose(outputs["thumbnail"], thumbnails, atol=1)
        expected = student(outputs["thumbnail"], training=False)["logits"]  # in float32 too, as it ships
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4 * np.abs(expected).max())
        assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
def test_names_that_are_no_utf8_are_read(config, folder):
    names = sorted((folder / "train" / "red").iterdir())
    os.rename(os.fsencode(names[0]), os.fsencode(names[0].parent) + b"/caf\xe9 x.png")
    run = train(config(methods=("direct",), memory_limit_gb=0.0))
    assert run.data_facts()["examples"]["train"] == 27


@pytest.mark.slow
def test_a_student_of_another_width_and_stem(config):
    run = train(config(methods=("direct", "thumbnet"), epochs=1, student_width=0.03125, student_stem_stride=2))
    cfg = run.config()
    small, student = evaluate.load_parts(run, "thumbnet")
    assert small is not None
    assert student.get_layer("stem_conv").kernel.shape == (3, 3, 3, 2)
    assert student.output["stage1"].shape[1] == student.input.shape[1] // 2
    by = {row["method"]: row for row in rows(run.path / "results.csv")}
    assert int(by["thumbnet"]["params"]) < int(by["direct"]["params"]) == int(by["original"]["params"])
    assert "layers of S start anew, for their shapes aren't T's: stem_conv, " in (run.path / "log.txt").read_text()

    network = teachers.network_name(run, cfg)
    assert teachers.student_name("direct", cfg, network) == network == "resnet18, width 0.0625"
    assert teachers.student_name("thumbnet", cfg, network) == "resnet18, width 0.03125, stem of stride 2"
    page = report_sections.page(report_data.gather(run), 1, 1)
    assert "T: resnet18, width 0.0625; S: resnet18, width 0.03125, stem of stride 2" in page


@pytest.mark.slow
def test_slim_is_a_smaller_network_on_full_images(config, photos):
    run = train(config(methods=("slim",), slim_width=0.03125, epochs=1))
    row, teacher_row = ({r["method"]: r for r in rows(run.path / "results.csv")}[name] for name in ("slim", "original"))
    assert (row["ratio"], row["macs_downscaler"]) == ("1", "0")
    assert int(row["macs"]) < int(teacher_row["macs"]) and int(row["params"]) < int(teacher_row["params"])
    small, network = evaluate.load_parts(run, "slim")
    teacher = evaluate.load_parts(run, "original")[1]
    assert small is None
    assert network.get_layer("stem_conv").filters == 2 < teacher.get_layer("stem_conv").filters
    logits = np.load(run.path / "slim" / "logits_test.npy")
    assert logits.shape == (9, 3) and np.std(logits) > 0
    assert float(rows(run.path / "slim" / "metrics.csv")[0]["kd"]) > 0
