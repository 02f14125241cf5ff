"""Compares the demo's page with Python: the same photos, the same labels and scores.

  python -m experiments.demo_check --export_dir=saved_models/thumbnet/1 --images=photos/test --count=50

Serves the page, opens it in headless Chromium, chooses each photo as a user does, and reads what the page shows. Python
runs the same TFLite files on `preprocess.eval_crop` of the same files.
"""

import contextlib
import dataclasses
import json
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from experiments import browser
from thumbnet_tf import demo, demo_server, flags, preprocess, publish
from thumbnet_tf.config import UserError, check_options, option
from thumbnet_tf.predict import list_images

SCORE_DIFF = 1e-2  # largest difference of any score that float32 files may show

# labels and scores of a list in the page, and the thumbnail's pixels as RGBA
SCORES = "[...document.querySelectorAll('#{}-scores li')].map((li) => [li.dataset.label, Number(li.dataset.score)])"
_PIXELS = (
    "(() => {const c = document.getElementById('thumbnail');"
    "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data];})()"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    export_dir: str = option("saved_models/thumbnet", "a version's folder of an export, or the one above")
    images: str = option("", "folder of images")
    count: int = option(50, "images compared, spread evenly over the folder", minimum=1)
    variant: str = option("float32", "TFLite files that run", choices=("float32", "float16", "dynamic", "int8"))
    litert_dir: str = option(demo.LITERT_DIR, "folder where npm installed LiteRT.js")
    screenshots: str = option("", "folder to write screenshots to; none if empty")

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What one image's page and Python say.

    Attributes:
        file: the image.
        labels: the page's best label of S, and Python's.
        teacher_labels: of T; both empty without T.
        score_diff: largest difference of any shown score, S' and T's.
        thumbnail_diff: largest difference of a thumbnail's value, of 255.
        margin: by how much Python's best score of S exceeds its second.
    """

    file: str
    labels: tuple[str, str]
    teacher_labels: tuple[str, str]
    score_diff: float
    thumbnail_diff: int
    margin: float


@contextlib.contextmanager
def served(options: demo.Options) -> Iterator[str]:
    """Serves the page in a thread and yields its address."""
    with demo_server.Server(options.host, options.port, demo.resources(options)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def open_page(page: browser.Browser, url: str) -> None:
    """Opens the page and waits until it can take a photo.

    Raises:
        UserError: when it shows an error, such as for a model that it can't run.
    """
    page.call("Page.navigate", url=url)
    page.wait("['ready', 'error'].includes(document.body?.dataset.state)")
    _raise_its_error(page, "start", url)


def show(page: browser.Browser, file: str) -> None:
    """Chooses a file in the page and waits for its result, or for an error."""
    page.evaluate("document.body.dataset.state = 'chosen'")
    page.choose("#file", file)
    page.wait("['done', 'error'].includes(document.body?.dataset.state)")


def _raise_its_error(page: browser.Browser, expected: str, given: str) -> None:
    if page.evaluate("document.body.dataset.state") == "error":
        message = page.evaluate("document.getElementById('error').textContent")
        raise UserError(f"the page is expected to {expected}. Received: {given}, and {message!r}")


def compare(page: browser.Browser, export_dir: pathlib.Path, variant: str, files: Sequence[str]) -> list[Comparison]:
    """Shows files in an open page that is ready, and compares what it shows with Python's results.

    Raises:
        UserError: when the page shows an error.
    """
    folder = publish.version_folder(export_dir)
    facts = publish.read_manifest(folder)
    size, fraction = (facts["preprocessing"][key] for key in ("image_size", "crop_fraction"))
    paths = {name: folder / "tflite" / f"{name}_{variant}.tflite" for name in ("downscaler", "classifier")}
    paths["teacher"] = folder / "tflite" / "teacher_float32.tflite"
    run = {name: _runner(path) for name, path in paths.items() if path.is_file()}
    found = []
    for file in files:
        show(page, file)
        _raise_its_error(page, "answer a photograph", file)
        shown = _shown(page)
        image = preprocess.eval_crop(preprocess.decode_image(tf.io.read_file(file)), size, fraction).numpy()
        found.append(_compared(file, shown, image, run, facts["labels"]))
    return found


def _shown(page: browser.Browser) -> dict[str, Any]:
    """Returns the page's best labels, scores by label and thumbnail, uint8 (s, s, 3)."""
    side = page.evaluate("document.getElementById('thumbnail').width")
    label = "document.getElementById('{}-label').textContent"
    return {
        "labels": {who: page.evaluate(label.format(who)) for who in ("student", "teacher")},
        "scores": {who: page.evaluate(SCORES.format(who)) for who in ("student", "teacher")},
        "thumbnail": np.array(page.evaluate(_PIXELS), np.uint8).reshape(side, side, 4)[..., :3],
    }


def _compared(
    file: str, shown: dict[str, Any], image: np.ndarray, run: dict[str, Callable], labels: Sequence[str]
) -> Comparison:
    thumbnail = run["downscaler"](image)
    scores = {"student": run["classifier"](thumbnail)}
    if "teacher" in run:
        scores["teacher"] = run["teacher"](image)
    best, diff = {"teacher": ("", "")}, 0.0
    for who, values in scores.items():
        scores[who] = values = values / 256 if values.dtype == np.uint8 else values
        wanted = dict(zip(labels, values.tolist(), strict=True))
        best[who] = (shown["labels"][who], labels[values.argmax()])
        diff = max(diff, *(abs(score - wanted[label]) for label, score in shown["scores"][who]))
    second, first = np.sort(scores["student"])[-2:]
    off = int(np.abs(shown["thumbnail"].astype(int) - thumbnail.astype(int)).max())
    return Comparison(file, best["student"], best["teacher"], diff, off, float(first - second))


def _runner(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])[0]

    return run


