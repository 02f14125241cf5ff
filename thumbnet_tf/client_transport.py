"""Sends one batch to a model server, over gRPC or REST, and tells apart what can go wrong.

Both speak TensorFlow Serving's predict API: https://www.tensorflow.org/tfx/serving/api_rest and
https://github.com/tensorflow/serving/blob/master/tensorflow_serving/apis/prediction_service.proto
"""

import base64
import dataclasses
import itertools
import json
import random
import re
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc
import numpy as np
import requests
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from thumbnet_tf.config import UserError

# the one input of each signature that takes encoded images
INPUTS = {"serving_default": "image_bytes", "thumbnail": "thumbnail_bytes"}
# Batches end before this size, so that they pass gRPC's default limit of 4 MiB, which proxies keep. A larger image
# goes alone; the channel takes messages of any size, as TensorFlow Serving does (2 GiB).
MAX_REQUEST_BYTES = 3_500_000
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds before the first retry, and at most

# The server answers a wrong label, signature or input's name as it answers a wrong image (INVALID_ARGUMENT or
# FAILED_PRECONDITION; 400 in REST). Only the text tells that sending the images one by one won't help. These are its
# own words and TensorFlow's, old and new ones.
_NOT_THE_IMAGES = (
    "version label",
    "Serving signature key",
    "Serving signature name",
    "tensor alias not found",
    "Signature input alias",
    "Inputs contains invalid name",
    "input size does not match signature",
    "does not have named input",
)
_TOO_MANY = "larger than maximum input batch size"

Labels = tuple[tuple[str, float], ...]
_T = TypeVar("_T")


class RefusedError(Exception):
    """The server says that something in this batch is wrong; sending it again is of no use."""


class UnavailableError(Exception):
    """The server gave no answer this time; trying again may help."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Which signature of which model to ask.

    Attributes:
        address: `host:port`; for REST also a URL.
        model: the model's name on the server.
        version: its version; 0 for the server's choice.
        version_label: a label in place of a version; empty for none.
        signature: a key of `INPUTS`.
        timeout: seconds until a request is given up.
    """

    address: str
    model: str
    version: int
    version_label: str
    signature: str
    timeout: float

    def not_found(self, reason: str) -> UserError:
        """Returns the error for a model, version, label or signature that the server doesn't have."""
        return UserError(
            f"the server must have the model, version and signature asked for; correct --model, --version, "
            f"--version_label or --signature, or see its models.config. Received: {self.model!r}, version "
            f"{self.version_label or self.version or 'any'}, {self.signature!r} ({one_line(reason)})"
        )

    def mistake(self, reason: str) -> UserError | None:
        """Returns the error for what the server refuses whatever the images are; None if it may be one of them."""
        if _TOO_MANY in reason:
            return UserError(
                "--batch_size must be at most what the server takes in a request, max_batch_size in its "
                f"batching.config; lower one or raise the other. Received: {one_line(reason)}"
            )
        return self.not_found(reason) if any(text in reason for text in _NOT_THE_IMAGES) else None


class GrpcTransport:
    """Asks a server over gRPC, without encryption."""

    name = "gRPC"

    def __init__(self, target: Target) -> None:
        self.target = target
        self.versions: set[int] = set()  # of the model, those that answered
        options = {
            "grpc.max_send_message_length": -1,  # no limit
            "grpc.max_receive_message_length": -1,
            "grpc.initial_reconnect_backoff_ms": 100,  # pauses are `with_retries`' business
        }
        self._channel = grpc.insecure_channel(target.address, list(options.items()))
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def predict(self, images: Sequence[bytes]) -> tuple[list[Labels], int]:
        """Sends one request.

        Args:
            images: encoded images.

        Returns:
            For each image its best labels and their scores, best first; and the request's size in bytes.

        Raises:
            RefusedError: when an image is bad.
            UnavailableError: when there is no answer.
            UserError: when no image could be answered.
        """
        target = self.target
        request = predict_pb2.PredictRequest(output_filter=["classes", "scores"])
        request.model_spec.name = target.model
        request.model_spec.signature_name = target.signature
        if target.version:
            request.model_spec.version.value = target.version
        if target.version_label:
            request.model_spec.version_label = target.version_label
        request.inputs[INPUTS[target.signature]].CopyFrom(tf.make_tensor_proto(list(images), tf.string))
        try:
            answer = self._stub.Predict(request, timeout=target.timeout)
        except grpc.RpcError as error:
            raise self._explained(error) from None
        if answer.model_spec.HasField("version"):
            self.versions.add(answer.model_spec.version.value)
        try:
            classes, scores = (tf.make_ndarray(answer.outputs[key]) for key in ("classes", "scores"))
            names = [[name.decode("utf-8", "replace") for name in row] for row in classes]
        except (AttributeError, TypeError, ValueError) as error:
            raise _unreadable(target, error) from None
        return _rows(target, len(images), names, scores), request.ByteSize()

    def _explained(self, error: grpc.RpcError) -> Exception:
        code, details, target = error.code(), error.details() or "", self.target
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnavailableError(f"nothing within --timeout_seconds={target.timeout:g}")
        if code == grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(one_line(details))
        if code == grpc.StatusCode.NOT_FOUND:
            return target.not_found(details)
        if mistake := target.mistake(details):
            return mistake
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            return RefusedError(one_line(details))
        return UserError(f"the server failed; see its log. Received: {code.name} ({one_line(details)})")


