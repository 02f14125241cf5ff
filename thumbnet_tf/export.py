"""Exports a method of a run: a SavedModel to serve, TFLite files to ship, and a table of what each costs and loses.

  python -m thumbnet_tf.export --run_dir=runs/quickstart
  python -m thumbnet_tf.export --run_dir=runs/quickstart --variants=float32,int8 --also=teacher,classifier
  python -m thumbnet_tf.export --run_dir=runs/quickstart --name=textures --fail_under=int8:0.5,int8_qat:0.2

Everything lies in saved_models/<name>/<version>/ at the end, or nothing: `README.md` there is the model card.
"""

import dataclasses
import datetime
import hashlib
import logging
import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from thumbnet_tf import card, flags, intake, parity, publish, qat, serving, teachers, thumbnet, variants, warmup
from thumbnet_tf.config import Config, FlagError, UserError, check_options, option
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.data import sources
from thumbnet_tf.evaluate import results_of
from thumbnet_tf.files import saving, write_atomically, write_figure
from thumbnet_tf.predict import choose_method
from thumbnet_tf.runs import RunDir, environment
from thumbnet_tf.stages import METHODS, ORIGINAL

ALSO = ("teacher", "classifier")
# most points of top-1 that an artifact may lose against Keras, by variant
FAIL_UNDER = {
    "float32": 0.2,
    "float16": 0.2,
    "dynamic": 0.5,
    "int8": 1.0,
    "int8_qat": 0.5,
    "pruned": 2.0,
    "clustered": 2.0,
}
SAVED_MODEL_DIFF = 1e-5  # of probabilities from Keras': what arithmetic in another order may change
# Where the order depends on the batch, E may round pixels of some thumbnails to another level. That moves the scores of
# these images further, and the answers where two classes are close.
ROUNDING_DIFF, ROUNDING_SHARE = 0.05, 0.005

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    run_dir: str = option("", "run directory made by thumbnet_tf.train")
    method: str = option("", "finished method to export; default thumbnet, or a finished run's last")
    out: str = option("saved_models", "folder of all exported models")
    name: str = option("", "the model's name; default the method's")
    version: int = option(0, "the version's number, a new one; 0 = the next", minimum=0)
    also: tuple[str, ...] = option((), "export T and S alone too, for comparison: teacher, classifier")
    variants: tuple[str, ...] = option(
        variants.VARIANTS, f"TFLite variants, of {', '.join(variants.VARIANTS)}; empty for none"
    )
    finetune_epochs: int = option(
        0,
        "epochs of fine-tuning; 0 = " + ", ".join(f"{count} for {name}" for name, count in qat.EPOCHS.items()),
        minimum=0,
    )
    calibration_images: int = option(256, "training images that int8's ranges are taken from", minimum=1)
    fail_under: tuple[str, ...] = option(
        (),
        "variant:points, the most points of top-1 it may lose against Keras before it is not published; default "
        + ",".join(f"{name}:{points:g}" for name, points in FAIL_UNDER.items()),
    )
    allow_new_labels: bool = option(False, "publish though the version before has other labels")
    data_dir: str = option("", "where the data lie now, a folder of images or of TFDS; default as in training")

    def __post_init__(self) -> None:
        check_options(self)
        for field, allowed in (("variants", variants.VARIANTS), ("also", ALSO)):
            for name in getattr(self, field):
                if name not in allowed:
                    raise FlagError(f"--{field} takes a list of {', '.join(allowed)}. Received: {name!r}")
        if self.name and (pathlib.Path(self.name).name != self.name or self.name.startswith(".")):
            raise FlagError(f"--name must be a plain folder's name. Received: {self.name!r}")
        self.points_allowed()

    def points_allowed(self) -> dict[str, float]:
        """Returns the most points that each variant may lose.

        Raises:
            FlagError: when `fail_under` can't be read.
        """
        allowed = dict(FAIL_UNDER)
        for item in self.fail_under:
            name, _, points = item.partition(":")
            try:
                value = float(points)
            except ValueError:
                value = -1.0
            if name not in allowed or not value >= 0:
                raise FlagError(
                    f"--fail_under takes variant:points, such as int8:1.0, of {', '.join(allowed)}. Received: {item!r}"
                )
            allowed[name] = value
        return allowed


