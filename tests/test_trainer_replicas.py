"""The same training on one and on two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainer_helpers import CLASSES, config, make_trainer, values

from thumbnet_tf import loop, stages
from thumbnet_tf.config import Config
from thumbnet_tf.distribution import mirrored

TRAINED = [name for name, row in stages.METHODS.items() if row.losses]


def replica_weights(method: str, cfg: Config, devices: list[str], photos) -> dict[str, np.ndarray]:
    strategy = mirrored(devices)
    with strategy.scope():
        trainer = make_trainer(method, cfg, synchronized=True)
        trainer.optimizer.build(trainer.trainable_variables)
    images, labels = photos(11, 32), np.arange(11) % CLASSES
    batches = tf.data.Dataset.from_tensor_slices((images, labels, np.ones(11, np.float32))).batch(4)  # 4, 4, 3
    distributed = strategy.experimental_distribute_dataset(batches)

    # one trace for all batch sizes: Keras' synchronised batch normalisation needs the replicas' static shapes alike
    @tf.function(input_signature=[distributed.element_spec], autograph=False)
    def step(batch):
        strategy.run(trainer.train_step, args=(batch,))

    seen = 0
    for batch in distributed:
        step(batch)
        seen += 1
    assert seen == 3
    weights = {v.path: v.numpy() for v in trainer.trainable_variables}
    weights |= {v.path: v.numpy() for part in (trainer.student, trainer.downscaler) if part for v in part.variables}
    return weights | {tracker.name: tracker.result().numpy() for tracker in trainer.metrics}


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize(
    "method", [m if m == "bicubic_kd" else pytest.param(m, marks=pytest.mark.slow) for m in TRAINED]
)
def test_one_and_two_replicas_train_alike(method, photos):
    cfg = config(clip_norm=0.5)
    one = replica_weights(method, cfg, ["CPU:0"], photos)
    two = replica_weights(method, cfg, ["CPU:0", "CPU:1"], photos)
    assert one.keys() == two.keys()
    start = {v.path: v.numpy() for v in make_trainer(method, cfg, synchronized=True).trainable_variables}
    assert max(np.abs(one[path] - value).max() for path, value in start.items()) > 1e-4
    for path, value in one.items():
        np.testing.assert_allclose(two[path], value, atol=1e-6, rtol=1e-6 if path not in start else 0, err_msg=path)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_resnet")
def test_mixed_images_train_alike_on_one_and_two_replicas(photos):
    batch = {
        "image": photos(4, 32),
        "label": np.array([0, 1, 2, 0]),
        "other_label": np.array([1, 1, 0, 2]),
        "share": np.array([0.9, 0.5, 0.2, 0.7], np.float32),
        "mask": np.ones(4, np.float32),
        "id": np.arange(4),
        "view": np.zeros(4, np.int64),
    }
    found = []
    for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
        strategy = mirrored(devices)
        with strategy.scope():
            trainer = make_trainer("bicubic", config(), synchronized=True)
            trainer.optimizer.build(trainer.trainable_variables)
        run_step, run_test = loop._compiled(trainer, strategy)
        [whole] = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(batch).batch(4))
        run_step(whole)
        found.append([*values(trainer.trainable_variables), *values(t.result() for t in trainer.trackers)])
        trainer.reset_metrics()
        run_test(whole)
        found[-1] += values(tracker.result() for tracker in trainer.trackers)
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_resnet")
def test_one_and_two_replicas_train_alike_by_adamw(photos):
    cfg = config(optimizer="adamw", clip_norm=0.5, learning_rate=1e-3)
    one = replica_weights("thumbnet", cfg, ["CPU:0"], photos)
    two = replica_weights("thumbnet", cfg, ["CPU:0", "CPU:1"], photos)
    start = {v.path: v.numpy() for v in make_trainer("thumbnet", cfg, synchronized=True).trainable_variables}
    moved = np.concatenate([np.abs(one[path] - value).ravel() for path, value in start.items()])
    apart = np.concatenate([np.abs(one[path] - two[path]).ravel() for path in start])
    # a gradient that is all rounding moves its weight by a whole step, either way; all others agree
    assert np.median(moved) > 5e-4
    assert np.quantile(apart, 0.99) < 1e-5


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize(("policy", "devices"), [("float32", 2), ("mixed_float16", 1)])
def test_weights_decay_once_a_step(policy, devices):
    keras.config.set_dtype_policy(policy)
    strategy = mirrored([f"CPU:{number}" for number in range(devices)])
    with strategy.scope():
        trainer = make_trainer(
            "bicubic",
            config(optimizer="adamw", weight_decay=0.1, learning_rate=0.5, mixed_precision=policy),
            steps=10**6,
        )
        variables = trainer.trainable_variables
        trainer.optimizer.build(variables)
    before = {variable.path: variable.numpy() for variable in variables}
    strategy.run(lambda: trainer.optimizer.apply([tf.zeros(v.shape) for v in variables], variables))
    for variable in variables:
        factor = 1 - 0.5 * 0.1 if variable.path.endswith("kernel") else 1.0  # a zero gradient: only decay moves
        np.testing.assert_allclose(variable.numpy(), factor * before[variable.path], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_overflow_on_one_replica_skips_the_step_on_all(clip_norm, photos):
    keras.config.set_dtype_policy("mixed_float16")
    cfg = config(mixed_precision="mixed_float16", clip_norm=clip_norm)
    strategy = mirrored(["CPU:0", "CPU:1"])
    with strategy.scope():
        trainer = make_trainer("bicubic", cfg)
        trainer.optimizer.build(trainer.trainable_variables)
    before, scale = values(trainer.trainable_variables), float(trainer.optimizer.scale_loss(tf.constant(1.0)))
    labels = np.eye(CLASSES, dtype=np.float32)[[0, 1, 2, 0]]
    labels[2:] *= 1e38  # the second replica's gradient overflows
    batches = tf.data.Dataset.from_tensor_slices((photos(4, 32), labels, np.ones(4, np.float32))).batch(4)
    step = tf.function(lambda batch: strategy.run(trainer.train_step, args=(batch,)), autograph=False)
    for batch in strategy.experimental_distribute_dataset(batches):
        step(batch)
    for old, new in zip(before, values(trainer.trainable_variables), strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(trainer.optimizer.scale_loss(tf.constant(1.0))) == scale / 2


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_resnet")
def test_fit_works_under_mirrored(photos):
    with mirrored(["CPU:0", "CPU:1"]).scope():
        trainer = make_trainer("thumbnet", config(), synchronized=True)
    trainer.run_eagerly = False
    images, labels = photos(8, 32), np.arange(8) % CLASSES
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    history = trainer.fit(batches, epochs=2, shuffle=False, verbose=0).history
    assert history["loss"][0] == pytest.approx(
        sum(history[k][0] * w for k, w in trainer.term_weights.items()), rel=1e-4
    )
    assert history["loss"][1] < history["loss"][0]
