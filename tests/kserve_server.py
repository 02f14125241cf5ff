"""A real KServe server on this machine, whose model is a SavedModel; `serving_helpers.server_process` starts it."""

import base64
import pathlib

import kserve
import numpy as np
import tensorflow as tf
from kserve.errors import InvalidInput
from serving_helpers import LOCAL, MODEL, ServedModel


class SavedModelOfKServe(kserve.Model):
    """Takes instances that are a base64 string or an object with the input's name, as TensorFlow Serving does."""

    def __init__(self, export: pathlib.Path) -> None:
        super().__init__(MODEL)
        self._served = ServedModel({1: export}, {})
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        """Answers one request."""
        signature = payload.get("signature_name", "serving_default")
        info = self._served.metadata[1][signature].inputs
        name = next(iter(info))
        values = [row.get(name, row) if isinstance(row, dict) else row for row in payload["instances"]]
        if info[name].dtype == tf.string.as_datatype_enum:
            values = [base64.b64decode(value["b64"]) for value in values]
        try:
            tensor = tf.constant(values, tf.as_dtype(info[name].dtype))
            outputs = self._served.run(1, signature, {name: tensor})
        except (tf.errors.InvalidArgumentError, ValueError, TypeError) as error:
            raise InvalidInput(getattr(error, "message", str(error))) from None
        rows = zip(*(_as_json(key, value.numpy()) for key, value in outputs.items()), strict=True)
        return {"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]}


def _as_json(name: str, values: np.ndarray) -> list:
    """Returns an output's rows as TensorFlow Serving writes them: text, or base64 if its name ends in `_bytes`."""
    if values.dtype == object and name.endswith("_bytes"):
        return [{"b64": base64.b64encode(value).decode()} for value in values]
    return np.char.decode(values.astype(bytes), "utf-8").tolist() if values.dtype == object else values.tolist()


def serve(export: pathlib.Path, port: int) -> None:
    """Runs the server; never returns."""
    server = kserve.model_server.RESTServer
    original = server.__init__

    def on_this_machine_only(self, *arguments, **options):
        original(self, *arguments, **options)
        self.config.host = LOCAL  # KServe knows 0.0.0.0 only

    server.__init__ = on_this_machine_only
    kserve.ModelServer(http_port=port, enable_grpc=False, grace_period=1).start([SavedModelOfKServe(export)])
