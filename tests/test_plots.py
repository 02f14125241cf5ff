"""Tests of the figures: they show the run's numbers, legibly, whatever the number of methods and epochs."""

import csv
import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib import image as pngs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from run_helpers import CLASSES, IMAGE_SIZE, RATIO

from thumbnet_tf import gallery, plots
from thumbnet_tf.config import UserError
from thumbnet_tf.data import sources
from thumbnet_tf.evaluate import load_parts
from thumbnet_tf.loop import COLUMNS
from thumbnet_tf.plots import Options
from thumbnet_tf.stages import METHODS


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


def test_all_figures_of_a_run(tiny_run, tmp_path, capsys):
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


def test_losses_are_the_csv_files_numbers(tiny_run):
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
    assert (
        len(figure.axes) == 2 + len(plots.measured_terms(metrics)) == (3 if len(methods) == 1 else 2 + len(plots.TERMS))
    )
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
    for looks in zip(*plots.STYLES.values(), strict=True):
        assert len(set(looks)) == len(METHODS)


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize(
    "methods", [("original",), ("thumbnet",), ("original", "direct", "bicubic", "thumbnet"), tuple(METHODS)]
)
def test_accuracy_labels_are_whole_and_apart(methods, close):
    rows = synthetic_rows(methods, close)
    figure = plots.accuracy_figure(rows, "discs")
    drawn = pixels(figure)
    (axes,) = figure.axes
    assert sorted(text.get_text() for text in axes.texts) == sorted(methods)
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the point
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    for box in boxes:
        assert frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
    assert panel(figure, axes, drawn).std() > 2
    low, high = axes.get_xlim()
    assert axes.get_xscale() == "log" and sum(low < tick < high for tick in axes.get_xticks()) >= 2


def test_accuracy_points_are_the_csv_files_numbers():
    rows = synthetic_rows(("original", "bicubic", "thumbnet"))
    (axes,) = plots.accuracy_figure(rows, "discs").axes
    points = [line.get_xydata()[0].tolist() for line in axes.lines if len(line.get_xdata()) == 1]
    # thumbnet has two: S alone, E + S
    np.testing.assert_allclose(points, [[2e6, 80], [150e3, 81.5], [150e3, 83], [160e3, 83]])
    assert axes.get_title() == "discs: 50 test images"


def test_spread_apart_moves_the_least():
    np.testing.assert_allclose(plots.spread_apart(np.array([0.2, 0.5, 0.8]), 0.1, 1.0), [0.2, 0.5, 0.8])
    np.testing.assert_allclose(plots.spread_apart(np.array([0.5, 0.5]), 0.1, 1.0), [0.45, 0.55])
    np.testing.assert_allclose(plots.spread_apart(np.array([0.52, 0.5, 0.9]), 0.1, 1.0), [0.56, 0.46, 0.9])
    np.testing.assert_allclose(plots.spread_apart(np.array([1.0, 0.0, 1.0]), 0.1, 1.0), [0.85, 0.05, 0.95])


@pytest.mark.parametrize(
    ("count", "wanted"), [(1, [2]), (2, [2, 0]), (3, [2, 1, 0]), (4, [2, 3, 1, 0]), (5, [2, 3, 1, 5, 0]), (99, None)]
)
def test_examples_are_spread_over_the_classes(count, wanted):
    labels = np.array([7, 4, 1, 1, 1, 4])
    assert gallery.choose_examples(labels, count) == (wanted or [2, 3, 4, 1, 5, 0])


