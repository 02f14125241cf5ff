"""Draws a run: `losses.png`, `accuracy_vs_macs.png` and `gallery.png`.

python -m thumbnet_tf.plots --run_dir=runs/quickstart
python -m thumbnet_tf.plots --run_dir=runs/quickstart --examples=0     # without the gallery, which needs the data
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thumbnet_tf import flags, gallery
from thumbnet_tf.config import UserError, check_options, option
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.data import sources
from thumbnet_tf.evaluate import read_results
from thumbnet_tf.files import saving, write_figure
from thumbnet_tf.loop import COLUMNS
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import METHODS, ORIGINAL

DPI = 120
TERMS = ("cl", "kd", "fm", "mm")
TITLES = {
    "loss": "total loss (each method sums its own terms)",
    "accuracy": "accuracy, %",
    "cl": "CL: classification",
    "kd": "KD: distillation",
    "fm": "FM: feature mapping",
    "mm": "MM: moment matching",
}
# colour and marker of a method, the same in every figure and run
STYLES = {
    "original": ("black", "o"),
    "direct": ("tab:gray", "s"),
    "area": ("tab:olive", "D"),
    "bicubic": ("tab:blue", "^"),
    "bicubic_kd": ("tab:cyan", "v"),
    "supervised": ("tab:green", "<"),
    "supervised_kd": ("tab:orange", ">"),
    "supervised_kd_fm": ("tab:purple", "p"),
    "thumbnet": ("tab:red", "*"),
    "slim": ("teal", "P"),
    "no_mm": ("tab:pink", "h"),
    "no_kd": ("tab:brown", "d"),
    "no_fm": ("navy", "8"),
}
_TICKS = 8  # markers along a curve, roughly
_LINES = {"": {"linestyle": "--", "fillstyle": "none"}, "val_": {"linestyle": "-"}}  # by a column's prefix
# the line from a name's left end to its point
_LEADER = {"arrowstyle": "-", "alpha": 0.5, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4}

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    run_dir: str = option("", "run directory made by thumbnet_tf.train")
    out: str = option("", "folder for the PNG files; default <run_dir>/plots")
    examples: int = option(6, "test images in the gallery; 0 = no gallery", minimum=0, maximum=100)
    data_dir: str = option("", "where the data lie now, a folder of images or of TFDS; default as in training")

    def __post_init__(self) -> None:
        check_options(self)


def losses_figure(metrics: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws losses and accuracies over the epochs.

    Args:
        metrics: columns of each method's `metrics.csv`, float64 (epochs,) each, NaN where a term wasn't measured.

    Returns:
        A figure: total loss and accuracy above, one panel for each term that any method has below.
    """
    terms = measured_terms(metrics)
    figure = Figure(figsize=(12, 8), dpi=DPI, layout="constrained")
    above = ["loss"] * len(terms) + ["accuracy"] * len(terms)
    panels = figure.subplot_mosaic([above, list(np.repeat(terms, 2))])
    for name, axes in panels.items():
        draw_panel(axes, metrics, name)
    figure.legend(handles=curve_handles(metrics), loc="outside right upper")
    return figure


