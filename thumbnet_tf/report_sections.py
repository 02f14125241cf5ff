"""The sections of a report."""

import dataclasses
import datetime
import shlex

from thumbnet_tf import benchmark_report, card, plots, report_figures, report_images, teacher_cache
from thumbnet_tf.config import Config
from thumbnet_tf.report_data import Study
from thumbnet_tf.report_html import Markup, element, facts, join, note, paragraph, plot, table
from thumbnet_tf.report_html import page as html_page
from thumbnet_tf.stages import METHODS, ORIGINAL, TAUGHT, loss_weights
from thumbnet_tf.stats import Calibration, Paired, wilson

CLASSES_SHOWN = 40  # all, up to here; else the first and the last half of the order
REFERENCE = "bicubic"  # what learned thumbnails are compared with, besides T
EPSILON = 5e-4  # p-values below are written as such


def page(study: Study, examples: int, mistakes: int) -> str:
    """Returns the report as HTML.

    Args:
        study: what was gathered.
        examples: images in the gallery.
        mistakes: most images shown that T gets right and S wrong.
    """
    sections = [("What was trained", _trained(study)), ("Accuracy", _accuracy(study)), ("Cost", _cost(study))]
    if study.dataset:
        sections += [
            ("Images and thumbnails", report_images.examples(study, examples)),
            ("Classes", _classes(study)),
            ("Right before, wrong now", report_images.mistakes(study, mistakes)),
            ("Calibration", _calibration(study)),
        ]
    sections += [("Training", _curves(study)), ("Export", _export(study)), ("Repeat it", _commands(study))]
    title = f"ThumbNet on {plots.dataset_title(study.cfg.dataset)}"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    version = study.versions.get("thumbnet_tf", "")
    footer = f"Made on {day} from the run {study.run.path} of thumbnet_tf {version}. T is the teacher, S its student."
    return html_page(title, _lead(study), sections, paragraph(footer))


def percent(share: float) -> str:
    """Returns a share in percent with one decimal."""
    return f"{100 * share:.1f}"


def _share_and_interval(right: int, total: int) -> tuple[str, str]:
    low, high = wilson(right, total)
    return percent(right / total), f"{percent(low)} to {percent(high)}"


def _top1(study: Study, method: str) -> tuple[int, int]:
    """Returns how many test images a method gets right, and of how many."""
    total = int(study.rows[method]["examples"])
    return round(float(study.rows[method]["top1"]) * total), total


def _macs(study: Study, method: str) -> tuple[int, int]:
    """Returns multiply-adds of the network, and of it with E."""
    row = study.rows[method]
    return int(row["macs"]), int(row["macs"]) + int(row["macs_downscaler"])


