"""Classifies image files by a model that a server serves: TensorFlow Serving, or KServe over REST.

  python -m thumbnet_tf.client --grpc=localhost:8500 cat.jpg photos/
  python -m thumbnet_tf.client --rest=localhost:8501 --version_label=canary --output=labels.csv photos/
  python -m thumbnet_tf.client --grpc=localhost:8500 --downscaler=EXPORT/tflite/downscaler_int8.tflite photos/
  python -m thumbnet_tf.client --grpc=localhost:8500 --signature=thumbnail thumbs/

The third does what a device would: it downscales here, and only thumbnails go over the wire. Files are sent as they are
otherwise. Standard output holds one line a file: its path and `label score` pairs, best first, separated by tabs.
saved_models/README.md says how to start a server.
"""

import collections
import dataclasses
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np

from thumbnet_tf import flags
from thumbnet_tf.client_thumbnails import TfliteDownscaler
from thumbnet_tf.client_transport import (
    INPUTS,
    MAX_REQUEST_BYTES,
    GrpcTransport,
    Labels,
    RefusedError,
    RestTransport,
    Target,
    with_retries,
)
from thumbnet_tf.config import FlagError, UserError, check_options, option
from thumbnet_tf.csv_files import write_rows
from thumbnet_tf.data.store import is_turned, of_turned, try_decode
from thumbnet_tf.files import saving, write_atomically
from thumbnet_tf.intake import MAX_IMAGES
from thumbnet_tf.predict import list_images
from thumbnet_tf.progress import track

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    grpc: str = option("", "host:port of a server's gRPC interface; give this or --rest")
    rest: str = option("", "host:port or URL of a server's REST interface; give this or --grpc")
    model: str = option("thumbnet", "the model's name on the server")
    version: int = option(0, "the model's version; 0 = the server's choice, its highest", minimum=0)
    version_label: str = option("", "a label such as stable or canary in place of a version")
    signature: str = option(
        "serving_default", "serving_default for images, thumbnail for saved thumbnails", choices=tuple(INPUTS)
    )
    batch_size: int = option(16, "most images in a request", minimum=1, maximum=MAX_IMAGES)
    workers: int = option(2, "requests under way at a time", minimum=1, maximum=256)
    timeout_seconds: float = option(10.0, "how long a request may take, seconds", minimum=0.001, maximum=3600.0)
    retries: int = option(4, "how often a request is sent again when the server is away or busy", minimum=0, maximum=20)
    top: int = option(3, "labels shown for a file, best first; the server gives at most 5", minimum=1)
    output: str = option("", "file to write the answers to, .csv or .json; default standard output")
    on_bad_image: str = option("error", "what to do with an image that the server refuses", choices=("error", "skip"))
    downscaler: str = option("", "downscaler_*.tflite of an export: downscale here and send thumbnails only")
    thumbnail_format: str = option("png", "what --downscaler sends; png is exact", choices=("png", "jpeg"))
    thumbnail_quality: int = option(95, "quality of the thumbnails sent as jpeg", minimum=1, maximum=100)
    files: tuple[str, ...] = option((), "image files and folders of such")

    def __post_init__(self) -> None:
        check_options(self)
        if bool(self.grpc) == bool(self.rest):
            received = f"--grpc={self.grpc} --rest={self.rest}" if self.grpc else "none"
            raise FlagError(f"give one of --grpc=HOST:PORT and --rest=HOST:PORT. Received: {received}")
        if self.version and self.version_label:
            raise FlagError(
                f"give one of --version and --version_label. Received: {self.version} and {self.version_label!r}"
            )
        if self.output and pathlib.Path(self.output).suffix not in (".csv", ".json"):
            raise FlagError(f"--output must end with .csv or .json. Received: {self.output!r}")
        if not self.files:
            raise UserError("give image files or folders behind the flags. Received: none")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server says about one file: labels with scores, best first, or else why there are none."""

    file: str
    top: Labels = ()
    error: str = ""


class Client:
    """Sends images in batches, tries again what may succeed, and counts."""

    def __init__(
        self, transport: GrpcTransport | RestTransport, retries: int, downscaler: TfliteDownscaler | None = None
    ) -> None:
        """Keeps what to ask and how.

        Args:
            transport: asks the server once.
            retries: how often to try again.
            downscaler: what turns images into thumbnails before they are sent; None sends files as they are.
        """
        self._transport, self._retries, self._downscaler = transport, retries, downscaler
        self._stopped = Event()
        self.seconds: list[float] = []  # of each answered request; appending is safe from any thread
        self.sent: list[int] = []  # its bytes

    def stop(self) -> None:
        """Gives up what is under way in other threads."""
        self._stopped.set()
        self._transport.close()

    def classify(self, files: Sequence[str]) -> list[Answer]:
        """Classifies one batch of files; if it is refused, file by file, so that only the bad ones fail.

        Raises:
            UserError: when the server can't be reached or hasn't the model.
        """
        contents = [self._content(file) for file in files]
        good = [(file, data) for file, data in zip(files, contents, strict=True) if isinstance(data, bytes)]
        answers = {
            file: Answer(file, error=data) for file, data in zip(files, contents, strict=True) if isinstance(data, str)
        }
        try:
            answers |= self._ask(good)
        except RefusedError as refusal:
            if len(good) == 1:
                return [answers.get(file) or Answer(file, error=str(refusal)) for file in files]
            for item in good:
                try:
                    answers |= self._ask([item])
                except RefusedError as error:
                    answers[item[0]] = Answer(item[0], error=str(error))
        return [answers[file] for file in files]

    def summary(self, images: int, failed: int) -> str:
        """Returns one line about all requests."""
        text = f"{images} images, {failed} failed; {len(self.sent)} requests, {sum(self.sent) / 1e6:.2f} MB sent"
        if self.seconds:
            p50, p95 = np.percentile(self.seconds, (50, 95)) * 1000
            text += f"; latency of a request p50 {p50:.0f} ms, p95 {p95:.0f} ms"
        return text

    def _content(self, file: str) -> bytes | str:
        """Returns what to send, or why it can't be."""
        if self._downscaler is not None:
            image = try_decode(pathlib.Path.read_bytes, pathlib.Path(file))
            return image if isinstance(image, str) else self._downscaler(image)
        try:
            return pathlib.Path(file).read_bytes()
        except OSError as error:
            return error.strerror or type(error).__name__

    def _ask(self, items: Sequence[tuple[str, bytes]]) -> dict[str, Answer]:
        if not items:
            return {}
        images = [data for _, data in items]

        def attempt() -> tuple[list[Labels], int, float]:
            start = time.perf_counter()
            return *self._transport.predict(images), time.perf_counter() - start

        rows, sent, seconds = with_retries(attempt, self._retries, self._transport.target.address, self._stopped)
        self.seconds.append(seconds)
        self.sent.append(sent)
        return {file: Answer(file, top) for (file, _), top in zip(items, rows, strict=True)}


