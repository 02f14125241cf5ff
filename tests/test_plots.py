"""Tests of the figures: they show the run's numbers, legibly, whatever the number of methods and epochs."""

import csv
import dataclasses
import itertools
import shutil

import numpy as np
import pytest
from matplotlib import image as pngs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from run_helpers import CLASSES, IMAGE_SIZE, RATIO, tiny_run  # noqa: F401 - fixtures

from thumbnet_tf import gallery, plots
from thumbnet_tf.config import UserError
from thumbnet_tf.data import sources
from thumbnet_tf.evaluate import load_parts
from thumbnet_tf.loop import COLUMNS
from thumbnet_tf.plots import Options
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import METHODS


@pytest.fixture
def run_copy(tiny_run, tmp_path) -> RunDir:  # noqa: F811
    """Returns a copy of the tiny run that may be changed."""
    return RunDir(shutil.copytree(tiny_run.path, tmp_path / "run"))


def pixels(figure: Figure) -> np.ndarray:
    """Draws a figure and returns its pixels, uint8 (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def panel(figure: Figure, axes, drawn: np.ndarray) -> np.ndarray:
    """Returns the pixels inside a panel's frame."""
    left, bottom, right, top = axes.get_window_extent().extents.round().astype(int)
    return drawn[len(drawn) - top + 3 : len(drawn) - bottom - 3, left + 3 : right - 3]


def synthetic_metrics(methods, epochs: int) -> dict:
    """Returns falling losses and rising accuracies in the columns that a training of each method fills."""
    metrics = {}
    for k, method in enumerate(method for method in methods if METHODS[method].losses):
        epoch = np.arange(1.0, epochs + 1)
        columns = {name: np.full(epochs, np.nan) for name in COLUMNS} | {"epoch": epoch}
        for prefix, name in itertools.product(("", "val_"), ("loss", *METHODS[method].losses)):
            columns[prefix + name] = np.exp(-epoch / 9) + 0.1 * k + 0.05 * len(prefix)
        columns |= {"accuracy": epoch / 200 + 0.02 * k, "val_accuracy": epoch / 250 + 0.02 * k}
        metrics[method] = columns
    return metrics


def synthetic_rows(methods, close: bool = False) -> list[dict]:
    """Returns test rows of `results.csv`: learned methods behind one downscaler, accuracies nearly equal if `close`."""
    rows = []
    for k, method in enumerate(methods):
        kind = METHODS[method].downscaler
        top1, macs = 0.8 + (0.0005 if close else 0.015) * k, 2_000_000 if kind == "none" else 150_000
        extra = 10_000 if kind == "learned" else 0
        rows.append({"method": method, "examples": 50, "top1": top1, "macs": macs, "macs_downscaler": extra})
    return rows


def test_all_figures_of_a_run(tiny_run, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "new" / "plots"
    plots.main(Options(run_dir=str(tiny_run.path), out=str(out), examples=4))
    names = ["losses.png", "accuracy_vs_macs.png", "gallery.png"]
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    for name in names:
        shown = pngs.imread(out / name)
        assert min(shown.shape[:2]) > 400 and max(shown.shape[:2]) < 2000
        assert shown[..., :3].std() > 0.05
        border = np.concatenate([shown[[0, -1]].reshape(-1, 4), shown[:, [0, -1]].reshape(-1, 4)])
        assert border.min() == 1  # white all around: nothing is cut off


def test_losses_are_the_csv_files_numbers(tiny_run):  # noqa: F811
    metrics = plots.read_metrics(tiny_run)
    assert list(metrics) == ["original", "bicubic", "thumbnet"]
    figure = plots.losses_figure(metrics)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == [plots.TITLES[name] for name in ("loss", "accuracy", "cl", "kd", "fm", "mm")]
    with open(tiny_run.path / "thumbnet" / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    for name, scale in {"loss": 1, "accuracy": 100, "kd": 1, "fm": 1, "mm": 1}.items():
        train, validation = panels[plots.TITLES[name]].lines[-2:]  # thumbnet's are drawn last
        assert train.get_linestyle() == "--" and validation.get_linestyle() == "-"
        assert train.get_ydata()[-1] == pytest.approx(scale * float(row[name]))
        assert validation.get_ydata()[-1] == pytest.approx(scale * float(row[f"val_{name}"]))
    assert len(panels[plots.TITLES["kd"]].lines) == 2 and len(panels[plots.TITLES["cl"]].lines) == 6
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["original", "bicubic", "thumbnet", "training", "validation"]


@pytest.mark.parametrize("epochs", [1, 100])
@pytest.mark.parametrize("methods", [("original",), tuple(METHODS)])
def test_every_panel_of_losses_shows_each_method(methods, epochs):
    metrics = synthetic_metrics(methods, epochs)
    figure = plots.losses_figure(metrics)
    drawn = pixels(figure)
    assert len(figure.axes) == (3 if len(methods) == 1 else 6)
    for axes in figure.axes:
        assert panel(figure, axes, drawn).std() > 2
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
        assert all(line.get_marker() != "None" for line in axes.lines)  # a single epoch is a visible point
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(box) for box in boxes)
    assert legend.x1 <= drawn.shape[1] and legend.y0 >= 0


def test_methods_can_be_told_apart():
    assert set(plots.STYLES) == set(METHODS)
    assert len({colour for colour, _ in plots.STYLES.values()}) == len({m for _, m in plots.STYLES.values()}) == len(METHODS)


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize(
    "methods", [("original",), ("thumbnet",), ("original", "direct", "bicubic", "thumbnet"), tuple(METHODS)]
)
def test_accuracy_labels_are_whole_and_apart(methods, close):
    rows = synthetic_rows(methods, close)
    figure = plots.accuracy_figure(rows, "discs")
    drawn = pixels(figure)
    (axes,) = figure.axes
    texts = {text.get_text(): text.get_window_extent() for text in axes.texts}
    boxes = [type(axes.bbox).from_extents(box.x0, box.y0, box.x1, box.y1) for box in texts.values()]
    assert list(texts) == list(methods)
    frame = axes.get_window_extent()
    for a, b in itertools.combinations([text.get_window_extent() for text in axes.texts], 2):
        del a, b
    for text in axes.texts:
        own = super(type(text), text).get_window_extent()  # without the leader line
        assert frame.x0 < own.x0 and own.x1 < frame.x1 and frame.y0 < own.y0 and own.y1 < frame.y1
    del boxes
    assert axes.get_xscale() == "log" and len(axes.get_xticks()) and panel(figure, axes, drawn).std() > 2
