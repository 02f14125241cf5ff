"""Details of a teacher of somebody else's making that its copy, and the student made from it, must get right."""

import dataclasses
import inspect
import logging

import keras
import numpy as np
import pytest
from keras import layers, ops
from teacher_helpers import SIZE, teacher, trunk

from thumbnet_tf import foreign, graph, teachers, tflite, thumbnet, twin
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import Config, FlagError
from thumbnet_tf.folding import fold
from thumbnet_tf.runs import load_keras, save_keras
from thumbnet_tf.training_layers import for_training, plain


def config(**values) -> Config:
    return Config(**{"teacher": "mine.keras", "image_size": SIZE, "ratio": 2, "downscaler_width": 4, **values})


def norms(model: keras.Model) -> list[layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]


def test_statistics_of_the_student_follow_a_short_training(photos):
    theirs = teacher("0..255")
    slow, fast = norms(theirs.get_layer("trunk"))
    slow.momentum, fast.momentum = 0.999, 0.6
    slow.moving_mean.assign([3.0, 5.0, 7.0])
    mine = foreign.standardise(theirs, SIZE, "0..255")
    images = photos(4, SIZE).astype(np.float32)
    expected = theirs(images, training=False)
    np.testing.assert_allclose(ops.softmax(mine(images)["logits"]), expected, rtol=1e-4, atol=1e-6)
    trainer = build_trainer("bicubic", config(), 3, mine)
    for model in (mine, trainer.student, plain(trainer.student)):
        assert [layer.momentum for layer in norms(model)] == [0.9, 0.6]


ENDS = {
    "sigmoid in the layer": lambda x: layers.Dense(1, activation="sigmoid", name="score")(x),
    "sigmoid behind it": lambda x: layers.Activation("sigmoid")(layers.Dense(1, name="score")(x)),
    "function": lambda x: ops.sigmoid(layers.Dense(1, name="score")(x)),
    "float32 at the end": lambda x: layers.Activation("linear", dtype="float32")(
        layers.Dense(1, activation="sigmoid", name="score")(x)
    ),
    "logits": lambda x: layers.Dense(1, name="score")(x),
}


def binary(end: str) -> keras.Model:
    """Returns a classifier that gives the second of two classes one score."""
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(layers.Rescaling(1 / 128, offset=-1)(image))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(image, ENDS[end](layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("end", ENDS)
def test_one_score_of_two_classes_becomes_two_logits(end, photos, tmp_path):
    theirs = binary(end)
    images = photos(6, SIZE).astype(np.float32)
    expected = theirs(images, training=False)
    expected = ops.sigmoid(expected) if end == "logits" else expected
    mine = foreign.standardise(theirs, SIZE, "0..255")
    save_keras(mine, tmp_path / "teacher.keras")
    for model in (mine, load_keras(tmp_path / "teacher.keras"), fold(mine), plain(for_training(mine))):
        logits = model(images)["logits"]
        np.testing.assert_array_equal(logits[:, 0], np.zeros(6))
        np.testing.assert_allclose(ops.softmax(logits)[:, 1:], expected, rtol=1e-4, atol=1e-6)
    cfg = config()
    thumbnet.check(cfg, mine)
    student, anew = thumbnet.build_student(cfg, mine)
    assert anew == [] and not student.get_layer("two_classes").trainable and student.get_layer("score").trainable
    small = thumbnet.build_downscaler(cfg, "area")
    shipped = thumbnet.build_shipped(cfg, "area", small, student)
    np.testing.assert_allclose(shipped(images)["logits"], student(small(images))["logits"], rtol=1e-4, atol=1e-5)
    if end == "sigmoid in the layer":
        twin.check(shipped)
        assert len(tflite.convert(shipped, "thumbnet", "int8", calibration=photos(4, SIZE))) > 1000


def test_layers_called_by_keyword(photos):
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.RandomFlip()(inputs=image)
    x = trunk("0..255")(inputs=x)
    x = layers.MultiHeadAttention(1, 4)(value=layers.Reshape((16, 8))(x), query=layers.Reshape((16, 8))(inputs=x))
    theirs = keras.Model(image, layers.Dense(3)(layers.Flatten()(inputs=x)))
    mine = foreign.standardise(theirs, SIZE, "0..255")
    images = photos(2, SIZE).astype(np.float32)
    for model in (mine, fold(mine)):
        np.testing.assert_allclose(model(images)["logits"], theirs(images, training=False), rtol=1e-4, atol=1e-4)


def test_layers_that_act_in_training_only_are_known():
    kinds = [getattr(layers, name) for name in dir(layers) if inspect.isclass(getattr(layers, name))]
    found = {
        kind.__name__
        for kind in kinds
        if "image_preprocessing" in kind.__module__ and "        if training" in inspect.getsource(kind)
    }
    mixing = {"MixUp", "CutMix"}  # of dicts with labels, so no part of a classifier
    assert {name for name in found if not name.startswith("Random")} == {*foreign._AUGMENTATION, *mixing}


@pytest.mark.parametrize("name", ["Solarization", "Equalization", "AugMix", "RandomErasing"])
def test_augmentation_is_no_part_of_the_copy(name):
    body = trunk("0..255").layers[1:]
    model = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), getattr(layers, name)(), *body, layers.Flatten(), layers.Dense(3)]
    )
    mine = foreign.standardise(model, SIZE, "0..255")
    assert name not in {type(layer).__name__ for layer in mine.layers}