def measured_terms(metrics: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """Returns the loss terms that any method has; for `metrics` see `losses_figure`."""
    return [term for term in TERMS if any(np.isfinite(columns[term]).any() for columns in metrics.values())]


def draw_panel(axes: Axes, metrics: Mapping[str, Mapping[str, np.ndarray]], name: str) -> None:
    """Draws one of `TITLES` over the epochs for every method; for `metrics` see `losses_figure`."""
    for method, columns in metrics.items():
        scale = 100 if name == "accuracy" else 1
        for prefix, line in _LINES.items():
            _curve(axes, method, columns["epoch"], scale * columns[prefix + name], line)
    axes.set_title(TITLES[name])
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.margins(x=0.03)
    if all(len(columns["epoch"]) == 1 for columns in metrics.values()):
        axes.set_xlim(0.5, 1.5)


def curve_handles(methods: Iterable[str]) -> list[Line2D]:
    """Returns the legend of methods' curves, and of training and validation."""
    handles = [Line2D([], [], color=STYLES[method][0], marker=STYLES[method][1], label=method) for method in methods]
    for prefix, label in (("", "training"), ("val_", "validation")):
        handles.append(Line2D([], [], color="dimgrey", marker="o", label=label, **_LINES[prefix]))
    return handles


def _curve(axes: Axes, method: str, epochs: np.ndarray, values: np.ndarray, line: Mapping[str, str]) -> None:
    if np.isfinite(values).any():
        colour, marker = STYLES[method]
        every = max(1, len(epochs) // _TICKS)
        axes.plot(epochs, values, color=colour, marker=marker, markevery=every, markersize=6, linewidth=1.3, **line)


def accuracy_figure(
    rows: Sequence[Mapping[str, str]], dataset: str, inches: tuple[float, float] = (9.0, 6.0)
) -> Figure:
    """Draws the test accuracy over the multiply-adds, the downscaler's included.

    Args:
        rows: the test rows of `results.csv`.
        dataset: its name, for the title.
        inches: the figure's width and height.

    Returns:
        A figure of one labelled point a method; a hollow one shows the cost of the network behind the downscaler.
    """
    figure = Figure(figsize=inches, dpi=DPI)
    axes = figure.add_axes((0.09, 0.11, 0.88, 0.81))
    methods = [row["method"] for row in rows]
    network = np.array([float(row["macs"]) for row in rows])
    total = network + [float(row["macs_downscaler"]) for row in rows]
    accuracy = 100 * np.array([float(row["top1"]) for row in rows])
    for i, method in enumerate(methods):
        colour, marker = STYLES[method]
        if network[i] < total[i]:
            axes.plot([network[i], total[i]], [accuracy[i]] * 2, color=colour, alpha=0.25, linewidth=1)
            axes.plot(network[i], accuracy[i], marker, color=colour, fillstyle="none", alpha=0.35, markersize=7)
        axes.plot(total[i], accuracy[i], marker, color=colour, markersize=8)
    axes.set_xscale("log")
    spread = np.ptp(accuracy)
    axes.set_ylim(accuracy.min() - 0.1 * spread - 1, accuracy.max() + 0.1 * spread + 1)
    _label(axes, methods, total, accuracy, leftmost=network.min())
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(alpha=0.3)
    axes.set_xlabel("multiply-adds an image, downscaler included (hollow: the network alone), log scale")
    axes.set_ylabel("test top-1 accuracy, %")
    axes.set_title(f"{dataset}: {rows[0]['examples']} test images", parse_math=False)
    return figure


def _label(axes: Axes, methods: Sequence[str], x: np.ndarray, y: np.ndarray, leftmost: float) -> None:
    """Names the points and sets the x limits; points near each other share one column of names at their right."""
    figure, font = axes.figure, 10
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [figure.text(0, 0, method, fontsize=font) for method in methods]
    width = max(text.get_window_extent(renderer).width for text in texts) / axes.bbox.width
    for text in texts:
        text.remove()
    gap, tail = 0.035, 0.03  # between point and name, and behind the name, as shares of the axes' width
    low, high = np.log10(leftmost), np.log10(x.max())
    low = min(low - 0.05 * (high - low) - 0.1, high - 0.7)
    axes.set_xlim(10**low, 10 ** (low + (high - low) / (1 - width - gap - tail)))
    places = axes.transAxes.inverted().transform(axes.transData.transform(np.stack([x, y], axis=-1)))
    order = np.argsort(places[:, 0], kind="stable")
    columns = np.split(order, np.flatnonzero(np.diff(places[order, 0]) > width + gap + tail) + 1)
    line_height = 1.5 * font / 72 * figure.dpi / axes.bbox.height
    for column in columns:
        right = places[column, 0].max() + gap
        for i, height in zip(column, spread_apart(places[column, 1], line_height, 1.0), strict=True):
            colour = STYLES[methods[i]][0]
            axes.annotate(
                methods[i],
                (x[i], y[i]),
                (right, height),
                textcoords="axes fraction",
                color=colour,
                fontsize=font,
                verticalalignment="center",
                arrowprops={**_LEADER, "color": colour},
            )


def spread_apart(wanted: np.ndarray, gap: float, top: float) -> np.ndarray:
    """Moves places on [0, top] apart, by the least sum of squares.

    Args:
        wanted: where each would like to be, float64 (n,).
        gap: least distance between two.
        top: upper end.

    Returns:
        float64 (n,), in the same order.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    # isotonic regression: sorted places minus 0, gap, 2 gap, ... must not fall; where they do, they take their mean
    groups: list[list[float]] = []
    for value in wanted[order] - steps:
        groups.append([value])
        while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    level = np.concatenate([[np.mean(group)] * len(group) for group in groups])
    result = np.empty_like(wanted)
    result[order] = np.clip(level, gap / 2, max(top - gap / 2 - steps[-1], gap / 2)) + steps
    return result


def dataset_title(dataset: str) -> str:
    """Returns what a figure calls a dataset: its name, or its folder's."""
    folder = dataset.removeprefix("folder:")
    return dataset if folder == dataset else pathlib.PurePath(folder).name


def read_metrics(run: RunDir) -> dict[str, dict[str, np.ndarray]]:
    """Reads the columns of every `metrics.csv` of a run, finished or not, in the order of `stages.METHODS`.

    Raises:
        UserError: when one isn't as training wrote it.
    """
    metrics: dict[str, dict[str, np.ndarray]] = {}
    for method in METHODS:
        path = run.method(method) / "metrics.csv"
        rows = read_rows(path)
        try:
            if rows:
                absent = {name for name in COLUMNS if name.removeprefix("val_") in TERMS} - rows[0].keys()  # older
                metrics[method] = {
                    name: np.array([float("nan" if name in absent else row[name] or "nan") for row in rows])
                    for name in COLUMNS
                }
        except (KeyError, ValueError, TypeError):
            raise UserError(f"a metrics.csv must be as training wrote it; restore it. Received: {path}") from None
    return metrics


def draw(run: RunDir, out: pathlib.Path, examples: int, data_dir: str = "") -> list[pathlib.Path]:
    """Draws every figure that the run has the numbers for, and logs which it hasn't.

    Args:
        run: the run directory.
        out: folder for the PNG files; made if need be.
        examples: images in the gallery; 0 for no gallery.
        data_dir: see `Options`; empty for the run's own.

    Returns:
        The files written.

    Raises:
        UserError: when nothing can be drawn, or the run's files or data can't be used.
    """
    cfg = sources.moved(run.config(), data_dir)
    written = []
    if metrics := read_metrics(run):
        written.append(_save(losses_figure(metrics), out / "losses.png"))
    if rows := read_results(run, "test"):
        written.append(_save(accuracy_figure(rows, dataset_title(cfg.dataset)), out / "accuracy_vs_macs.png"))
    else:
        _log.info("no accuracy_vs_macs.png: the run has no results.csv yet (thumbnet_tf.evaluate writes it)")
    if examples and run.is_done(ORIGINAL):
        dataset = sources.load(cfg, ("test",))
        run.check_data(dataset.facts())
        written.append(_save(gallery.figure(run, dataset, examples), out / "gallery.png"))
    elif examples:
        _log.info("no gallery.png: the run's teacher isn't finished yet")
    if not written:
        raise UserError(f"--run_dir must hold a metrics.csv or results.csv; train first. Received: {run.path}")
    return written


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_figure(path, figure, bbox_inches="tight")
    return path


def main(options: Options) -> None:
    """Draws a run's figures and says where they lie."""
    run = RunDir.existing(options.run_dir)
    out = pathlib.Path(options.out) if options.out else run.path / "plots"
    for path in draw(run, out, options.examples, options.data_dir):
        print(path)


if __name__ == "__main__":
    flags.run(main, Options)