def test_gallery_shows_the_models_thumbnails_and_answers(tiny_run):
    dataset = sources.load(tiny_run.config(), ("test",))
    labels = dataset.splits["test"].labels
    figure = gallery.figure(tiny_run, dataset, 4)
    drawn = pixels(figure)
    grid = np.array(figure.axes).reshape(4, 4)
    titles = [axes.get_title() for axes in grid[0, 1:]]
    side = IMAGE_SIZE // RATIO
    assert titles == [
        f"original, {IMAGE_SIZE} px\noriginal",
        f"bicubic thumbnail, {side} px\nbicubic",
        f"learned thumbnail, {side} px\nthumbnet",
    ]
    for row, index in zip(grid, gallery.choose_examples(labels, 4), strict=True):
        truth = CLASSES[labels[index]]
        assert row[0].texts[0].get_text() == f"true label:\n{truth}"
        original = row[1].images[0].get_array()
        for axes, method in zip(row[1:], ("original", "bicubic", "thumbnet"), strict=True):
            assert panel(figure, axes, drawn).std() > 5
            small, network = load_parts(tiny_run, method)
            seen = original[None].astype(np.float32)
            seen = seen if small is None else small(seen).numpy()
            np.testing.assert_array_equal(axes.images[0].get_array(), seen[0].astype(np.uint8))
            logits = network(seen)["logits"].numpy()[0]
            said = CLASSES[logits.argmax()]
            mark, name, score = axes.get_xlabel().split(" ")
            assert (mark, name) == ("✓" if said == truth else "✗", said)
            assert float(score) == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), abs=0.006)
            assert axes.xaxis.label.get_color() == ("green" if said == truth else "red")
            assert axes.images[0].get_interpolation() == ("auto" if method == "original" else "nearest")


def test_gallery_wraps_long_names_and_leaves_out_what_is_not_trained(run_copy):
    (run_copy.path / "thumbnet" / "done.json").unlink()
    (run_copy.path / "bicubic" / "done.json").unlink()
    dataset = sources.load(run_copy.config(), ("test",))
    long = ("Cypripedium_calceolus_" * 5, "great white shark, man-eater, Carcharodon carcharias " * 2, "$x_1")
    figure = gallery.figure(run_copy, dataclasses.replace(dataset, class_names=long), 3)
    pixels(figure)
    grid = np.array(figure.axes).reshape(3, 3)
    assert [axes.get_title().splitlines()[-1] for axes in grid[0, 1:]] == ["original", "direct"]
    frames = [axes.get_window_extent() for axes in grid[:, 1:].flat]
    texts = [axes.xaxis.label.get_window_extent() for axes in grid[:, 1:].flat]
    texts += [axes.texts[0].get_window_extent() for axes in grid[:, 0]]
    assert not any(text.overlaps(frame) for text in texts for frame in frames)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(texts, 2))


def test_what_is_not_there_yet_is_said_and_left_out(run_copy, caplog):
    (run_copy.path / "results.csv").unlink()
    (run_copy.path / "original" / "done.json").unlink()
    caplog.set_level("INFO", logger=plots.__name__)
    written = plots.draw(run_copy, run_copy.path / "plots", 4)
    assert [path.name for path in written] == ["losses.png"]
    assert "no accuracy_vs_macs.png: the run has no results.csv" in caplog.text
    assert "no gallery.png: the run's teacher isn't finished" in caplog.text
    for path in run_copy.path.glob("*/metrics.csv"):
        path.unlink()
    with pytest.raises(UserError, match=r"must hold a metrics.csv or results.csv; train first"):
        plots.draw(run_copy, run_copy.path / "plots", 0)


def test_mistakes_are_told(run_copy, tmp_path):
    run_dir = str(run_copy.path)
    with pytest.raises(UserError, match=r"--examples must be 0 to 100. Received: -1"):
        Options(run_dir=run_dir, examples=-1)
    with pytest.raises(UserError, match=r"--run_dir must hold the config.json"):
        plots.main(Options(run_dir=str(tmp_path)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written"):
        plots.main(Options(run_dir=run_dir, out=str(tmp_path / "file"), examples=0))
    facts = (run_copy.path / "data.json").read_text()
    (run_copy.path / "data.json").write_text(facts.replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(UserError, match=r"the data changed since this run started"):
        plots.main(Options(run_dir=run_dir))
    for text in ("epoch,step\n1,2\n", "epoch\nx\n"):
        (run_copy.path / "bicubic" / "metrics.csv").write_text(text)
        with pytest.raises(UserError, match=r"must be as training wrote it; restore it. Received: .*bicubic"):
            plots.main(Options(run_dir=run_dir, examples=0))
    (run_copy.path / "bicubic" / "metrics.csv").unlink()
    (run_copy.path / "results.csv").write_text("method,split,top1\nbicubic,test,0.5\n")
    with pytest.raises(UserError, match=r"must be as it was written; restore it. Received: .*results.csv"):
        plots.main(Options(run_dir=run_dir, examples=0))