def export(options: Options) -> tuple[pathlib.Path, list[str]]:
    """Exports, compares and publishes.

    Returns:
        The folder of the version, and a line for each TFLite file that lost too much to be published.

    Raises:
        UserError: on a mistake that the user can mend, and when a SavedModel doesn't equal Keras.
    """
    run = RunDir.existing(options.run_dir)
    if options.method == ORIGINAL:
        raise UserError(
            f"--method must be one that reads thumbnails; --also=teacher exports T beside it. Received: {ORIGINAL}"
        )
    method = choose_method(run, options.method, of_thumbnails=True)
    cfg = sources.moved(run.config(), options.data_dir).resolved()
    classes = run.data_facts()["classes"]
    sources.check_class_names(classes)
    name = options.name or method
    names = [*(f"{name}_{other}" for other in dict.fromkeys(options.also)), name]
    root = pathlib.Path(options.out)
    _check_labels(root / name, classes, options)
    dataset = sources.load(cfg)
    run.check_data(dataset.facts())
    metrics = results_of(run, method)
    student = teachers.student_name(method, cfg, teachers.network_name(run, cfg))
    models = thumbnet.deployed(run.load_model(method, "shipped"), run.load_model(ORIGINAL, "teacher"))
    chosen = variants.possible(options.variants, cfg, METHODS[method].downscaler, models.shipped)
    with run.lock(), publish.staging(root, names, options.version) as (version, folders):
        _check_labels(root / name, classes, options)  # again: another export may have ended since
        folder = folders[name]
        served = _write_saved_models(cfg, classes, models, name, folders)
        variants.write(
            folder / "tflite",
            chosen,
            cfg=cfg,
            classes=classes,
            models=models,
            train=dataset.splits["train"],
            cache=run.method(method) / "export",
            epochs=options.finetune_epochs,
            calibration_images=options.calibration_images,
            lenient=set(options.variants) == set(variants.VARIANTS),
        )
        rows = parity.compare(_subjects(name, folders), models, dataset.splits["test"], cfg)
        refused = _judge(rows, options.points_allowed(), folder / "tflite")
        facts = {
            "version": version,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "run": str(run.path),
            "method": method,
            "trained_sha256": publish.digest_of(run.method(method) / "shipped.keras"),
            "labels": classes,
            "data": run.data_facts(),
            "preprocessing": {
                "image_size": cfg.image_size,
                "crop_fraction": cfg.crop_fraction,
                "ratio": cfg.ratio,
                "thumbnail_size": cfg.thumbnail_size,
                "max_megapixels": intake.MAX_PIXELS // 10**6,
                "max_images": intake.MAX_IMAGES,
            },
            "packages": environment(),
        }
        write_rows(folder / "parity.csv", parity.COLUMNS, rows)
        write_figure(folder / "parity.png", card.parity_figure(rows), dpi=120)
        text = card.text(cfg, student, facts | served[name], metrics, rows, refused)
        write_atomically(folder / "README.md", text)
        for other, path in folders.items():
            publish.write_labels(path, classes)
            publish.write_manifest(path, facts | served[other] | ({"not_published": refused} if other == name else {}))
    return root / name / str(version), refused


def _check_labels(folder: pathlib.Path, classes: Sequence[str], options: Options) -> None:
    """Refuses to publish a version that a client of the version before would misread."""
    before = publish.versions(folder)
    labels = publish.read_labels(folder / str(before[-1])) if before else []
    if labels and labels != list(classes) and not options.allow_new_labels:
        raise UserError(
            f"{folder}/{before[-1]} has other labels ({', '.join(labels[:4])}, ...); choose another --name, or set "
            f"--allow_new_labels. Received: {', '.join(classes[:4])}, ..."
        )