def _points(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _lead(study: Study) -> Markup:
    cfg, method = study.cfg, study.method
    first = paragraph(
        element("code", method),
        f" ({METHODS[method].about}) against the teacher T: {study.network}, "
        f"{cfg.image_size} px images, {cfg.thumbnail_size} px thumbnails.",
        class_="soft",
    )
    (right_t, total), (right_s, _) = _top1(study, ORIGINAL), _top1(study, method)
    teacher, student = _share_and_interval(right_t, total), _share_and_interval(right_s, total)
    fewer = _macs(study, ORIGINAL)[1] / _macs(study, method)[1]
    against = "points, S against T"
    if study.dataset:
        pair = Paired.of(study.right(ORIGINAL), study.right(method))
        against += f"; 95 %: {_points(*pair.interval())}"
    tiles = [
        (f"{teacher[0]} %", f"T, top-1 on {total} test images; 95 %: {teacher[1]}"),
        (f"{student[0]} %", f"S on thumbnails; 95 %: {student[1]}"),
        (f"{100 * (right_s - right_t) / total:+.1f}", against),
        (f"{fewer:.1f}x", "fewer multiply-adds than T, E counted")
        if fewer >= 1
        else (f"{1 / fewer:.1f}x", "as many multiply-adds as T: E costs more than S saves"),
        (f"{cfg.ratio**2}x", "fewer pixels in a thumbnail"),
    ]
    boxes = [element("div", element("b", value), text, class_="tile") for value, text in tiles]
    missing = ""
    if study.missing:
        missing = note(
            "The test images or the answers to them could not be read, so images, classes, calibration and paired "
            f"comparisons are left out: {study.missing}"
        )
    return join([first, element("div", *boxes, class_="tiles"), missing])


def _trained(study: Study) -> Markup:
    cfg, examples = study.cfg, study.facts["examples"]
    classes = study.facts["classes"]
    some = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    weights, given = loss_weights(study.method, cfg), not cfg.trains_teacher
    once = {"off": "T runs each epoch", "logits": "T's logits computed once", "all": "T's outputs computed once"}
    bad = sum(len(found) for found in study.facts.get("bad_images", {}).values())
    varies = study.student != study.network
    networks = f"T: {study.network}; S: {study.student}" if varies else f"T and S: {study.network}"
    rows = [
        ("Data", f"{cfg.dataset}: " + ", ".join(f"{count} {split}" for split, count in examples.items()) + " images"),
        ("Left out", f"{bad} images that can't be decoded" if bad else "no image"),
        ("Classes", f"{len(classes)}: {some}"),
        ("Sizes", f"{cfg.image_size} px images, {cfg.thumbnail_size} px thumbnails (ratio {cfg.ratio})"),
        ("Networks", f"{networks}; E: {_downscaler(study)}"),
        ("Teacher", f"taken from {cfg.teacher}" if given else f"trained here, epochs: {cfg.teacher_epochs}"),
        ("Loss", " + ".join(f"{w:g} {term.upper()}" for term, w in weights.items()) or "none"),
        ("Schedule", f"epochs: {cfg.epochs}; {cfg.optimizer}, batch {cfg.batch_size}, peak rate {cfg.learning_rate:g}"),
        ("Augmentation", augmentation(cfg)),
        ("T in training", once[cfg.teacher_cache] if set(TAUGHT) & weights.keys() else "not used by the losses"),
        ("Seed", cfg.seed),
        ("Versions", ", ".join(f"{name} {version}" for name, version in study.versions.items()) or "not recorded"),
        ("Fingerprint of the data", study.facts["fingerprint"]),
    ]
    return facts(rows)


def augmentation(cfg: Config) -> str:
    """Returns how the images that students are trained on vary, as words; `cfg` is resolved."""
    if cfg.augment == "none" and not cfg.mixup_alpha:
        return "none"
    count = teacher_cache.number_of_views(cfg)
    views = f"{count} view{'s' * (count > 1)} of each image" if count else "new each epoch"
    mixed = f", MixUp of alpha {cfg.mixup_alpha:g}" if cfg.mixup_alpha else ""
    return f"{cfg.augment}, {views}{mixed}"


def _downscaler(study: Study) -> str:
    kind = METHODS[study.method].downscaler
    return f"learned, {study.cfg.downscaler_width} channels" if kind == "learned" else f"{kind}, not learned"


def _accuracy(study: Study) -> Markup:
    rows = []
    for method, row in study.rows.items():
        share, interval = _share_and_interval(*_top1(study, method))
        agrees = percent(float(row["teacher_agreement"]))
        rows.append((method, METHODS[method].about, share, interval, percent(float(row["top5"])), agrees))
    titles = ("method", "what it is", "top-1, %", "95 % interval", "top-5, %", "agrees with T, %")
    total = _top1(study, ORIGINAL)[1]
    parts = [table(f"All {total} test images, each once; Wilson intervals", titles, rows, words=2)]
    if study.dataset:
        pairs = [(method, ORIGINAL) for method in study.rows if method != ORIGINAL]
        if REFERENCE in study.rows and study.method != REFERENCE:
            pairs.append((study.method, REFERENCE))
        titles = ("method", "against", "points", "95 % interval", "only it right", "only the other right", "p")
        caption = "The same images, answered by two methods: paired differences in top-1"
        parts.append(table(caption, titles, [_paired(study, *pair) for pair in pairs], words=2))
        parts.append(
            paragraph(
                "Intervals of differences are those of Agresti and Min for paired shares; p is the exact McNemar "
                "test's. Both tell of the chance in drawing test images, not of another seed's training.",
                class_="soft",
            )
        )
    return join(parts)


def _paired(study: Study, method: str, other: str) -> tuple[object, ...]:
    pair = Paired.of(study.right(other), study.right(method))
    p = pair.p_value()
    written = f"< {EPSILON:g}" if p < EPSILON else f"{p:.3f}"
    return method, other, f"{100 * pair.difference:+.1f}", _points(*pair.interval()), pair.second, pair.first, written


def _cost(study: Study) -> Markup:
    teacher = _macs(study, ORIGINAL)[1]
    rows = []
    for method, row in study.rows.items():
        alone, both = _macs(study, method)
        side = study.cfg.image_size // int(row["ratio"])
        amounts = (f"{alone / 1e6:.1f}", f"{both / 1e6:.1f}", f"{teacher / both:.1f}x")
        rows.append((method, f"{side} px", *amounts, f"{int(row['params']) / 1e6:.2f}"))
    titles = ("method", "input", "M multiply-adds, network", "with E", "fewer than T", "M parameters, E's included")
    drawing = report_figures.accuracy(list(study.rows.values()), plots.dataset_title(study.cfg.dataset))
    parts = [
        table("Cost of one image", titles, rows),
        plot(drawing, "Test accuracy over multiply-adds, E included; hollow: the network without it.", wide=True),
        element("h3", "Measured"),
    ]
    if study.benchmark:
        caption = "Measured by thumbnet_tf.benchmark on the machine where it ran"
        parts.append(table(caption, *benchmark_report.cells(study.benchmark), words=2))
    else:
        command = f"python -m thumbnet_tf.benchmark --run_dir={study.run.path} --method={study.method}"
        parts.append(note("No benchmark was run; ", element("code", command), " adds it."))
    return join(parts)


def _classes(study: Study) -> Markup:
    teacher, student, rows = study.right(ORIGINAL), study.right(study.method), []
    for label, name in enumerate(study.facts["classes"]):
        own = study.labels == label
        if own.any():
            pair = Paired.of(teacher[own], student[own])
            shares = (pair.both + pair.first) / pair.total, (pair.both + pair.second) / pair.total
            interval = _share_and_interval(pair.both + pair.second, pair.total)[1]
            change = f"{100 * pair.difference:+.1f}"
            bar = report_figures.change_bar(*shares)
            counts = (pair.first, pair.second)
            row = (name, bar, pair.total, percent(shares[0]), percent(shares[1]), interval, change, *counts)
            rows.append((pair.difference, row))
    rows.sort(key=lambda found: found[0])
    shown = [row for _, row in rows]
    text = "Ordered by the change."
    if len(shown) > CLASSES_SHOWN:
        half = CLASSES_SHOWN // 2
        shown = shown[:half] + shown[-half:]
        text = f"Of {len(rows)} classes, the {half} that lost most and the {half} that gained most or lost least."
    titles = ("class", "T to S", "images", "T, %", "S, %", "S, 95 %", "points", "only T right", "only S right")
    below = paragraph("The hollow point is T, the filled one S, from 0 to 100 %.", class_="soft")
    return join([paragraph(text), table("Top-1 of T and S by class", titles, shown, words=2), below])


def _calibration(study: Study) -> Markup:
    methods = {"T": ORIGINAL, "S": study.method}
    found = {name: Calibration.of(study.scores[method], study.labels) for name, method in methods.items()}
    rows = []
    for name, method in methods.items():
        mean = study.scores[method].max(-1).mean()
        rows.append((name, percent(study.right(method).mean()), percent(mean), percent(found[name].error)))
    return join(
        [
            paragraph(
                "A calibrated classifier is right nine times in ten where its score is 0.9: its points lie on the "
                "diagonal. Above it, scores are too modest; below, too sure."
            ),
            table("Scores of the answers", ("network", "right, %", "mean score, %", "ECE, %"), rows),
            plot(
                report_figures.reliability(found, methods),
                "Share of right answers over their score in ten bins of equal width, with 95 % Wilson intervals. ECE "
                "(expected calibration error) is the mean gap to the diagonal over all answers.",
                wide=True,
            ),
        ]
    )


def _curves(study: Study) -> Markup:
    if not study.metrics:
        return note("The run has no metrics.csv: nothing was trained in it, or the files were removed.")
    drawings = [plot(drawing) for _, drawing in report_figures.losses(study.metrics)]
    text = "Every loss term by method, before it is weighted; the total is weighted. "
    if ORIGINAL not in study.metrics:
        text += "The teacher was not trained in this run, so it has no curves."
    return join([paragraph(text), element("div", *drawings, class_="plots")])


def _export(study: Study) -> Markup:
    export = study.export
    if export is None:
        command = f"python -m thumbnet_tf.export --run_dir={study.run.path} --method={study.method}"
        return note(
            "No export of this run was found in saved_models; ", element("code", command), " makes one, and ",
            element("code", "--export_dir"), " of this command names one that lies elsewhere.",
        )  # fmt: skip
    manifest = export.manifest
    text = f"Version {manifest['version']}, exported on {manifest['created'][:10]}: {export.folder}. "
    text += "Every file answered the whole test split beside the trained Keras model, one image at a time."
    refused = [note(f"Not published: {line}.") for line in manifest.get("not_published", ())]
    titles, rows = card.parity_cells(export.parity)
    return join([paragraph(text), table("Exported files against Keras", titles, rows, words=2), *refused])


def _commands(study: Study) -> Markup:
    run, cfg = str(study.run.path), study.run.config()
    changed = [
        f"--{field.name}={_value(getattr(cfg, field.name))}"
        for field in dataclasses.fields(Config)
        if field.name != "run_dir" and getattr(cfg, field.name) != field.default
    ]
    train = ["python", "-m", "thumbnet_tf.train", *changed, "--run_dir=NEW"]
    again = ["python", "-m", "thumbnet_tf.train", f"--flagfile={run}/run.flags", "--run_dir=NEW"]
    others = [
        ["python", "-m", f"thumbnet_tf.{name}", "--run_dir=NEW", f"--method={study.method}"]
        for name in ("export", "benchmark", "report")
    ]
    return join(
        [
            paragraph("With the run's own flagfile, which holds every option:"),
            element("pre", shlex.join(again)),
            paragraph("Without it, by the options that differ from the defaults:"),
            element("pre", " \\\n  ".join([shlex.join(train[:3]), *(shlex.quote(flag) for flag in train[3:])])),
            paragraph("Then, for exported files, measured times and this page:"),
            element("pre", "\n".join(shlex.join(command) for command in others)),
        ]
    )


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
