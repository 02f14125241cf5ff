"""Warm-up requests, which TensorFlow Serving replays before it answers: so no user waits for a first, slow request.

The file `assets.extra/tf_serving_warmup_requests` is a TFRecord file of `PredictionLog` messages
(https://www.tensorflow.org/tfx/serving/saved_model_warmup). A record that fails makes the server refuse the model, so
all of them are replayed before a model is published.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

FILE = "assets.extra/tf_serving_warmup_requests"
BATCH_SIZES = (1, 4, 16)


def write(folder: pathlib.Path, model: Any, name: str, sizes: Mapping[str, int]) -> None:
    """Writes warm-up requests for every signature of a SavedModel.

    Args:
        folder: the SavedModel.
        model: what `tf.saved_model.load` makes of it.
        name: the name it will be served under.
        sizes: side in pixels of the image that each signature is warmed up with.
    """
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, spec in _signatures(model).items():
            picture = image(sizes[signature])
            one = tf.io.encode_jpeg(picture).numpy() if spec.dtype == tf.string else picture
            for count in BATCH_SIZES:
                request = predict_pb2.PredictRequest()
                request.model_spec.name = name
                request.model_spec.signature_name = signature
                request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(np.stack([one] * count)))
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request),
                )
                writer.write(log.SerializeToString())


def replay(folder: pathlib.Path, model: Any) -> int:
    """Sends a SavedModel its own warm-up requests.

    Args:
        folder: the SavedModel.
        model: what `tf.saved_model.load` makes of it.

    Returns:
        How many there were.

    Raises:
        RuntimeError: when there are none, one fails, or an answer isn't finite or not of its batch's size.
    """
    count = 0
    for request in requests(folder):
        signature = request.model_spec.signature_name
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        (batch,) = {int(value.shape[0]) for value in inputs.values()}
        for key, value in model.signatures[signature](**inputs).items():
            finite = value.dtype == tf.string or bool(tf.reduce_all(tf.math.is_finite(tf.cast(value, tf.float32))))
            if value.shape[0] != batch or not finite:
                raise RuntimeError(f"{folder}: warm-up of {signature} gives a bad {key} of shape {value.shape}")
        count += 1
    if not count:
        raise RuntimeError(f"{folder} holds no warm-up requests")
    return count


def requests(folder: pathlib.Path) -> Iterator[predict_pb2.PredictRequest]:
    """Yields the warm-up requests of a SavedModel."""
    for record in tf.data.TFRecordDataset(str(folder / FILE)).as_numpy_iterator():
        yield prediction_log_pb2.PredictionLog.FromString(record).predict_log.request


def _signatures(model: Any) -> dict[str, tf.TensorSpec]:
    """Returns the only input of each signature."""
    found = {}
    for name, function in model.signatures.items():
        (found[name],) = function.structured_input_signature[1].values()
    return found


def image(size: int) -> np.ndarray:
    """Returns a coloured gradient with texture, uint8 (size, size, 3)."""
    y, x = np.mgrid[:size, :size] / size
    texture = 0.15 * np.sin(40 * x + 25 * y)
    return np.rint(255 * np.clip(np.stack([x, y, 1 - x], axis=-1) + texture[..., None], 0, 1)).astype(np.uint8)
