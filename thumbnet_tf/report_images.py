"""The report's images: full size, and their thumbnails enlarged and as large as they are."""

from collections.abc import Sequence

import numpy as np

from thumbnet_tf import gallery
from thumbnet_tf.data import pipeline
from thumbnet_tf.report_data import Study
from thumbnet_tf.report_html import Markup, element, image, join, paragraph
from thumbnet_tf.stages import METHODS, ORIGINAL


def examples(study: Study, count: int) -> Markup:
    """Returns test images of all classes, with the thumbnail of each kind of downscaler and each network's answer.

    Args:
        study: what was gathered; its dataset must be there.
        count: how many; fewer if there are fewer.
    """
    chosen = gallery.choose_examples(study.labels, count)
    shown = gallery.shown_methods(study.run) | {METHODS[study.method].downscaler: study.method}
    text = (
        "Thumbnails stand enlarged beside the image, each pixel a square, and below as large as they are. They are "
        "exact; full images are JPEG here, to keep this file small. Under each: its network's answer and score."
    )
    columns = [method for method in shown.values() if method in study.scores]
    return join([paragraph(text), _cards(study, chosen, columns)])


def mistakes(study: Study, most: int) -> Markup:
    """Returns the images that T gets right and S wrong, those first of whose wrong answer S is surest.

    Args:
        study: what was gathered; its dataset must be there.
        most: how many are shown.
    """
    teacher, student = study.right(ORIGINAL), study.right(study.method)
    lost = np.flatnonzero(teacher & ~student)
    gained = int((student & ~teacher).sum())
    counts = f"T is right and S wrong for {len(lost)} of {len(teacher)} test images"
    text = f"{counts}; the reverse holds for {gained}. "
    chosen = lost[np.argsort(-study.scores[study.method][lost].max(-1), kind="stable")][:most].tolist()
    if not chosen:
        return paragraph(text)
    text += "Those come first of whose wrong answer S is surest"
    text += "." if len(chosen) == len(lost) else f"; the first {len(chosen)} are shown."
    return join([paragraph(text), _cards(study, chosen, [ORIGINAL, study.method])])


def _cards(study: Study, chosen: Sequence[int], methods: Sequence[str]) -> Markup:
    """Returns a card for each example, with a column for each method."""
    split = study.dataset.splits["test"]
    images = pipeline.eval_images(split, study.cfg, chosen)
    seen = {method: gallery.thumbnails(study.run, method, images) for method in methods}
    cards = []
    for place, index in enumerate(chosen):
        truth = study.facts["classes"][study.labels[index]]
        columns = [_column(study, method, index, seen[method][place], truth) for method in methods]
        strip = element("div", *columns, class_="strip")
        cards.append(element("article", element("h3", truth), strip, class_="card"))
    return element("div", *cards, class_="cards narrow" if len(methods) < 3 else "cards")


def _column(study: Study, method: str, index: int, pixels: np.ndarray, truth: str) -> Markup:
    kind, side = METHODS[method].downscaler, pixels.shape[0]
    said, score = int(study.said(method)[index]), float(study.scores[method][index].max())
    answer = study.facts["classes"][said]
    right = said == study.labels[index]
    name = "T" if method == ORIGINAL else "S" if method == study.method else method
    verdict = element("span", f"{'✓' if right else '✗'} {answer} {score:.2f}", class_="good" if right else "bad")
    if kind == "none":
        parts = [image(pixels, f"test image of {truth}", exact=False, class_="large")]
    else:
        what = f"{kind} thumbnail of {truth}"
        parts = [
            image(pixels, f"{what}, enlarged", exact=True, class_="large pixels"),
            image(pixels, f"{what} at its own size", exact=True, class_="own", own_size=True),
        ]
    title = element("div", f"{name}, {side} px", class_="soft")
    return element("div", *parts, title, verdict)