class RestTransport:
    """Asks a server over HTTP with JSON; images travel in base64, a third larger."""

    name = "REST"
    versions = frozenset()  # its answers don't name them

    def __init__(self, target: Target) -> None:
        self.target = target
        base = target.address if "://" in target.address else f"http://{target.address}"
        which = f"/labels/{target.version_label}" if target.version_label else ""
        which = f"/versions/{target.version}" if target.version else which
        self.url = f"{base.rstrip('/')}/v1/models/{target.model}{which}:predict"
        self._local = threading.local()  # a session, which keeps connections open, is one thread's

    def close(self) -> None:
        """Does nothing: sessions end with their threads."""

    def predict(self, images: Sequence[bytes]) -> tuple[list[Labels], int]:
        """Sends one request; see `GrpcTransport.predict`."""
        target = self.target
        key = INPUTS[target.signature]
        instances = [{key: {"b64": base64.b64encode(image).decode()}} for image in images]
        body = json.dumps({"signature_name": target.signature, "instances": instances}).encode()
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._local.session.post(self.url, data=body, headers=headers, timeout=target.timeout)
        except requests.Timeout:
            raise UnavailableError(f"nothing within --timeout_seconds={target.timeout:g}") from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise UnavailableError(_cause(error)) from None
        except requests.RequestException as error:
            raise UserError(
                f"--rest must be host:port or a URL. Received: {target.address!r} ({_cause(error)})"
            ) from None
        if answer.status_code != 200:
            raise self._explained(answer)
        try:
            predictions = answer.json()["predictions"]
            names = [list(row["classes"]) for row in predictions]
            scores = np.array([row["scores"] for row in predictions], float)
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(target, error) from None
        return _rows(target, len(images), names, scores), len(body)

    def _explained(self, answer: requests.Response) -> Exception:
        try:
            details = str(answer.json()["error"])
        except (ValueError, KeyError, TypeError):
            details = answer.text
        if answer.status_code in (429, 503, 504):
            return UnavailableError(f"HTTP {answer.status_code} {one_line(details)}")
        if answer.status_code == 404:
            return self.target.not_found(f"HTTP {answer.status_code} {details}")
        if mistake := self.target.mistake(f"HTTP {answer.status_code} {details}"):
            return mistake
        if answer.status_code == 400:
            return RefusedError(one_line(details))
        return UserError(f"the server failed; see its log. Received: HTTP {answer.status_code} ({one_line(details)})")


def with_retries(attempt: Callable[[], _T], retries: int, address: str, stopped: threading.Event) -> _T:
    """Calls `attempt` until it gives an answer, with growing random pauses between.

    Args:
        attempt: what may raise `UnavailableError`.
        retries: how often to try again.
        address: what was asked, for the message.
        stopped: set when nobody waits for the answer any more: then it isn't tried again.

    Returns:
        What `attempt` returns.

    Raises:
        UserError: when the last try failed too.
    """
    for failed in itertools.count():
        try:
            return attempt()
        except UnavailableError as error:
            # random, so that many clients of a server that was away don't come back all at once
            pause = random.uniform(0.5, 1) * min(FIRST_PAUSE * 2**failed, LONGEST_PAUSE)
            if failed == retries or stopped.wait(pause):
                raise UserError(
                    f"the server must answer; start it as saved_models/README.md says, correct the address or raise "
                    f"--timeout_seconds. Received: nothing from {address} in {failed + 1} tries (last: {error})"
                ) from None


def one_line(text: str, longest: int = 300) -> str:
    """Returns what a server's message says, without TensorFlow's places in the graph, as one line."""
    text = re.sub(r"assertion failed: \[([^\]]*)\]", r"\1", re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", text))
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("[[")]
    line = said[-1] if "Graph execution error" in text and said else " ".join(said)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def _cause(error: BaseException) -> str:
    """Returns what is at the bottom of a chain of wrapped errors, such as `Connection refused`."""
    reason = error.args[0] if error.args else error
    return one_line(str(getattr(reason, "reason", reason)).split(": ")[-1])


def _unreadable(target: Target, error: Exception) -> UserError:
    return UserError(
        f"the server must answer as TensorFlow Serving does, with classes and scores; see --model and --signature. "
        f"Received: another answer from {target.address} ({type(error).__name__}: {one_line(str(error), 100)})"
    )


def _rows(target: Target, count: int, names: Sequence[Sequence[str]], scores: np.ndarray) -> list[Labels]:
    if len(names) != count or any(scores.shape != (count, len(row)) for row in names):
        raise _unreadable(target, ValueError(f"{len(names)} rows for {count} images, {np.shape(scores)} scores"))
    return [
        tuple((name, float(score)) for name, score in zip(*row, strict=True)) for row in zip(names, scores, strict=True)
    ]
