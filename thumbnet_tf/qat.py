"""Fine-tunes a shipped model so that it stays accurate as int8, pruned or clustered, and converts it to TFLite.

The work is that of TensorFlow's model optimization toolkit (https://www.tensorflow.org/model_optimization), TFMOT, on
the tf_keras twin of the model: training with fake quantisation (Jacob et al. 2018, https://arxiv.org/abs/1712.05877),
magnitude pruning (Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878) and weight clustering (Han et al. 2016,
https://arxiv.org/abs/1510.00149).

The float model itself, in Keras 3, is the teacher here: KD from its logits. What trained it, CL and KD from T, was
tried and moves it away from what it says of unseen images, for it has nearly learned the training images by heart.

tf_keras and TFMOT are imported inside functions only.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from thumbnet_tf import fake_quant, losses, tflite, twin
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.files import saving
from thumbnet_tf.progress import track

if TYPE_CHECKING:
    import tf_keras

QUANTISED, PRUNED, CLUSTERED = VARIANTS = ("int8_qat", "pruned", "clustered")
EPOCHS = {QUANTISED: 2, PRUNED: 10, CLUSTERED: 2}
LEARNING_RATE = {QUANTISED: 1e-5, PRUNED: 1e-4, CLUSTERED: 1e-4}  # at the start; a cosine decay to 0 follows
SPARSITY = 0.5  # share of zeros in each kernel of S when pruned
CLUSTERS = 32  # different values in each kernel of S when clustered

_BEFORE_ROUNDING, _THUMBNAIL = "downscaler_add", "thumbnail"  # the last two layers of E
_OF_E = "downscaler_"  # what the names of all its layers with weights start with
_MANY = 256  # weights of the smallest layer that is pruned or clustered
_VERSION = 1  # of the fine-tuning below; weights kept by another are not used

_log = logging.getLogger(__name__)


def finetuned(
    variant: str,
    cfg: Config,
    shipped: keras.Model,
    batches: tf.data.Dataset,
    calibration: np.ndarray,
    folder: pathlib.Path | None = None,
    learning_rate: float | None = None,
) -> dict[str, bytes]:
    """Fine-tunes a shipped model for a variant and converts it and its two parts.

    Args:
        variant: one of `VARIANTS`.
        cfg: the run's configuration; gives KD's temperature, the seed and the batch size of the calibration.
        shipped: E + S, from `thumbnet.build_shipped`; it teaches, and is left as it is.
        batches: what to train on, once from begin to end, as `data.pipeline.train_batches` gives it.
        calibration: uint8 (n, S, S, 3) training images in the evaluation crop, for the first ranges of int8_qat.
        folder: where the fine-tuned weights are kept, and taken from if they were made from the same models and
            settings; None keeps nothing.
        learning_rate: where it starts; None = `LEARNING_RATE`.

    Returns:
        TFLite files by `thumbnet`, `downscaler` and `classifier`, see `_converted`.

    Raises:
        UserError: on an unknown variant, on nothing to train on, on a model that can't be treated so.
    """
    if variant not in VARIANTS:
        raise UserError(f"the variant must be one of {', '.join(VARIANTS)}. Received: {variant!r}")
    if variant == QUANTISED and cfg.thumbnail_bits != 8:
        raise UserError(
            f"{variant} needs a run trained with --thumbnail_bits=8, int8's own grid; leave this variant out. "
            f"Received: --thumbnail_bits={cfg.thumbnail_bits}"
        )
    steps = int(batches.cardinality())
    if steps < 1 or not len(calibration):
        raise UserError(
            f"{variant} needs training and calibration images. Received: {max(steps, 0)} batches to train on and "
            f"{len(calibration)} images to calibrate on"
        )
    rate = LEARNING_RATE[variant] if learning_rate is None else learning_rate
    model = twin.build(shipped, rounded=variant != QUANTISED)
    if not any(layer.name == _BEFORE_ROUNDING for layer in model.layers):
        raise UserError(
            f"{variant} is for the learned downscaler; leave it out of --variants. "
            f"Received: a model without {_BEFORE_ROUNDING!r}"
        )
    if variant == QUANTISED:
        model = fake_quant.quantise(model, calibration, cfg.batch_size)

    path = None if folder is None else folder / f"{variant}.weights.h5"
    key = _key(cfg, shipped, calibration, variant, steps, rate)
    if path is not None and _load(model, path, key):
        _log.info("%s: taken from %s", variant, path)
    else:
        keras.utils.set_random_seed(cfg.seed)
        fit = functools.partial(_fit, cfg=cfg, teacher=shipped, batches=batches, rate=rate, what=variant)
        _TRAIN[variant](model, fit, steps)
        if path is not None:
            _save(model, path, key)
    return _converted(model, variant)


def _train_quantised(model: "tf_keras.Model", fit: Callable, steps: int) -> None:
    fit(model)
    fake_quant.set_kernel_ranges(model)


def _train_pruned(model: "tf_keras.Model", fit: Callable, steps: int) -> None:
    """Prunes gradually over the first half of the steps; the other half recovers."""
    sparsity = fake_quant.import_tfmot().sparsity.keras
    every = max(1, steps // 32)
    last = every * max(1, steps // 2 // every)  # the schedule acts on multiples of `every` only
    schedule = sparsity.PolynomialDecay(0.0, SPARSITY, 0, last, frequency=every)
    wrapped = _wrapped(model, lambda layer: sparsity.prune_low_magnitude(layer, schedule))
    fit(wrapped, sparsity.UpdatePruningStep())
    model.set_weights(sparsity.strip_pruning(wrapped).get_weights())


def _train_clustered(model: "tf_keras.Model", fit: Callable, steps: int) -> None:
    clustering = fake_quant.import_tfmot().clustering.keras
    start = clustering.CentroidInitialization.KMEANS_PLUS_PLUS
    wrapped = _wrapped(model, lambda layer: clustering.cluster_weights(layer, CLUSTERS, start))
    fit(wrapped)
    model.set_weights(clustering.strip_clustering(wrapped).get_weights())


_TRAIN = {QUANTISED: _train_quantised, PRUNED: _train_pruned, CLUSTERED: _train_clustered}


def _wrapped(model: "tf_keras.Model", wrap: Callable) -> "tf_keras.Model":
    """Returns a copy with the layers of S wrapped that have many weights; those of E would save next to nothing."""
    import tf_keras

    def choose(layer: "tf_keras.layers.Layer") -> "tf_keras.layers.Layer":
        spared = layer.count_params() < _MANY or layer.name.startswith(_OF_E)
        return layer if spared else wrap(layer)

    copy = tf_keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return tf_keras.models.clone_model(copy, clone_function=choose)


def _fit(
    model: "tf_keras.Model",
    *callbacks: Any,
    cfg: Config,
    teacher: keras.Model,
    batches: tf.data.Dataset,
    rate: float,
    what: str,
) -> None:
    """Trains a twin on all batches under KD, with a rate that falls to 0."""
    import tf_keras

    steps = int(batches.cardinality())

    def with_targets(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        taught = teacher(tf.cast(batch["image"], tf.float32), training=False)["logits"]
        return twin.normalised(batch["image"]), taught

    def loss(taught: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return losses.distillation(taught, logits, cfg.temperature)

    schedule = tf_keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(tf_keras.optimizers.Adam(schedule, global_clipnorm=cfg.clip_norm or None), loss)
    with track(None, steps, f"fine-tuning {what}") as bar:

        def show(_: int, logs: dict[str, float]) -> None:
            bar.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)
            bar.update()

        shown = tf_keras.callbacks.LambdaCallback(on_batch_end=show)
        model.fit(batches.map(with_targets).prefetch(1), verbose=0, callbacks=[shown, *callbacks])


def _key(cfg: Config, shipped: keras.Model, calibration: np.ndarray, *settings: Any) -> str:
    """Returns a digest of all that the fine-tuned weights follow from, but for the pictures.

    Where data and T lie doesn't count: the run has made sure that they are its own.
    """
    digest = hashlib.sha256(json.dumps([_VERSION, SPARSITY, CLUSTERS, settings]).encode())
    counted = [field.name for field in dataclasses.fields(cfg) if field.metadata["identity"]]
    # mapping_epochs counts by the weights of E and S, which are in the digest
    run = {name: getattr(cfg, name) for name in counted if name not in ("dataset", "teacher", "mapping_epochs")}
    digest.update(json.dumps(run).encode())
    for array in (*shipped.get_weights(), calibration):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _load(model: "tf_keras.Model", path: pathlib.Path, key: str) -> bool:
    """Loads kept weights; returns whether there are any of this key."""
    try:
        with h5py.File(path) as file:
            if file.attrs.get("key") != key:
                return False
        model.load_weights(path)
    except (OSError, ValueError, KeyError):  # none, or a broken file, which is made anew
        return False
    return True


def _save(model: "tf_keras.Model", path: pathlib.Path, key: str) -> None:
    partial = path.with_name(f"partial-{path.name}")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save_weights(partial)
        with h5py.File(partial, "r+") as file:
            file.attrs["key"] = key
        os.replace(partial, path)


def _converted(model: "tf_keras.Model", variant: str) -> dict[str, bytes]:
    """Converts a fine-tuned twin, and E and S cut from it.

    Returns:
        TFLite files of batch 1 with the signature `serving_default`:
        `thumbnet`: `image` uint8 (1, S, S, 3) -> `probabilities` (1, C);
        `downscaler`: `image` -> `thumbnail` uint8 (1, s, s, 3);
        `classifier`: `thumbnail` uint8 (1, s, s, 3) -> `probabilities`.
        Probabilities are float32, or for int8_qat uint8 of scale 1/256.
    """
    import tf_keras

    quantised = variant == QUANTISED
    cut = model.get_layer(fake_quant.PREFIX + _BEFORE_ROUNDING if quantised else _THUMBNAIL).output
    small, network = tf_keras.Model(model.input, cut), tf_keras.Model(cut, model.output)
    size, small_size = model.input.shape[1], cut.shape[1]
    held = tf.Module()  # only the variables: the converter would trace and save all of a Keras model's functions
    held.weights = model.variables

    def probabilities(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(network(x, training=False))

    def thumbnail(x: tf.Tensor) -> tf.Tensor:
        x = small(x, training=False)
        return x if quantised else tf.cast(tf.floor(128.0 * x + 128.5), tf.uint8)

    def units(x: tf.Tensor) -> tf.Tensor:
        # the converter makes bytes of an int8 model's inputs and outputs, as the scale of the input is that of pixels
        return fake_quant.on_pixel_grid(x) if quantised else twin.normalised(x)

    def levels(x: tf.Tensor) -> tf.Tensor:
        # of fewer than 8 bits a file holds the nearest bytes, and S knows the levels, as in `thumbnet.deployed`
        rounding = None if quantised else model.get_layer(_THUMBNAIL)
        return rounding(x) if rounding and rounding.bits not in (0, 8) else x

    def convert(function: Any, side: int, name: str) -> bytes:
        spec = tf.TensorSpec((1, side, side, 3), tf.float32 if quantised else tf.uint8, name=name)
        concrete = tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], held)
        if quantised:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        return converter.convert()

    files = {
        "thumbnet": convert(
            lambda image: {"probabilities": probabilities(small(units(image), training=False))}, size, "image"
        ),
        "downscaler": convert(lambda image: {"thumbnail": thumbnail(units(image))}, size, "image"),
        "classifier": convert(
            lambda thumbnail: {"probabilities": probabilities(levels(units(thumbnail)))}, small_size, "thumbnail"
        ),
    }
    image, thumb, scores = (size, size, 3), (small_size, small_size, 3), model.output.shape[1:]
    ends = {"thumbnet": (image, scores), "downscaler": (image, thumb), "classifier": (thumb, scores)}
    for part, content in files.items():
        tflite.check(content, part, *ends[part], integer=quantised)
    return files
