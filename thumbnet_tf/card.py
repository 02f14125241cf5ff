"""The model card of an export: what it is, how good, how to call it, and where it ends; and the parity figure."""

from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from thumbnet_tf.config import Config
from thumbnet_tf.stages import METHODS, ORIGINAL

_CARD = """# {name}, version {version}

Classifies an image into {count} classes ({some_classes}) from one thumbnail of {small} x {small} pixels: a downscaler E
({kind}) makes the thumbnail of a {size} x {size} crop, and the network S ({student}) reads it.

## Data

{examples} images of `{dataset}`: {splits}. Fingerprint of the data: `{fingerprint}`.

## Accuracy

Measured once on the test split; `{original}` is the full-size teacher T.

{metrics}

Each exported file over the same images, one at a time: its `top-1`, that of the trained Keras model, the share of equal
answers, the largest difference of any probability, and the median time for one image on the exporting machine.

{parity}
{refused}
## Calling it

Images are RGB; files may be JPEG, PNG, BMP, GIF (first frame) or WebP.

{calls}

`labels.txt` holds the classes in the order of `probabilities`. TFLite files take raw bytes, 0 to 255, without any
normalisation: of the {size} x {size} crop, or, `classifier_*`, of the {small} x {small} thumbnail. `downscaler_*` gives
the thumbnail's bytes as they are, whatever scale its tensor states. The crop is the central square, {crop:g} of the
short side, resized (bilinear, antialiased).

## Intended use and limits

* For images like those it was trained on. It always answers with one of its classes, also where none applies.
* What lies outside the central square is not seen. EXIF orientation is ignored: turn images upright before.
* The scores were not calibrated: 0.9 need not mean right nine times in ten.
* How it fares on groups of people, places or devices that the test split doesn't tell apart was not measured.
* The SavedModel refuses files of more than {megapixels} million pixels, and requests of more than {most} images.

## Origin

Run `{run}`, method `{method}` ({about}), seed {seed}; exported {date} with {versions}.
SHA-256 of the weights: `{digest}`; of each file: `manifest.json`.
"""


def text(
    cfg: Config,
    student: str,
    facts: Mapping,
    metrics: Sequence[Mapping[str, str]],
    parity: Sequence[Mapping],
    refused: Sequence[str],
) -> str:
    """Returns the card in Markdown.

    Args:
        cfg: the run's resolved configuration.
        student: what S is, as words.
        facts: what the manifest holds.
        metrics: the test rows of `results.csv`.
        parity: rows of `parity.csv`.
        refused: lines on what was not published.
    """
    data, method = facts["data"], facts["method"]
    classes = facts["labels"]
    return _CARD.format(
        name=facts["name"],
        version=facts["version"],
        count=len(classes),
        some_classes=", ".join(classes[:8]) + (", ..." if len(classes) > 8 else ""),
        small=cfg.thumbnail_size,
        size=cfg.image_size,
        kind=METHODS[method].downscaler,
        student=student,
        examples=sum(data["examples"].values()),
        dataset=data["dataset"],
        splits=", ".join(f"{count} {split}" for split, count in data["examples"].items()),
        fingerprint=data["fingerprint"],
        original=ORIGINAL,
        metrics=_markdown(
            ("method", "what it is", "top-1, %", "agrees with T, %", "M multiply-adds (+ E)"),
            [
                (
                    f"`{row['method']}`",
                    METHODS[row["method"]].about,
                    f"{100 * float(row['top1']):.1f}",
                    f"{100 * float(row['teacher_agreement']):.1f}",
                    f"{int(row['macs']) / 1e6:.1f} (+ {int(row['macs_downscaler']) / 1e6:.1f})",
                )
                for row in metrics
            ],
        ),
        parity=_markdown(*parity_cells(parity)),
        refused="".join(f"\nNot published, judged on the test split: {line}.\n" for line in refused),
        calls=_markdown(
            ("signature", "input", "outputs"),
            [
                (f"`{name}`", _tensors(ends["inputs"]), _tensors(ends["outputs"]))
                for name, ends in facts["signatures"].items()
            ],
        ),
        crop=cfg.crop_fraction,
        megapixels=facts["preprocessing"]["max_megapixels"],
        most=facts["preprocessing"]["max_images"],
        run=facts["run"],
        method=method,
        about=METHODS[method].about,
        seed=cfg.seed,
        date=facts["created"][:10],
        versions=", ".join(f"{package} {version}" for package, version in facts["packages"].items()),
        digest=facts["weights_sha256"],
    )


def parity_cells(rows: Sequence[Mapping]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns titles and cells of the parity table, one line an artifact with the times of 1 and 2 threads."""
    titles = (
        "artifact",
        "variant",
        "kB",
        "top-1, %",
        "Keras, %",
        "agrees, %",
        "score diff",
        "ms, 1 thread",
        "2 threads",
    )
    times: dict[tuple, list] = {}
    for row in rows:
        times.setdefault((row["artifact"], row["variant"]), []).append(row)
    lines = []
    for (artifact, variant), runs in times.items():
        percent = (f"{100 * float(runs[0][key]):.2f}" for key in ("top1", "keras_top1", "agreement"))
        latency = (str(run["latency_ms_p50"]) for run in runs)
        kilobytes = f"{int(runs[0]['bytes']) / 1000:.0f}"
        lines.append((artifact, variant, kilobytes, *percent, str(runs[0]["max_score_diff"]), *latency))
    return titles, lines


def parity_text(rows: Sequence[Mapping]) -> str:
    """Returns the parity table for a terminal."""
    titles, lines = parity_cells(rows)
    widths = [max(len(line[i]) for line in (titles, *lines)) for i in range(len(titles))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in (titles, *lines)]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def parity_figure(rows: Sequence[Mapping]) -> Figure:
    """Draws each artifact's points lost, size and time for one image."""
    single = [row for row in rows if row["threads"] == min(row["threads"] for row in rows)]
    names = [f"{row['artifact']} {row['variant']}" for row in single]
    lost = [100 * (float(row["keras_top1"]) - float(row["top1"])) for row in single]
    size = [int(row["bytes"]) / 1e6 for row in single]
    time = [float(row["latency_ms_p50"]) for row in single]
    figure = Figure(figsize=(11, 1.6 + 0.27 * len(single)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        (lost, "top-1 lost against Keras, points"),
        (size, "size, MB"),
        (time, f"median for one image, ms, {single[0]['threads']} thread"),
    )
    for axes, (values, title) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        colours = ["tab:gray" if row["artifact"] == "teacher" else "tab:red" for row in single]
        bars = axes.barh(names, values, color=colours, alpha=0.7)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.set_xlabel(title)
        axes.set_xlim(1.2 * min(0, *values), 1.2 * max(0.1, *values))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.suptitle(f"Exported artifacts against the Keras model, {single[0]['examples']} test images")
    return figure


def _tensors(specs: Mapping[str, Mapping]) -> str:
    def shape(sizes: Sequence[int | None]) -> str:
        return ", ".join(["N", *("?" if size is None else str(size) for size in sizes[1:])])

    return ", ".join(f"`{name}` {spec['dtype']} [{shape(spec['shape'])}]" for name, spec in specs.items())


def _markdown(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
