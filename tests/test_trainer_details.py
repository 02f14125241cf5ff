"""What a step of training and its loop do with weights, norms, averages and mixed labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from trainer_helpers import CLASSES, config, make_trainer, values

from thumbnet_tf import loop, optimizers
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import Config


@pytest.mark.usefixtures("tiny_resnet")
def test_examples_of_weight_0_teach_nothing(photos):
    images, weights, found = photos(4, 32).astype(np.float32), np.array([1, 1, 0, 0], np.float32), []
    for labels in ([0, 1, 2, 0], [0, 1, 1, 2]):
        trainer = make_trainer("bicubic", config())
        trainer.train_on_batch(images, np.array(labels), sample_weight=weights)
        found.append(values(trainer.trainable_variables))
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.usefixtures("tiny_resnet")
def test_means_are_over_examples_and_not_over_batches(photos):
    trainer = make_trainer("bicubic", config())
    images, labels = photos(6, 32), np.array([0, 1, 2, 2, 1, 0])
    weights = np.array([1, 1, 1, 1, 1, 0], np.float32)
    whole, parts = (
        trainer.evaluate(images, labels, sample_weight=weights, batch_size=size, verbose=0, return_dict=True)
        for size in (6, 4)  # 5 examples at once, or 4 and 1
    )
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.usefixtures("tiny_resnet")
def test_a_small_gradient_is_not_clipped(photos):
    found = []
    for norm in (0.0, 1e6):
        trainer = make_trainer("bicubic", config(clip_norm=norm))
        trainer.train_on_batch(photos(4, 32).astype(np.float32), np.array([0, 1, 2, 0]))
        found.append(values(trainer.trainable_variables))
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.usefixtures("tiny_resnet")
def test_gradients_are_clipped_without_the_scale_of_float16(photos):
    keras.config.set_dtype_policy("mixed_float16")
    trainer = make_trainer("bicubic", config(clip_norm=0.01, mixed_precision="mixed_float16"))
    trainer.compile(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=1024.0))
    before = values(trainer.trainable_variables)
    trainer.train_on_batch(photos(4, 32).astype(np.float32), np.array([0, 1, 2, 0]))
    step = [a - b for a, b in zip(before, values(trainer.trainable_variables), strict=True)]
    assert np.sqrt(sum((s**2).sum() for s in step)) == pytest.approx(0.01, rel=0.02)


def test_a_teacher_with_dropout_teaches_without(photos):
    image = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(
        layers.Conv2D(8, 3, strides=2, padding="same")(layers.Rescaling(1 / 255)(image))
    )
    theirs = keras.Model(image, layers.Dense(3)(layers.Dropout(0.5)(x)))
    cfg = Config(teacher="mine.keras", image_size=32, ratio=2, downscaler_width=4)
    trainer = build_trainer("bicubic_kd", cfg, 3, theirs)
    images = tf.constant(photos(4, 32), tf.float32)
    np.testing.assert_allclose(
        trainer._teach(images, {})["logits"], theirs(images, training=False), rtol=1e-4, atol=1e-5
    )


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("term", ["cl", "kd", "fm", "mm"])
def test_every_term_moves_e(term, photos):
    images, labels, found = photos(4, 32).astype(np.float32), np.array([0, 1, 2, 0]), []
    for weight in (1.0, 11.0):
        trainer = make_trainer("thumbnet", config(clip_norm=0.0, **{f"w_{term}": weight}))
        trainer.train_on_batch(images, labels)
        found.append(values(trainer.downscaler.trainable_variables))
    moved = max(np.abs(one - two).max() for one, two in zip(*found, strict=True))
    assert moved > 1e-6


def test_labels_of_mixed_images_are_shares():
    batch = {"image": np.zeros((1, 2, 2, 3)), "id": [0], "view": [0], "mask": [1.0]}
    batch |= {"label": tf.constant([0]), "other_label": tf.constant([2]), "share": tf.constant([0.75])}
    inputs, labels, weights = loop._triple(batch, 3)
    np.testing.assert_allclose(labels, [[0.75, 0, 0.25]])
    assert (set(inputs), weights) == ({"image"}, [1.0])


def test_rows_after_a_step_are_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,6\n2,12\n3,18\n")
    assert [row["epoch"] for row in loop._rows_until(tmp_path / "metrics.csv", 12)] == ["1", "2"]


@pytest.mark.usefixtures("tiny_resnet")
def test_averages_are_there_for_a_while_only(photos):
    trainer = make_trainer("bicubic", config(ema_momentum=0.5))
    for _ in range(2):
        trainer.train_on_batch(photos(4, 32).astype(np.float32), np.array([0, 1, 2, 0]))
    raw = values(trainer.trainable_variables)
    with loop._averaged_weights(trainer):
        within = values(trainer.trainable_variables)
    averages = values(trainer.optimizer._model_variables_moving_average)
    assert max(np.abs(a - b).max() for a, b in zip(raw, within, strict=True)) > 0
    for found, wanted in (
        *zip(within, averages, strict=True),
        *zip(values(trainer.trainable_variables), raw, strict=True),
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.usefixtures("tiny_resnet")
def test_validation_is_of_the_averages_that_are_saved(photos):
    trainer = make_trainer("bicubic", config(ema_momentum=0.5, learning_rate=0.1))
    images, labels = photos(4, 32).astype(np.float32), np.array([0, 1, 2, 0])
    for _ in range(3):
        trainer.train_on_batch(images, labels)
    batch = {"image": images, "label": tf.constant(labels), "mask": np.ones(4, np.float32)}

    def run_test(part):
        return trainer.test_step(loop._triple(part, CLASSES))

    found = float(loop._validate(trainer, run_test, [batch], "x", 1)["val_cl"])
    trainer.reset_metrics()
    raw = float(run_test(batch)["cl"])
    trainer.optimizer.finalize_variable_values(trainer.trainable_variables)  # as what is saved
    trainer.reset_metrics()
    assert found == pytest.approx(float(run_test(batch)["cl"]), rel=1e-5) and abs(found - raw) > 1e-4


def test_momentum_is_nesterovs():
    optimizer = optimizers.build_optimizer(config(learning_rate=1.0, weight_decay=0.0), 1.0, 10**9, [])
    variable = keras.Variable([0.0])
    for _ in range(2):
        optimizer.apply([tf.constant([1.0])], [variable])
    # Nesterov: m = -1, w += 0.9 m - 1 = -1.9; m = -1.9, w += -1.71 - 1
    np.testing.assert_allclose(variable.numpy(), [-1.9 - 2.71], rtol=1e-5)
