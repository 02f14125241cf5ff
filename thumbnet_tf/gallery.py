"""The gallery of a run: test images, the thumbnails made of them, and what each network says."""

import textwrap

import keras
import numpy as np
from matplotlib.figure import Figure

from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.evaluate import load_parts
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import METHODS, ORIGINAL
from thumbnet_tf.stats import softmax

DPI = 120
PANEL_INCHES = 2.0
TEXT_WIDTH, TEXT_LINES = 24, 3  # characters and lines of a class name under an image; the rest is cut off
FAVOURITES = {"none": ORIGINAL, "bicubic": "bicubic", "learned": "thumbnet"}  # the method shown of a downscaler's kind


def figure(run: RunDir, dataset: sources.Dataset, examples: int) -> Figure:
    """Draws a row an image: original, bicubic and learned thumbnail, each with its network's answer below.

    Thumbnails are enlarged by nearest neighbour to the size that the original is drawn at. A column whose kind of
    downscaler no finished method has is left out.

    Args:
        run: a run directory with a finished teacher.
        dataset: its data, the test split at least.
        examples: how many images; fewer if the split has fewer.

    Returns:
        The figure.
    """
    cfg, split = run.config(), dataset.splits["test"]
    chosen = choose_examples(split.labels, examples)
    images = pipeline.eval_images(split, cfg, chosen)
    methods = shown_methods(run)
    inches = (1.4 + PANEL_INCHES * len(methods), 0.5 + 1.3 * PANEL_INCHES * len(chosen))
    result = Figure(figsize=inches, dpi=DPI, layout="constrained")
    grid = result.subplots(len(chosen), 1 + len(methods), squeeze=False, width_ratios=[0.6] + [1.0] * len(methods))
    for row, index in enumerate(chosen):
        axes = grid[row, 0]
        axes.axis("off")
        name = _wrapped(dataset.class_names[split.labels[index]], 16, 5)
        axes.text(0, 0.5, f"true label:\n{name}", transform=axes.transAxes, va="center", fontsize=9, parse_math=False)
    for column, (kind, method) in enumerate(methods.items(), 1):
        pictures, scores = _answers(run, method, images)
        side = pictures.shape[1]
        title = "original" if kind == "none" else f"{kind} thumbnail"
        grid[0, column].set_title(f"{title}, {side} px\n{method}", fontsize=10)
        for row, index in enumerate(chosen):
            axes, said = grid[row, column], int(scores[row].argmax())
            axes.imshow(pictures[row], interpolation="auto" if kind == "none" else "nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            right = said == split.labels[index]
            text = _wrapped(f"{'✓' if right else '✗'} {dataset.class_names[said]}", TEXT_WIDTH, TEXT_LINES)
            text = f"{text} {scores[row, said]:.2f}"
            axes.set_xlabel(text, color="green" if right else "red", fontsize=9, parse_math=False)
    return result


def choose_examples(labels: np.ndarray, count: int) -> list[int]:
    """Chooses examples spread over the classes: one of each class before a second of any.

    Args:
        labels: int64 (n,).
        count: how many; all if there are fewer.

    Returns:
        Indices, ordered by class; the same for the same labels.
    """
    classes = np.unique(labels)
    if count < len(classes):
        classes = classes[np.linspace(0, len(classes) - 1, count).astype(int)]
        return [int(np.flatnonzero(labels == label)[0]) for label in classes]
    rank = np.zeros(len(labels), np.int64)  # how many of its class stand before an example
    for label in classes:
        own = labels == label
        rank[own] = np.arange(own.sum())
    chosen = np.lexsort((labels, rank))[:count]
    return chosen[np.argsort(labels[chosen], kind="stable")].tolist()


def shown_methods(run: RunDir) -> dict[str, str]:
    """Returns the finished method to show of each kind of downscaler: the favourite, else the last one."""
    methods = {}
    for kind, favourite in FAVOURITES.items():
        of_kind = [name for name in run.finished_methods() if METHODS[name].downscaler == kind]
        if of_kind:
            methods[kind] = favourite if favourite in of_kind else of_kind[-1]
    return methods


def thumbnails(run: RunDir, method: str, images: np.ndarray) -> np.ndarray:
    """Returns what a method's network sees of images, rounded to 8 bits: uint8 (n, s, s, 3) in [0, 255].

    Args:
        run: the run directory.
        method: a finished method.
        images: uint8 (n, S, S, 3) in [0, 255].
    """
    small, _ = load_parts(run, method)
    return np.rint(_seen(small, images)).astype(np.uint8)


def _seen(small: keras.Model | None, images: np.ndarray) -> np.ndarray:
    """Returns what a network behind a downscaler sees, float32 (n, s, s, 3) in [0, 255]."""
    seen = images.astype(np.float32)
    return seen if small is None else small(seen, training=False).numpy()


def _answers(run: RunDir, method: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a method's network sees of images, uint8 (n, s, s, 3), and its scores, float64 (n, C)."""
    small, network = load_parts(run, method)
    seen = _seen(small, images)
    return np.rint(seen).astype(np.uint8), softmax(network(seen, training=False)["logits"].numpy())


def _wrapped(text: str, width: int, lines: int) -> str:
    """Breaks a text into lines, within words where it must, and cuts it off behind the last line."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="…"))
