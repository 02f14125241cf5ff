"""Model servers for tests, on this machine only: TensorFlow Serving's gRPC interface and a faulty HTTP server.

The gRPC server is ours, for no TensorFlow Serving can be installed from a package registry: it runs the SavedModel by
TensorFlow and answers as the real one is documented to. `python tests/serving_helpers.py grpc EXPORT` serves an
export until its standard input ends, and prints the port; `kserve` in place of `grpc` starts `kserve_server`.
"""

import contextlib
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import grpc
import requests
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

MODEL = "thumbnet"
LOCAL = "127.0.0.1"
ROOT = pathlib.Path(__file__).parent.parent
START_SECONDS = 120
# TensorFlow numbers its errors as gRPC does
CODES = {code.value[0]: code for code in grpc.StatusCode}


class ServedModel:
    """The versions of one model, and what TensorFlow Serving does to choose and run one.

    `version` of a request is a number, a label, or 0 for the highest.
    """

    def __init__(self, exports: Mapping[int, pathlib.Path], labels: Mapping[str, int]) -> None:
        self.labels = dict(labels)
        self._models, self.metadata = {}, {}
        for number, folder in exports.items():
            self._models[number] = tf.saved_model.load(str(folder))
            saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
            self.metadata[number] = saved.meta_graphs[0].signature_def

    def choose(self, model: str, version: int, label: str = "") -> int:
        """Returns the number of the version to ask."""
        if label and label not in self.labels:
            raise tf.errors.InvalidArgumentError(None, None, f"Unrecognized servable version label: {label}")
        number = self.labels[label] if label else version or max(self._models)
        if model != MODEL:
            raise tf.errors.NotFoundError(None, None, f"Servable not found for request: Latest({model})")
        if number not in self._models:
            raise tf.errors.NotFoundError(None, None, f"Could not find version {number} of model {model}")
        return number

    def run(self, number: int, signature: str, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Runs a signature."""
        functions = self._models[number].signatures
        if signature not in functions:
            raise tf.errors.FailedPreconditionError(None, None, f'Serving signature key "{signature}" not found.')
        function = functions[signature]
        specs = function.structured_input_signature[1]
        if missing := set(specs) - set(inputs):
            message = (
                f"Signature input alias: {min(missing)}(feed name: {specs[min(missing)].name}) not found in request"
            )
            message += f" and no default value provided. Inputs expected to be in the request {{{','.join(inputs)}}}"
            raise tf.errors.InvalidArgumentError(None, None, f"{message}, or default input alias set: ")
        if set(inputs) != set(specs):
            message = f"Inputs contains invalid name. Used request inputs: {','.join(specs)}, request input: "
            raise tf.errors.InvalidArgumentError(None, None, message + ",".join(inputs))
        for name, spec in specs.items():
            value = inputs[name]
            if value.dtype != spec.dtype or not spec.shape.is_compatible_with(value.shape):
                message = f"{name} must be {spec.dtype.name} {spec.shape}. Received: {value.dtype.name} {value.shape}"
                raise tf.errors.InvalidArgumentError(None, None, message)
        return function(**inputs)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def Predict(self, request, context):
        """Runs one request, and turns TensorFlow's errors into gRPC's."""
        spec = request.model_spec
        try:
            number = self._served.choose(spec.name, spec.version.value, spec.version_label)
            try:
                inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
            except (TypeError, ValueError) as error:
                raise tf.errors.InvalidArgumentError(None, None, f"tensor parsing error: {error}") from None
            outputs = self._served.run(number, spec.signature_name or "serving_default", inputs)
        except tf.errors.OpError as error:
            context.abort(CODES[error.error_code], error.message)
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(spec)
        response.model_spec.version.value = number
        for name in request.output_filter or outputs:
            if name not in outputs:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"output tensor alias not found in signature: {name}")
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name].numpy()))
        return response

    def GetModelMetadata(self, request, context):
        """Returns the signatures of a version."""
        try:
            spec = request.model_spec
            number = self._served.choose(spec.name, spec.version.value, spec.version_label)
        except tf.errors.OpError as error:
            context.abort(CODES[error.error_code], error.message)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name, response.model_spec.version.value = spec.name, number
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=self._served.metadata[number])
        response.metadata["signature_def"].Pack(signatures)
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def GetModelStatus(self, request, context):
        """Returns which versions are there: all of them are loaded."""
        spec = request.model_spec
        try:
            number = self._served.choose(spec.name, spec.version.value, spec.version_label)
        except tf.errors.OpError as error:
            context.abort(CODES[error.error_code], error.message)
        asked = spec.HasField("version") or spec.version_label
        status = get_model_status_pb2.ModelVersionStatus
        states = [
            status(version=n, state=status.AVAILABLE) for n in ([number] if asked else sorted(self._served.metadata))
        ]
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=states)


@contextlib.contextmanager
def grpc_server(exports: Mapping[int, pathlib.Path], labels: Mapping[str, int], threads: int = 4) -> Iterator[str]:
    """Serves versions of one model in this process and gives the address."""
    served = ServedModel(exports, labels)
    no_limit = [("grpc.max_receive_message_length", 2**31 - 1), ("grpc.max_send_message_length", 2**31 - 1)]
    server = grpc.server(ThreadPoolExecutor(threads), options=no_limit)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(served), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(served), server)
    port = server.add_insecure_port(f"{LOCAL}:0")
    server.start()
    try:
        yield f"{LOCAL}:{port}"
    finally:
        server.stop(grace=None).wait()


def free_port() -> int:
    """Returns a port that no one listens on."""
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server_process(kind: str, export: pathlib.Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Serves an export from a process of its own; gives its address and the process.

    Args:
        kind: `grpc` or `kserve`.
        export: folder of the SavedModel.
    """
    command = [sys.executable, __file__, kind, str(export)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            address = f"{LOCAL}:{int(process.stdout.readline())}"
            if kind == "kserve":
                _wait_for(f"http://{address}/v1/models/{MODEL}", process)
            yield address, process
        finally:
            process.stdin.close()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.1)
    raise RuntimeError(f"no server at {url}")


@contextlib.contextmanager
def http_server(answer: Callable[[dict, int], tuple[int, str]]) -> Iterator[tuple[str, list[dict]]]:
    """Runs an HTTP server whose every POST is answered by a function.

    Args:
        answer: from the request's JSON and its number, 0 the first, to the answer's status and body.

    Yields:
        The address, and the list of all requests so far, each with its `path`.
    """
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, **content})
            status, body = answer(content, len(seen) - 1)
            with contextlib.suppress(ConnectionError):  # the client may have gone
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer((LOCAL, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{LOCAL}:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _end_with_standard_input() -> None:
    sys.stdin.read()  # until the process that started this one closes it, or is no more
    os._exit(0)


def _main(kind: str, export: str) -> None:
    if kind == "grpc":
        with grpc_server({1: pathlib.Path(export)}, {"stable": 1}) as address:
            print(address.rpartition(":")[2], flush=True)
            sys.stdin.read()
    else:
        port = free_port()
        print(port, flush=True)
        threading.Thread(target=_end_with_standard_input, daemon=True).start()
        import kserve_server  # not installed everywhere

        kserve_server.serve(pathlib.Path(export), port)


if __name__ == "__main__":
    _main(*sys.argv[1:])


def columns(text: str) -> list[list[str]]:
    """Returns the columns of the lines that the client prints."""
    return [line.split("\t") for line in text.splitlines()]
