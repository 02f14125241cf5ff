"""Images that lie elsewhere since the training: each command that reads them takes `--data_dir`."""

import dataclasses
import json
import re

import pytest
from run_helpers import export_options

from thumbnet_tf import evaluate, export, plots, report, wire
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.runs import RunDir


def evaluated(run: RunDir, data_dir: str) -> None:
    """Runs the command on a run without results, a part of whose answers is kept."""
    before = (run.path / "results.csv").read_text()
    for name in ("results.csv", "thumbnet/logits_test.npy"):
        (run.path / name).unlink(missing_ok=True)
    try:
        evaluate.main(evaluate.Options(run_dir=str(run.path), data_dir=data_dir))
        assert (run.path / "results.csv").read_text() == before
    finally:
        (run.path / "results.csv").write_text(before)


def exported(run: RunDir, data_dir: str) -> None:
    folder, _ = export.export(export_options(run, run.path.parent / "exported", data_dir=data_dir))
    assert (folder / "README.md").is_file()


def reported(run: RunDir, data_dir: str) -> None:
    """Writes a report, which goes without images where it must; then raises what it says of them."""
    text = report.report(report.Options(run_dir=str(run.path), examples=1, mistakes=0, data_dir=data_dir)).read_text()
    if missing := re.search("--dataset=folder:PATH takes an existing folder.*", text):
        raise UserError(missing[0])
    assert ">Images and thumbnails</h2>" in text


def plotted(run: RunDir, data_dir: str) -> None:
    plots.main(plots.Options(run_dir=str(run.path), examples=1, data_dir=data_dir))
    assert (run.path / "plots" / "gallery.png").is_file()


def sent(run: RunDir, data_dir: str) -> None:
    wire.main(wire.Options(run_dir=str(run.path), method="bicubic", split="validation", data_dir=data_dir))
    assert read_rows(run.path / "bicubic" / "wire.csv")


@pytest.mark.parametrize(
    "use", [evaluated, exported, reported, *(pytest.param(each, marks=pytest.mark.slow) for each in (plotted, sent))]
)
def test_moved_images_are_found(use, run_copy, quick, capsys):
    cfg = run_copy.config()
    moved = dataclasses.replace(cfg, dataset="folder:gone")
    (run_copy.path / "config.json").write_text(moved.to_json())
    with pytest.raises(UserError, match="--dataset=folder:PATH takes an existing folder; .* Received: gone"):
        use(run_copy, "")
    use(run_copy, cfg.dataset.removeprefix("folder:"))
    assert json.loads((run_copy.path / "config.json").read_text())["dataset"] == "folder:gone"
    if use is evaluated:
        assert capsys.readouterr().out == f"{evaluate.table(run_copy)}\n"
