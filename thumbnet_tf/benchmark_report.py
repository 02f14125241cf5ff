"""The table and the figure of the inference benchmark, and how any benchmark is written."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from thumbnet_tf.csv_files import write_rows
from thumbnet_tf.files import saving, write_figure

# case -> what it is called in the table and the figure
CASES = {
    "macs": "multiply-adds",
    "peak_memory": "peak memory of activations, batch 32 of float32",
    "peak_memory_uint8": "the same, batch 32 of uint8",
    "keras_latency": "plain Keras call, batch 1",
    "function_latency": "tf.function, batch 1",
    "frozen_latency": "frozen, batch 1",
    "keras_throughput": "plain Keras call, batch 32",
    "frozen_throughput": "frozen, batch 32",
    "tflite_latency": "TFLite, 1 thread, batch 1",
}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of `cells` in Markdown."""
    titles, lines = cells(rows)
    rule = ["---", "---", *["---:"] * (len(titles) - 2)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, rule, *lines))


def cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns titles and lines of a table: what T costs, and how many times cheaper E + S and S alone are."""
    titles = ["backbone, px", "measured", "T"]
    groups = list(dict.fromkeys((str(row["backbone"]), str(row["image_size"])) for row in rows))
    columns = list(dict.fromkeys((row["model"], int(row["ratio"])) for row in rows if row["model"] != "teacher"))
    columns.sort(key=lambda column: (-column[1], column[0] == "student"))
    titles += [
        f"{'E + S' if model == 'thumbnet' else 'S alone'}, ratio {ratio} (times cheaper)" for model, ratio in columns
    ]
    lines = []
    for backbone, size in groups:
        found = {
            (row["case"], row["model"], int(row["ratio"])): row for row in rows if str(row["backbone"]) == backbone
        }
        for case, title in CASES.items():
            line = [f"{backbone}, {size}", title, _amount(found[case, "teacher", 1])]
            for column in columns:
                row = found.get((case, *column))
                line.append(f"{_amount(row)} ({float(row['teacher_over_it']):.1f}x)" if row else "-")
            lines.append(line)
    return titles, lines


def _amount(row: Mapping[str, Any]) -> str:
    value, unit = float(row["median"]), row["unit"]
    if unit == "bytes":
        return f"{value / 2**20:.1f} MiB"
    if unit == "multiply-adds":
        return f"{value / 1e6:.0f} M"
    return f"{value:.1f} {unit}"


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws how many times less than T each model costs, beside what its multiply-adds promise."""
    groups = list(dict.fromkeys(row["backbone"] for row in rows))
    columns = list(dict.fromkeys((row["model"], int(row["ratio"])) for row in rows if row["model"] != "teacher"))
    drawing = Figure(figsize=(11, 1 + 4.2 * len(groups)), dpi=120, layout="constrained")
    height = 0.8 / len(columns)
    for axes, backbone in zip(drawing.subplots(len(groups), squeeze=False)[:, 0], groups, strict=True):
        found = {
            (row["case"], row["model"], int(row["ratio"])): float(row["teacher_over_it"])
            for row in rows
            if row["backbone"] == backbone
        }
        for index, column in enumerate(columns):
            name = "E + S" if column[0] == "thumbnet" else "S alone"
            places = np.arange(len(CASES)) + (index - (len(columns) - 1) / 2) * height
            bars = axes.barh(
                places, [found[case, *column] for case in CASES], height, label=f"{name}, ratio {column[1]}"
            )
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axes.set_yticks(range(len(CASES)), CASES.values())
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.06)
        axes.set_title(f"{backbone} at {rows[0]['image_size']} px: how many times less than T")
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(columns))
    return drawing


def publish(
    folder: str | pathlib.Path,
    name: str,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    drawing: Figure,
    table: str,
) -> None:
    """Writes `<name>.csv` and `<name>.png` and prints the table.

    Raises:
        UserError: when the folder can't be written.
    """
    out = pathlib.Path(folder)
    with saving(out):
        out.mkdir(parents=True, exist_ok=True)
    write_rows(out / f"{name}.csv", columns, rows)
    write_figure(out / f"{name}.png", drawing)
    print(f"{table}\n\nwrote {out}/{name}.csv and .png")