def _write_saved_models(
    cfg: Config, classes: Sequence[str], models: thumbnet.Deployed, name: str, folders: Mapping[str, pathlib.Path]
) -> dict[str, Any]:
    """Writes the SavedModels with their warm-up requests, replays these, and returns what the manifest of each says."""
    large, small = cfg.image_size, cfg.thumbnail_size
    of = {  # the model, its signatures, and the size of the images that warm each up
        name: (
            models.shipped,
            serving.thumbnet_endpoints,
            {"serving_default": large, "pixels": large, "downscale": large, "thumbnail": small},
        ),
        f"{name}_teacher": (models.teacher, serving.teacher_endpoints, {"serving_default": large, "pixels": large}),
        f"{name}_classifier": (
            models.student,
            serving.classifier_endpoints,
            {"serving_default": small, "thumbnail": small},
        ),
    }
    facts = {}
    for served, folder in folders.items():
        model, endpoints, sizes = of[served]
        _log.info("writing the SavedModel %s", served)
        with saving(folder):
            serving.save(folder, model, endpoints(cfg, classes, models))
            loaded = tf.saved_model.load(str(folder))
            warmup.write(folder, loaded, served, sizes)
        _log.info("replayed %d warm-up requests", warmup.replay(folder, loaded))
        signatures = {
            key: {
                "inputs": _specs(function.structured_input_signature[1]),
                "outputs": _specs(function.structured_outputs),
            }
            for key, function in loaded.signatures.items()
        }
        facts[served] = {"name": served, "signatures": signatures, "weights_sha256": _digest(model)}
    return facts


def _specs(tensors: Mapping[str, tf.TensorSpec]) -> dict[str, dict]:
    return {name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in sorted(tensors.items())}


def _subjects(name: str, folders: Mapping[str, pathlib.Path]) -> list[parity.Subject]:
    """Returns everything that was written, as parity takes it."""
    found = [
        parity.Subject("thumbnet", parity.SAVED_MODEL, folders[name], "serving_default"),
        parity.Subject("thumbnet", f"{parity.SAVED_MODEL}_pixels", folders[name], "pixels"),
    ]
    for other in ALSO:
        if f"{name}_{other}" in folders:
            found.append(parity.Subject(other, parity.SAVED_MODEL, folders[f"{name}_{other}"], "serving_default"))
    for artifact in variants.ARTIFACTS:
        for variant in variants.VARIANTS:
            path = folders[name] / "tflite" / variants.file_name(artifact, variant)
            if path.exists():
                found.append(parity.Subject(artifact, variant, path))
    return found


def _judge(rows: Sequence[Mapping[str, Any]], allowed: Mapping[str, float], folder: pathlib.Path) -> list[str]:
    """Removes each TFLite file that lost too much, and returns a line on it.

    Raises:
        UserError: when a SavedModel doesn't equal Keras: then nothing is to be published.
    """
    refused = {}
    for row in rows:
        artifact, variant = row["artifact"], row["variant"]
        if variant.startswith(parity.SAVED_MODEL):
            if not _equals_keras(row):
                raise UserError(
                    f"nothing is published, for {artifact} {variant} doesn't equal Keras; please report it. Received: "
                    f"agreement {row['agreement']}, difference of scores {row['median_score_diff']} in the median and "
                    f"{row['max_score_diff']} at most"
                )
            continue
        lost = 100 * (float(row["keras_top1"]) - float(row["top1"]))
        if lost <= allowed[variant] + 1e-9:
            continue
        limit = allowed[variant]
        line = f"{artifact} {variant} lost {lost:.2f} points of top-1, more than the {limit:g} of --fail_under"
        refused[folder / variants.file_name(artifact, variant)] = line
    for path in refused:
        path.unlink()
    return list(refused.values())


def _equals_keras(row: Mapping[str, Any]) -> bool:
    """Returns whether a SavedModel answers as the Keras model does, but for arithmetic in another order."""
    largest = float(row["max_score_diff"])
    if row["artifact"] != "thumbnet":  # nothing is rounded inside
        return float(row["agreement"]) == 1 and largest <= SAVED_MODEL_DIFF
    others = round((1 - float(row["agreement"])) * int(row["examples"]))
    few = others <= max(1, ROUNDING_SHARE * int(row["examples"]))
    return few and float(row["median_score_diff"]) <= SAVED_MODEL_DIFF and largest <= ROUNDING_DIFF


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()


def main(options: Options) -> None:
    """Exports, and prints the parity table."""
    # ends as any error does, so that what was written so far is removed
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    tf.config.set_visible_devices([], "GPU")  # whose answers differ in the last digits, and with the batch
    folder, refused = export(options)
    print(card.parity_text(read_rows(folder / "parity.csv")))
    print(f"\npublished {folder}\n  {folder}/README.md is the model card; saved_models/README.md says how to serve it")
    if refused:
        raise UserError(f"not everything was published in {folder}: {'; '.join(refused)}")


if __name__ == "__main__":
    flags.run(main, Options)
