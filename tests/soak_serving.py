"""Sends thousands of good and bad requests to a served export, and checks every single answer.

  python tests/soak_serving.py --export_dir=saved_models/thumbnet/1 --requests=10000

The server is a process of its own on this machine (`serving_helpers`), asked over gRPC by several threads. Good
requests must get the SavedModel's own answer; bad ones INVALID_ARGUMENT with a message that says what is wrong and
where; and the server must be there at the end. Reported are latencies under this load and how the server's memory grew.
"""

import collections
import dataclasses
import pathlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import tensorflow as tf
from serving_helpers import MODEL, server_process
from soak_cases import Case, make_cases
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from thumbnet_tf import flags
from thumbnet_tf.config import UserError, check_options, option
from thumbnet_tf.progress import track
from thumbnet_tf.publish import read_manifest

REQUEST_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the script."""

    export_dir: str = option("", "folder of an exported version, such as saved_models/thumbnet/1")
    requests: int = option(10_000, "how many to send", minimum=1)
    workers: int = option(4, "requests under way at a time", minimum=1, maximum=64)
    minutes: float = option(60.0, "when to stop sending, whatever was sent", minimum=0.1)
    seed: int = option(0, "seed of images, damage and order", minimum=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass
class Report:
    """What came back.

    Attributes:
        counts: requests by kind.
        wrong: a line for each wrong answer.
        seconds: of each request.
        megabytes: the server's memory after a tenth of the requests and at the end.
    """

    counts: collections.Counter
    wrong: list[str]
    seconds: list[float]
    megabytes: tuple[float, float] = (0.0, 0.0)

    def __str__(self) -> str:
        p50, p95, most = np.percentile(self.seconds, (50, 95, 100)) * 1000
        kinds = "\n".join(f"  {count:6d} {kind}" for kind, count in sorted(self.counts.items()))
        return (
            f"{len(self.seconds)} requests, {len(self.wrong)} wrong answers\n{kinds}\n"
            f"latency: p50 {p50:.0f} ms, p95 {p95:.0f} ms, longest {most:.0f} ms\n"
            f"memory of the server: {self.megabytes[0]:.0f} MB after a tenth, {self.megabytes[1]:.0f} MB at the end"
        )


def check(stub: prediction_service_pb2_grpc.PredictionServiceStub, case: Case) -> tuple[float, str]:
    """Sends one request; returns the seconds it took, and what is wrong with the answer, if anything."""
    request = predict_pb2.PredictRequest(model_spec={"name": MODEL, "signature_name": case.signature})
    if case.value.dtype == object:
        proto = tf.make_tensor_proto(case.value.tolist(), tf.string, shape=case.value.shape)
    else:
        proto = tf.make_tensor_proto(case.value)
    request.inputs[case.name].CopyFrom(proto)
    start = time.perf_counter()
    try:
        response = stub.Predict(request, timeout=REQUEST_SECONDS)
    except grpc.RpcError as error:
        seconds = time.perf_counter() - start
        said = f"{error.code().name}: {error.details()}"
        right = case.wanted is None and error.code() == grpc.StatusCode.INVALID_ARGUMENT and case.text in said
        return seconds, "" if right else f"{case.kind} {case.value.shape} got {said[:300]!r}"
    seconds = time.perf_counter() - start
    found = tf.make_ndarray(response.outputs["probabilities"])
    if case.wanted is None:
        return seconds, f"{case.kind} {case.value.shape} was answered"
    if found.shape != case.wanted.shape or np.abs(found - case.wanted).max() > 1e-5:
        return seconds, f"{case.kind} {case.value.shape} got another answer"
    return seconds, ""


def memory(pid: int) -> float:
    """Returns how much memory a process holds, MB."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


def soak(export: pathlib.Path, requests: int, workers: int, minutes: float = 60.0, seed: int = 0) -> Report:
    """Starts a server, sends the requests and returns what came back.

    Raises:
        UserError: when the server died.
    """
    facts = read_manifest(export)["preprocessing"]
    model = tf.saved_model.load(str(export))

    def ask(signature: str, value: np.ndarray) -> dict[str, np.ndarray]:
        value = tf.constant(value.tolist(), tf.string) if value.dtype == object else tf.constant(value)
        return {key: output.numpy() for key, output in model.signatures[signature](value).items()}

    cases = make_cases(ask, facts["image_size"], facts["thumbnail_size"], min(requests, 400), seed)
    rng = np.random.default_rng(seed)
    # every case once, then at random
    order = [*rng.permutation(len(cases)), *rng.integers(len(cases), size=requests)][:requests]
    report = Report(collections.Counter(), [], [])
    lock = threading.Lock()

    def send(index: int) -> None:
        if time.monotonic() > end:
            return
        seconds, wrong = check(stub, cases[index])
        with lock:
            report.counts[cases[index].kind] += 1
            report.seconds.append(seconds)
            report.wrong += [wrong] if wrong else []

    def run(part: list[int]) -> Iterator[None]:
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(send, part)

    with server_process("grpc", export) as (address, process), grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        end = time.monotonic() + 60 * minutes
        tenth = requests // 10
        collections.deque(run(order[:tenth]), maxlen=0)
        early = memory(process.pid)
        collections.deque(track(run(order[tenth:]), requests - tenth, "soaking"), maxlen=0)
        if process.poll() is not None:
            raise UserError(f"the server must go on. Received: its end, by {process.returncode}; {report}")
        report.megabytes = early, memory(process.pid)
    return report


def main(options: Options) -> int:
    """Prints the report and the first wrong answers; returns 1 if there are any."""
    export = pathlib.Path(options.export_dir)
    report = soak(export, options.requests, options.workers, options.minutes, options.seed)
    print("\n".join([str(report), *report.wrong[:20]]))
    return int(bool(report.wrong))


if __name__ == "__main__":
    flags.run(main, Options)