def summary(rows: Sequence[Comparison]) -> dict[str, float]:
    """Returns the counts and the largest differences of some comparisons."""
    other = [row for row in rows if row.labels[0] != row.labels[1]]
    return {
        "images": len(rows),
        "same label": len(rows) - len(other),
        "largest margin of another label": max((row.margin for row in other), default=0.0),
        "same label of T": sum(row.teacher_labels[0] == row.teacher_labels[1] for row in rows),
        "largest score difference": max(row.score_diff for row in rows),
        "median score difference": float(np.median([row.score_diff for row in rows])),
        "equal thumbnails": sum(row.thumbnail_diff == 0 for row in rows),
        "largest thumbnail difference": max(row.thumbnail_diff for row in rows),
    }


def main(options: Options) -> int:
    """Prints the summary; the exit code is 1 when labels differ or scores by over 1e-2."""
    if browser.find() is None:
        raise UserError(f"one of {', '.join(browser.NAMES)} must be installed. Received: none")
    files = list_images([options.images])
    files = [files[index] for index in np.linspace(0, len(files) - 1, min(options.count, len(files))).astype(int)]
    served_options = demo.Options(
        export_dir=options.export_dir, variant=options.variant, port=0, litert_dir=options.litert_dir
    )
    with served(served_options) as url, browser.Browser() as page:
        open_page(page, url)
        found = compare(page, pathlib.Path(options.export_dir), options.variant, files)
        if options.screenshots:
            _take_screenshots(page, pathlib.Path(options.screenshots))
        print(page.evaluate("document.getElementById('runtime').textContent"))
        outside = [address for address in page.requests() if not address.startswith(url)]
        complaints = page.complaints()
    result = summary(found)
    print(json.dumps(result | {"requests elsewhere": outside, "complaints": complaints}, indent=2))
    good = result["same label"] == result["same label of T"] == result["images"]
    good &= result["largest score difference"] <= SCORE_DIFF and not outside and not complaints
    return 0 if good else 1


def _take_screenshots(page: browser.Browser, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, width, height, dark in (
        ("wide", 1000, 1100, False),
        ("dark", 1000, 1100, True),
        ("phone", 390, 844, False),
    ):
        page.screenshot(folder / f"{name}.png", width, height, dark)


if __name__ == "__main__":
    flags.run(main, Options)
