"""Teachers written in ways that Keras allows and tutorials use: each becomes T with its function, and trains S."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from thumbnet_tf import foreign, thumbnet
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.optimizers import build_optimizer
from thumbnet_tf.runs import load_keras, save_keras

SIZE = 36  # no multiple of 8: of a T of the user's own a thumbnail needs whole pixels only


def body(x: keras.KerasTensor) -> keras.KerasTensor:
    """Returns maps of 9 x 9 x 8."""
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return layers.Conv2D(8, 3, strides=2, padding="same")(x)


def head(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))


def member() -> keras.Model:
    keras.backend.clear_session()  # so that names repeat, as those of two files do
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, head(body(image / 255.0)))


def ensemble(image: keras.KerasTensor) -> keras.KerasTensor:
    members = member(), member()
    for name, model in zip("ab", members, strict=True):
        model.name = name
    return layers.Average()([model(image) for model in members])


def adapted(axis: int | tuple[int, ...] | None) -> layers.Normalization:
    layer = layers.Normalization(axis)
    layer.adapt(np.random.default_rng(0).uniform(0, 255, (8, SIZE, SIZE, 3)))
    return layer


# each from an image to probabilities; those of the second dict have layers that start anew in S
KINDS = {
    "preprocess_input inside": lambda x: head(body(keras.applications.mobilenet_v2.preprocess_input(x))),
    "functions": lambda x: layers.Dense(3, activation="softmax")(ops.mean(ops.relu(body(x / 127.5 - 1.0)), (1, 2))),
    "ensemble": ensemble,
    "normalization by channel": lambda x: head(body(adapted(-1)(x))),
    "normalization by all": lambda x: head(body(adapted(None)(x))),
    "pipeline": lambda x: head(body(layers.Pipeline([layers.RandomFlip(), layers.Rescaling(1 / 255)])(x))),
    "linear float32 at the end": lambda x: layers.Activation("linear", dtype="float32")(head(body(x))),
    "pooled by a fixed size": lambda x: head(layers.AveragePooling2D(9)(body(x))),
}
ANEW = {
    "reshaped by a layer": lambda x: layers.Dense(3, activation="softmax")(layers.Reshape((648,))(body(x))),
    "reshaped by a function": lambda x: layers.Dense(3, activation="softmax")(ops.reshape(body(x), (-1, 648))),
    "convolution over the map": lambda x: layers.Softmax()(layers.Flatten()(layers.Conv2D(3, 9)(body(x)))),
}


# of two kinds that are nearly alike, one waits
SLOW = ("normalization by all", "linear float32 at the end", "functions", "reshaped by a function")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in (*KINDS, *ANEW)]
)
def test_kinds_become_a_teacher_and_train_a_student(kind, photos, tmp_path):
    keras.backend.clear_session()
    image = keras.Input((SIZE, SIZE, 3))
    theirs = keras.Model(image, {**KINDS, **ANEW}[kind](image))
    methods = ("thumbnet",) if kind in ANEW else ("direct", "thumbnet")
    cfg = Config(teacher="mine.keras", image_size=SIZE, ratio=2, downscaler_width=4, methods=methods)
    ours = foreign.standardise(theirs, SIZE, "0..255")
    images = photos(4, SIZE).astype(np.float32)
    expected = theirs(images, training=False)
    np.testing.assert_allclose(ops.softmax(ours(images)["logits"]), expected, rtol=1e-3, atol=1e-5)
    thumbnet.check(cfg, ours)
    _, anew = thumbnet.build_student(cfg, ours)
    assert bool(anew) == (kind in ANEW)
    trainer = build_trainer("thumbnet", cfg, 3, ours)
    trainer.compile(optimizer=build_optimizer(cfg, 1e-3, 10, trainer.trainable_variables), run_eagerly=True)
    assert np.isfinite(trainer.train_on_batch(images, np.array([0, 1, 2, 0]), return_dict=True)["loss"])
    small, student = trainer.trained()
    shipped = thumbnet.build_shipped(cfg, "learned", small, student)
    save_keras(shipped, tmp_path / "shipped.keras")
    again = load_keras(tmp_path / "shipped.keras")
    answers = student(small(images))["logits"]
    np.testing.assert_allclose(again(images)["logits"], answers, rtol=1e-3, atol=1e-4)
    names = [operation.name for operation in shipped.operations]
    assert len(set(names)) == len(names)  # a converter needs that


def test_what_can_not_follow_the_size_is_told():
    image = keras.Input((SIZE, SIZE, 3))
    cfg = Config(teacher="mine.keras", image_size=SIZE, ratio=2)
    by_pixel = foreign.standardise(keras.Model(image, head(body(adapted((1, 2, 3))(image)))), SIZE, "0..255")
    with pytest.raises(UserError, match=r"\(Normalization\) can't be laid on a thumbnail of 18 pixels"):
        thumbnet.check(cfg, by_pixel)
    # two thumbnails have 2 x 6 x 6 x 9 numbers, half of what one image has here
    folded = ops.reshape(layers.Conv2D(9, 3, strides=3, padding="same")(image), (-1, 12, 12, 9))
    folding = foreign.standardise(keras.Model(image, head(folded)), SIZE, "0..255")
    with pytest.raises(UserError, match=r"can't tell two images of 18 pixels apart: it reshapes maps"):
        thumbnet.check(cfg, folding)


def test_a_sigmoid_behind_a_linear_layer_is_found():
    image = keras.Input((SIZE, SIZE, 3))
    scores = layers.Dense(3, activation="sigmoid")(layers.GlobalAveragePooling2D()(body(image)))
    model = keras.Model(image, layers.Activation("linear", dtype="float32")(scores))
    with pytest.raises(UserError, match="an output behind a sigmoid"):
        foreign.standardise(model, SIZE, "0..255")


def test_a_plain_classifier_is_taken_in_python(photos):
    image = keras.Input((SIZE, SIZE, 3))
    cfg = Config(teacher="mine.keras", image_size=SIZE, ratio=2)
    theirs = keras.Model(image, head(body(image)))
    trainer = build_trainer("thumbnet", cfg, 3, theirs)
    images = photos(2, SIZE).astype(np.float32)
    np.testing.assert_allclose(ops.softmax(trainer.teacher(images)["logits"]), theirs(images), rtol=1e-3, atol=1e-5)
    alone = keras.Model(image, {"logits": layers.Dense(3)(layers.GlobalAveragePooling2D()(body(image)))})
    assert len(build_trainer("thumbnet", cfg, 3, alone).teacher.output) == 2  # FM's map beside the logits

    class Subclassed(keras.Model):
        def call(self, x):
            return theirs(x)

    with pytest.raises(UserError, match="a subclassed model, whose graph isn't known"):
        build_trainer("thumbnet", cfg, 3, Subclassed())
    with pytest.raises(UserError, match="a method must be one of original, direct, .* Received: 'nope'"):
        build_trainer("nope", cfg, 3, theirs)
    with pytest.raises(UserError, match="the method thumbnet needs a teacher, a Keras model. Received: None"):
        build_trainer("thumbnet", cfg, 3, None)
    with pytest.raises(UserError, match="T must be a functional or sequential image classifier.*Received: str"):
        build_trainer("thumbnet", cfg, 3, "mine.keras")
