"""Tests of the Python API: what it answers is what the run's models say, from a run as from its export."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from run_helpers import CLASSES, IMAGE_SIZE, RATIO, disc

import thumbnet_tf
from thumbnet_tf import api, preprocess, publish
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.evaluate import load_parts
from thumbnet_tf.predict import predict_files

ROOT = Path(__file__).parent.parent
SMALL = IMAGE_SIZE // RATIO


@pytest.fixture(scope="module")
def discs() -> np.ndarray:
    """Returns images uint8 (5, 40, 46, 3) of all classes."""
    return np.stack([disc(label % 3, label) for label in range(5)])


def test_import_is_light_and_names_are_found():
    code = (
        "import sys, thumbnet_tf; thumbnet_tf.Config(seed=3); thumbnet_tf.UserError; "
        "print([m for m in ('tensorflow', 'keras', 'absl', 'numpy') if m in sys.modules], "
        "set(thumbnet_tf.__all__) <= set(dir(thumbnet_tf)), hasattr(thumbnet_tf, 'nonsense'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True False"
    assert thumbnet_tf.Config is Config and thumbnet_tf.UserError is UserError
    with pytest.raises(AttributeError, match="module 'thumbnet_tf' has no attribute 'nonsense'"):
        thumbnet_tf.nonsense  # noqa: B018


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere TensorFlow's own choice stands")
@pytest.mark.parametrize("given", ["", "0"])
def test_tensorflow_computes_by_onednn_unless_told_otherwise(given):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    environment |= {"TF_ENABLE_ONEDNN_OPTS": given} if given else {}
    code = "import thumbnet_tf, tensorflow"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert ("oneDNN custom operations are on" in done.stderr) == (not given)


def test_train_is_called_whoever_imported_it_first(monkeypatch):
    import thumbnet_tf.train  # binds the package's attribute

    module = sys.modules["thumbnet_tf.train"]
    monkeypatch.setattr(thumbnet_tf, "train", module)  # restored at the end
    for bound in (True, False):  # by the import; taken away, found by the package
        if not bound:
            del thumbnet_tf.train
        assert ("train" in vars(thumbnet_tf)) is bound and thumbnet_tf.train is module
        with pytest.raises(UserError, match="--methods"):
            thumbnet_tf.train(Config(methods=("nonsense",)))


def test_a_run_answers_as_predict_does(tiny_run, disc_files):
    model = thumbnet_tf.load(tiny_run.path)
    assert model.labels == CLASSES and model.config == tiny_run.config().resolved()
    images = np.stack([preprocess.decode_image(tf.io.read_file(file)) for file in disc_files])
    answers, thumbnails = model.predict(images, top=9), model.downscale(images)
    assert len({answer.label for answer in answers} | {answer.score for answer in answers}) > len(images)
    for answer, thumbnail, wanted in zip(answers, thumbnails, predict_files(tiny_run, disc_files), strict=True):
        assert [name for name, _ in answer.top] == [name for name, _ in wanted.top]
        assert (answer.label, answer.score) == answer.top[0]
        np.testing.assert_allclose([s for _, s in answer.top], [s for _, s in wanted.top], atol=1e-5)
        np.testing.assert_array_equal(thumbnail, wanted.thumbnail)
        assert thumbnail.dtype == np.uint8


def test_one_image_batches_and_floats_give_the_same(tiny_run, discs, monkeypatch):
    model = thumbnet_tf.load(str(tiny_run.path))
    answers, thumbnails = model.predict(discs), model.downscale(discs)
    one = model.predict(discs[1], top=1)
    assert one.top == ((one.label, one.score),) and one.label == answers[1].label
    assert one.score == pytest.approx(answers[1].score, abs=1e-6)
    np.testing.assert_array_equal(model.downscale(tf.constant(discs[1])), thumbnails[1])
    np.testing.assert_array_equal(model.downscale(discs + np.float32(0.4) * (discs < 255)), thumbnails)
    cropped = np.stack([preprocess.eval_crop(image, IMAGE_SIZE, 0.875) for image in discs])
    np.testing.assert_array_equal(model.downscale(cropped), thumbnails)  # of its own size: not cropped again
    monkeypatch.setattr(sys.modules[type(model).__module__], "BATCH_SIZE", 2)
    np.testing.assert_array_equal(model.downscale(discs), thumbnails)
    assert model.predict(discs[:0]) == [] and model.downscale(discs[:0]).shape == (0, SMALL, SMALL, 3)


def test_an_export_answers_as_its_run(tiny_run, exported, discs):
    run, export = thumbnet_tf.load(tiny_run.path), thumbnet_tf.load(exported)
    assert export.labels == CLASSES and export.downscaler is None and export.config is None
    for images in (discs, discs[:, :IMAGE_SIZE, :IMAGE_SIZE], discs[:0]):
        np.testing.assert_array_equal(export.downscale(images), run.downscale(images))
        for one, other in zip(export.predict(images), run.predict(images), strict=True):
            assert one.label == other.label and one.score == pytest.approx(other.score, abs=1e-5)
    assert thumbnet_tf.load(exported.parent).predict(discs[0]).label == run.predict(discs[0]).label


@pytest.mark.parametrize("fraction", [1.0, 0.875, 0.7, 1 / 3, 0.051])
@pytest.mark.parametrize("size", [31, 96])
def test_the_frame_is_taken_off_again(photos, size, fraction):
    image = photos(1, size)[0]
    framed = api.frame(size, fraction)(tf.constant(image))
    np.testing.assert_array_equal(preprocess.eval_crop(framed, size, fraction), image)


def test_the_teacher_makes_no_thumbnails(tiny_run, exported, discs):
    teacher = thumbnet_tf.load(tiny_run.path, "original")
    wanted = [answer.label for answer in teacher.predict(discs)]
    assert teacher.downscaler is None
    served = thumbnet_tf.load(exported.parent.parent / "thumbnet_teacher" / "1")
    assert [answer.label for answer in served.predict(discs)] == wanted
    for model in (teacher, served):
        with pytest.raises(UserError, match="downscale needs a method that makes thumbnails"):
            model.downscale(discs)


def test_the_downscaler_stands_in_front_of_another_network(tiny_run, photos):
    small = thumbnet_tf.load(tiny_run.path).downscaler
    small.trainable = False
    image = keras.Input(small.input_shape[1:])
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(small(image)))
    model = keras.Model(image, outputs)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    before, head = [w.numpy() for w in small.weights], [w.numpy() for w in model.trainable_weights]
    images = photos(4, IMAGE_SIZE).astype(np.float32)
    model.fit(images, np.array([0, 1, 0, 1]), verbose=0)
    for weight, old in zip(small.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    assert any(np.any(w.numpy() != old) for w, old in zip(model.trainable_weights, head, strict=True))


def test_fit_on_ones_own_data_lowers_the_loss(tiny_run, tiny_resnet, discs):
    _, teacher = load_parts(tiny_run, "original")
    trainer = thumbnet_tf.build_trainer("thumbnet", tiny_run.config(), 3, teacher)
    trainer.compile(optimizer=keras.optimizers.AdamW(1e-2), jit_compile=False)
    images = np.stack([preprocess.eval_crop(image, IMAGE_SIZE, 1.0) for image in discs])
    batches = tf.data.Dataset.from_tensor_slices((images, np.arange(5) % 3)).batch(5)
    history = trainer.fit(batches.repeat(4), epochs=3, steps_per_epoch=4, shuffle=False, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]


@pytest.mark.slow
@pytest.mark.parametrize("fused", [{"steps_per_execution": 2}, {"jit_compile": True}])
def test_fused_steps_train_alike(tiny_run, tiny_resnet, discs, fused):
    _, teacher = load_parts(tiny_run, "original")
    images = np.stack([preprocess.eval_crop(image, IMAGE_SIZE, 1.0) for image in discs])
    batches = tf.data.Dataset.from_tensor_slices((images, np.arange(5) % 3)).batch(5).repeat(4)
    found = []
    for options in ({}, fused):
        keras.utils.set_random_seed(0)
        trainer = thumbnet_tf.build_trainer("thumbnet", tiny_run.config(), 3, teacher)
        before = [weight.numpy() for weight in trainer.trainable_variables]
        trainer.compile(optimizer=keras.optimizers.SGD(1e-3), **{"jit_compile": False, **options})
        trainer.fit(batches, epochs=1, shuffle=False, verbose=0)
        assert any(
            np.any(weight.numpy() != old) for weight, old in zip(trainer.trainable_variables, before, strict=True)
        )
        found.append([weight.numpy() for weight in trainer.weights])
    for plain, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, plain, rtol=1e-3, atol=1e-5)


def test_images_that_are_none_are_told(tiny_run):
    model = thumbnet_tf.load(tiny_run.path)
    good = np.full((4, 4, 3), 100, np.uint8)
    for images, message in (
        (good[..., :2], r"of shape \(B, H, W, 3\) or \(H, W, 3\). Received: the shape \(4, 4, 2\)"),
        (good[0], r"Received: the shape \(4, 3\)"),
        (good[:0], r"Received: the shape \(0, 4, 3\)"),
        ([good, good[:2]], r"must be one array.*Received: a list"),
        (good.astype(np.int64), r"must be uint8 or float, in \[0, 255\]. Received: the type int64"),
        (good - 101.0, r"must be in \[0, 255\]. Received: values from -1 to -1"),
        (good + 155.5, r"Received: values from 255.5 to 255.5"),
        (good * np.nan, r"Received: values from nan to nan"),
        (good / 255, r"so multiply by 255. Received: fractions from 0.392157"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict(images)
    with pytest.raises(UserError, match="top must be a whole number of at least 1. Received: 0"):
        model.predict(good, top=0)


def test_paths_that_hold_no_model_are_told(tiny_run, exported, tmp_path):
    with pytest.raises(UserError, match=r"load takes a run directory or an export's folder.*Received: .*nowhere"):
        thumbnet_tf.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--method must be one finished in this run.*Received: 'nonsense'"):
        thumbnet_tf.load(tiny_run.path, "nonsense")
    with pytest.raises(UserError, match=r"give method with a run directory only. Received: 'thumbnet'"):
        thumbnet_tf.load(exported, "thumbnet")
    with pytest.raises(UserError, match=r"that takes full images is expected.*thumbnet_classifier/1 \('pixels'\)"):
        thumbnet_tf.load(exported.parent.parent / "thumbnet_classifier" / "1")
    (tmp_path / "1").mkdir()
    shutil.copy(exported / publish.MANIFEST, tmp_path / "1")
    with pytest.raises(UserError, match=r"export it again, or choose another. Received: .*/1 \(SavedModel file does"):
        thumbnet_tf.load(tmp_path)
