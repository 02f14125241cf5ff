"""Other ways to train the same models, which the benchmark of training compares ours with."""

from collections.abc import Callable

import keras
import tensorflow as tf

from thumbnet_tf import thumbnet
from thumbnet_tf.config import Config


def _joined(cfg: Config, teacher: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Returns T and a fresh E + S as plain models from images to logits, as a user without this package has them."""
    small = thumbnet.build_downscaler(cfg, "learned")
    student, _ = thumbnet.build_student(cfg, teacher)
    image = keras.Input(teacher.input.shape[1:])
    return (
        keras.Model(teacher.input, teacher.output["logits"]),
        keras.Model(image, student(small(image))["logits"]),
    )


def _keras_adamw(cfg: Config) -> keras.Optimizer:
    clip = cfg.clip_norm or None
    return keras.optimizers.AdamW(1e-6, weight_decay=cfg.weight_decay, global_clipnorm=clip)


def plain_kd_loop(cfg: Config, teacher: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> Callable[[], object]:
    """Returns a step of a hand-written loop: CL + KD, Keras' own AdamW.

    Args:
        cfg: sizes and the optimizer.
        teacher: T.
        images: uint8 `(B, size, size, 3)`.
        labels: `(B,)` integers.
    """
    taught, student = _joined(cfg, teacher)
    taught.trainable = False
    optimizer = _keras_adamw(cfg)
    optimizer.build(student.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    divergence = keras.losses.KLDivergence()
    tau = cfg.temperature

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        pixels = tf.cast(images, tf.float32)
        soft = tf.nn.softmax(taught(pixels, training=False) / tau)
        with tf.GradientTape() as tape:
            logits = student(pixels, training=True)
            loss = cross_entropy(labels, logits) + tau**2 * divergence(soft, tf.nn.softmax(logits / tau))
        gradients = tape.gradient(loss, student.trainable_variables)
        optimizer.apply_gradients(zip(gradients, student.trainable_variables, strict=True))
        return loss

    return lambda: step(images, labels)


def keras_distiller(cfg: Config, teacher: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> Callable[[], object]:
    """Returns a step of `keras.distillation.Distiller`, CL + KD, with E + S as its student (arguments as above)."""
    taught, student = _joined(cfg, teacher)
    # the loss as an object, for its name would stand for a divergence without softmax
    loss = keras.distillation.LogitsDistillation(cfg.temperature, keras.losses.KLDivergence())
    distiller = keras.distillation.Distiller(taught, student, loss, student_loss_weight=0.5)
    distiller.compile(
        _keras_adamw(cfg),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # XLA's convolutions are many times slower on a CPU
    )
    pixels = tf.cast(images, tf.float32)
    return lambda: distiller.train_on_batch(pixels, labels)
