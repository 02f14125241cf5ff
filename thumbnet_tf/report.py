"""Writes a report of a finished run: one HTML file, without scripts, that needs no network.

  python -m thumbnet_tf.report --run_dir=runs/quickstart
  python -m thumbnet_tf.report --export_dir=saved_models/thumbnet/1      # the run that was exported

It shows what was trained on what, accuracies with intervals, costs, images with their thumbnails, what changes by
class, mistakes, calibration, the curves of training, exported files, and how to repeat it all.
"""

import dataclasses
import os
import pathlib

from thumbnet_tf import flags, publish, report_sections
from thumbnet_tf.config import FlagError, UserError, check_options, option
from thumbnet_tf.files import saving, write_atomically
from thumbnet_tf.report_data import gather
from thumbnet_tf.runs import RunDir


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    run_dir: str = option("", "finished run directory made by thumbnet_tf.train; default: the one of --export_dir")
    export_dir: str = option(
        "",
        "a version's folder of an export, or the one above: its latest; default: the latest in saved_models that names "
        "the run",
    )
    method: str = option("", "finished method to report on; default the exported one, thumbnet, or the last one")
    out: str = option("", "HTML file; default <run_dir>/report.html")
    examples: int = option(6, "test images in the gallery", minimum=1, maximum=100)
    mistakes: int = option(24, "most images shown that T gets right and S wrong", minimum=0, maximum=1000)
    data_dir: str = option("", "where the data lie now, a folder of images or of TFDS; default as in training")

    def __post_init__(self) -> None:
        check_options(self)
        if not self.run_dir and not self.export_dir:
            raise FlagError("--run_dir or --export_dir must be given. Received: neither")


def report(options: Options) -> pathlib.Path:
    """Writes the report.

    Returns:
        The file.

    Raises:
        UserError: when the run isn't finished, its files are broken, or the file can't be written.
    """
    run_dir, method = options.run_dir, options.method
    if options.export_dir:
        manifest = publish.read_manifest(publish.version_folder(pathlib.Path(options.export_dir)))
        method = method or str(manifest.get("method", ""))
        run_dir = run_dir or str(manifest.get("run", ""))
        if not options.run_dir and not os.path.isfile(pathlib.Path(run_dir) / "config.json"):
            raise UserError(
                f"--export_dir must be an export of a run that is still there; its manifest names {run_dir or 'none'}. "
                f"Received: {options.export_dir}"
            )
    run = RunDir.existing(run_dir)
    study = gather(run, method, options.export_dir, options.data_dir)
    text = report_sections.page(study, options.examples, options.mistakes)
    out = pathlib.Path(options.out) if options.out else run.path / "report.html"
    with saving(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    return out


def main(options: Options) -> None:
    """Writes the report and says where it lies."""
    print(report(options))


if __name__ == "__main__":
    flags.run(main, Options)