def test_a_resize_in_the_graph_follows_the_thumbnail():
    image = keras.Input((SIZE, SIZE, 3))
    larger = ops.image.resize(image, (48, 64), interpolation="nearest")
    theirs = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(larger))))
    mine = foreign.standardise(theirs, SIZE, "0..255")
    thumbnail = keras.Input((SIZE // 2, SIZE // 2, 3))
    student = keras.Model(thumbnail, graph.lay(mine, thumbnail))
    for model, size in ((mine, (48, 64)), (student, (24, 32))):
        [resize] = [each for each in model.operations if type(each).__name__ == "Resize"]
        assert (tuple(resize.output.shape[1:3]), resize.interpolation) == (size, "nearest")


@pytest.mark.parametrize(("mode", "back"), [("bgr_0..255", 1), ("bgr_0..1", 255), ("bgr_-1..1", 127.5)])
def test_what_a_teacher_of_opencv_is_given(mode, back, photos):
    images = photos(2, 8).astype(np.float32)
    image = keras.Input((8, 8, 3))
    found = keras.Model(image, foreign.preprocess(image, mode))(images)
    np.testing.assert_allclose(found, images[..., ::-1] / back - (mode == "bgr_-1..1"), atol=1e-4)
    assert mode in Config.__dataclass_fields__["teacher_input"].metadata["choices"]


def test_a_teacher_of_any_size_is_told_the_default(caplog):
    model = keras.Sequential([*trunk("0..255", None).layers, layers.GlobalAveragePooling2D(), layers.Dense(3)])
    foreign.standardise(model, Config.image_size, "0..255")
    [record] = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "T takes images of any size, and gets 96 x 96 pixels, the default; --image_size" in record.getMessage()
    caplog.clear()
    foreign.standardise(model, 64, "0..255")
    foreign.standardise(teacher("0..255"), SIZE, "0..255")
    assert [each for each in caplog.records if each.levelno == logging.WARNING] == []


def test_a_classifier_in_python_with_the_configuration_of_a_run():
    cfg = config(teacher="train").resolved()
    assert cfg.fm_tap == "stage2"
    found = teachers.accepted(teacher("0..255"), cfg, "thumbnet")
    assert set(found.output) == {"logits", "conv3"}
    theirs = teacher("0..255")
    [named] = [layer for layer in theirs.get_layer("trunk").layers if layer.name == "pool1"]
    named.name = "stage2"
    assert set(teachers.accepted(theirs, cfg, "thumbnet").output) == {"logits", "stage2"}
    mistyped = dataclasses.replace(cfg, fm_tap="stag2")
    with pytest.raises(FlagError, match="--fm_tap must name a layer of T that makes a map"):
        teachers.accepted(theirs, mistyped, "thumbnet")