def batches(files: Sequence[str], batch_size: int, most_bytes: int) -> Iterator[list[str]]:
    """Cuts a list of files into batches of at most so many files and bytes; a larger file is a batch of its own."""
    batch, total = [], 0
    for file in files:
        size = os.path.getsize(file) if os.path.exists(file) else 0
        if batch and (len(batch) == batch_size or total + size > most_bytes):
            yield batch
            batch, total = [], 0
        batch.append(file)
        total += size
    if batch:
        yield batch


def in_order(
    function: Callable[[list[str]], list[Answer]], blocks: Iterable[list[str]], workers: int
) -> Iterator[Answer]:
    """Yields the answers to all blocks in their order, with `workers` of them under way and as many waiting."""
    pool = ThreadPoolExecutor(workers)
    waiting = collections.deque()
    try:
        for block in blocks:
            waiting.append(pool.submit(function, block))
            if len(waiting) == 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _line(answer: Answer) -> str:
    return "\t".join([answer.file, *(f"{label} {score:.4f}" for label, score in answer.top)])


def _write(path: pathlib.Path, answers: Sequence[Answer]) -> None:
    """Writes all answers, failed ones too, to a CSV or JSON file."""
    if path.suffix == ".json":
        rows = [
            {"file": answer.file, "top": [{"label": label, "score": score} for label, score in answer.top]}
            | {"error": answer.error}
            for answer in answers
        ]
        write_atomically(path, json.dumps(rows, indent=1) + "\n")
        return
    ranks = range(1, 1 + max(len(answer.top) for answer in answers))
    columns = ["file", *(f"{what}_{rank}" for rank in ranks for what in ("label", "score")), "error"]
    rows = [
        {"file": answer.file, "error": answer.error}
        | {f"label_{rank}": label for rank, (label, _) in enumerate(answer.top, 1)}
        | {f"score_{rank}": f"{score:.6f}" for rank, (_, score) in enumerate(answer.top, 1)}
        for answer in answers
    ]
    write_rows(path, columns, rows)


def main(options: Options) -> None:
    """Prints or writes an answer for each file, and a summary on standard error."""
    output = pathlib.Path(options.output)
    if options.output:
        with saving(output):
            output.parent.mkdir(parents=True, exist_ok=True)
    files = list_images(options.files)
    signature = "thumbnail" if options.downscaler else options.signature
    target = Target(
        options.grpc or options.rest,
        options.model,
        options.version,
        options.version_label,
        signature,
        options.timeout_seconds,
    )
    downscaler = None
    if options.downscaler:
        downscaler = TfliteDownscaler(options.downscaler, options.thumbnail_format, options.thumbnail_quality)
    transport = GrpcTransport(target) if options.grpc else RestTransport(target)
    client = Client(transport, options.retries, downscaler)
    most_bytes = MAX_REQUEST_BYTES * 3 // 4 if options.rest else MAX_REQUEST_BYTES  # base64 makes 4 bytes of 3
    batch_size = options.batch_size
    if downscaler:  # the files' sizes say nothing of what is sent
        batch_size, most_bytes = min(batch_size, max(1, most_bytes // downscaler.most_bytes)), sys.maxsize
    found = in_order(client.classify, batches(files, batch_size, most_bytes), options.workers)
    sys.stdout.reconfigure(errors="surrogateescape")  # a file name that is no UTF-8 comes out as it is on disk
    lines_show_progress = sys.stdout.isatty() and not options.output
    answers = []
    try:
        for answer in found if lines_show_progress else track(found, len(files), f"asking over {transport.name}"):
            if answer.error and options.on_bad_image == "error":
                raise UserError(
                    f"an image was refused; mend or remove it, or set --on_bad_image=skip. "
                    f"Received: {answer.file} ({answer.error})"
                )
            answers.append(dataclasses.replace(answer, top=answer.top[: options.top]))
            if answer.error:
                _log.warning("left out: %s (%s)", answer.file, answer.error)
            elif not options.output:
                print(_line(answers[-1]), flush=True)
    finally:
        client.stop()  # before the end of `found`, which waits for what is under way
        found.close()
        if options.output and answers:  # also those before an error
            _write(output, answers)
    failed = sum(bool(answer.error) for answer in answers)
    if turned := sum(is_turned(answer.file) for answer in answers if not answer.error):
        _log.warning(of_turned(turned, len(answers) - failed))
    if downscaler and (others := transport.versions - {downscaler.version}):
        _log.warning(
            "version %s of the model read thumbnails that version %d's E made: E and S of one version belong together. "
            "Give --version=%d, or the E of the version that answers",
            " and ".join(map(str, sorted(others))),
            downscaler.version,
            downscaler.version,
        )
    _log.info(client.summary(len(answers), failed))
    if failed == len(answers):
        raise UserError(f"at least one image must be readable; mend them. Received: {failed} refused files")


if __name__ == "__main__":
    flags.run(main, Options, positional="files")
