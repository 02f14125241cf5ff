"""The README's commands must exist and its tables must be those of the result files."""

import importlib
import pathlib
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from data_helpers import by_pillow
from run_helpers import CLASSES

import experiments.run
import thumbnet_tf
from experiments import choices, demo_check, deployment, row_tables, speed, summary, tables, views
from thumbnet_tf import (
    benchmark,
    client,
    demo,
    evaluate,
    export,
    flags,
    plots,
    predict,
    preprocess,
    report,
    wire,
)
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.data import fine_detail
from thumbnet_tf.evaluate import COLUMNS

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
OPTIONS = {
    "train": Config,
    "evaluate": evaluate.Options,
    "predict": predict.Options,
    "plots": plots.Options,
    "report": report.Options,
    "export": export.Options,
    "client": client.Options,
    "demo": demo.Options,
    "wire": wire.Options,
    "benchmark": benchmark.Options,
}
# what stands for a value in commands -> one
PLACES = {"N": "1", "K": "1", "$epochs": "1", "$rate": "0.1", "METHOD": "thumbnet", "FLAG": "--w_mm=1"}


def commands(package: str) -> list[str]:
    """Returns the commands of a package that the pages and flagfiles name, from `package.` on."""
    page = (ROOT / "experiments" / "README.md").read_text()
    texts = [README, page, *(path.read_text() for path in (ROOT / "experiments").glob("*.flags"))]
    name = rf"({package}\."
    joined = [text.replace("\\\n", " ") for text in texts]  # a command in a block goes on behind a backslash
    blocks = [match for text in joined for match in re.findall(rf"^[^#`\n]*python -m {name}.*)$", text, re.M)]
    # one in a sentence may be broken by the line's end
    inline = [match for text in joined for match in re.findall(rf"`python -m {name}[^`]*)`", text)]
    comments = [match for text in texts for match in re.findall(rf"^#.*python -m {name}.*)$", text, re.M)]
    return [*blocks, *inline, *comments]


def test_every_command_parses(monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = set()
    for command in commands("thumbnet_tf"):
        for name, value in PLACES.items():
            command = re.sub(rf"(?<![A-Z_]){re.escape(name)}(?![A-Z_])", value, command)
        module, *arguments = shlex.split(command)
        name = module.removeprefix("thumbnet_tf.")
        options = parsed(OPTIONS[name], arguments, "files" if name in ("predict", "client") else None)
        assert getattr(options, "run_dir", True) or name in ("train", "benchmark")
        seen.add(name)
    assert {"train", "predict", "plots", "report", "export", "client", "demo"} <= seen


def parsed(options_type: type, arguments: list[str], positional: str | None = None):
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("flagfile", "", "", flag_values=values)
    flags.define(options_type, positional, flag_values=values)
    rest = values(["main", *arguments])
    return flags.parsed(options_type, rest[1:], positional, flag_values=values)


def test_every_command_of_the_experiments_can_be_given():
    seen = set()
    for command in commands("experiments"):
        module, *arguments = shlex.split(command, comments=True)
        name = module.removeprefix("experiments.")
        assert "__main__" in pathlib.Path(importlib.import_module(module).__file__).read_text(), command
        if name in ("run", "demo_check"):
            parsed({"run": experiments.run, "demo_check": demo_check}[name].Options, arguments)
        elif name == "row_latency":
            assert {f"{arguments[0]}_{row}" for row in arguments[1:]} <= set(experiments.run.names()), command
        elif name == "speed":
            assert arguments in [[what] for what in speed.REPORTS], command
        elif name in ("tables", "tflite_latency", "recount", "onednn"):
            assert arguments == [], command
        else:  # a table of runs
            kind = f"_{arguments.pop(0)}" if name == "deployment" else "" if name == "summary" else f"_{name}"
            assert name != "deployment" or kind[1:] in deployment.KINDS, command
            assert (summary.RESULTS / f"{arguments[0]}{kind}.csv").is_file(), command
        seen.add(name)
    assert {"run", "summary", "choices", "views", "feature_maps", "deployment", "tables"} <= seen


def test_the_runtime_of_the_demo_is_installed_as_it_asks_for():
    assert f"npm install --prefix {demo.LITERT_DIR} @litertjs/core@{demo.LITERT_VERSION}" in README


def test_tables_and_headers_are_those_of_the_result_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = {name: (path.read_text(), text) for path, name, text in tables.blocks()}
    assert {"quickstart", "own_teacher", "hard_choices", "flowers_quick_wire", "hard_24_losses"} <= set(found)
    for name, (page, text) in found.items():
        assert summary.block(name).search(page)[2] == text + "\n", name
    places = re.findall(r"<!-- table (\w+) -->", README + (ROOT / "experiments" / "README.md").read_text())
    assert sorted(places) == sorted(found)  # no table without its file
    for path, text in row_tables.headers():
        assert path.read_text() == text


def test_views_compute_mean_and_spread_by_their_number():
    row = {"epochs": "40", "examples": "9", "teacher_agreement": "0.5"}
    tops = [(0, "test", 0.7), (0, "test", 0.8), (0, "validation", 0.6), (8, "test", 0.4), (8, "validation", 0.5)]
    lines = views.markdown([row | {"views": str(v), "split": s, "top1": str(t)} for v, s, t in tops]).splitlines()
    assert lines[2] == "| 8 | every image 8 times | 50.0 | 40.0 | 50.0 | 1 |"
    assert lines[3] == "| new each epoch (40) | every image 40 times | 60.0 | 75.0 ± 7.1 | 50.0 ± 0.0 | 2 |"


def test_what_the_readme_says_of_the_wire_is_in_its_table():
    rows = {
        (row["encoding"], row["quality"]): row
        for row in read_rows(summary.RESULTS / "flowers_quick_wire.csv")
        if (row["method"], row["trained_through"], row["split"]) == ("thumbnet", "0", "test")
    }
    sent, full, lossless = rows["jpeg", "85"], rows["full_jpeg", "85"], rows["png", ""]
    words = " ".join(README.split())
    bytes_sent, fewer = float(sent["bytes_mean"]), float(sent["ratio_to_full_jpeg"])
    assert f"takes {bytes_sent:.0f} bytes, {fewer:.1f} times fewer than the 128 px crop" in words
    assert f"{float(sent['ratio_to_original_jpeg']):.1f} times fewer than the photograph" in words
    shares = [f"{100 * float(row['top1']):.1f} %" for row in (sent, full, lossless)]
    assert f"answers {shares[0]} right, E + S on the full JPEG {shares[1]}, and {shares[2]} where" in words


def test_choices_name_the_difference():
    assert choices.difference(Config(), Config(w_mm=0.5, teacher="x", run_dir="y")) == "--w_mm=0.5"
    runs = [("thumbnet", "", "0.7", "0.75"), ("thumbnet", "--w_mm=0.5", "0.8", "0.7"), ("original", "", "0.6", "1")]
    keys = ("method", "difference", "validation_top1", "validation_teacher_agreement")
    assert choices.markdown([dict(zip(keys, values, strict=True)) for values in runs]).splitlines()[2:] == [
        "| `original` | - | 60.0 | 100.0 |",
        "| `thumbnet` | `--w_mm=0.5` | 80.0 | 70.0 |",
        "| `thumbnet` | - | 70.0 | 75.0 |",
    ]


def test_python_of_the_readme_runs(tiny_run, tiny_resnet, photos):
    code = "\n".join(block for block in PYTHON if "tfds.load" not in block)
    call = re.search(r"thumbnet_tf\.Config\(.*\)", code)[0]
    assert eval(call, {"thumbnet_tf": thumbnet_tf}).run_dir == "runs/mine"
    images, labels = photos(4, 48), np.array([0, 1, 2, 0])
    batches = tf.data.Dataset.from_tensor_slices((photos(4, 32), labels)).batch(2)
    names = {"images": images, "batches": batches, "finished": tiny_run.config()}
    done = {path: path.stat().st_mtime_ns for path in tiny_run.path.rglob("done.json")}
    exec(code.replace(call, "finished").replace("runs/mine", str(tiny_run.path)), names)
    assert {path: path.stat().st_mtime_ns for path in done} == done  # a finished run trains nothing more
    assert names["thumbnails"].shape == (4, 16, 16, 3) and names["thumbnails"].dtype == np.uint8
    answers = [answer.label for answer in names["answers"]]
    crops = np.stack([preprocess.eval_crop(image, 32, 0.875) for image in images])
    said = tiny_run.load_model("thumbnet", "shipped")(crops, training=False)["logits"].numpy().argmax(-1)
    assert len(answers) == 4 and answers == [CLASSES[label] for label in said]
    assert names["classifier"](photos(2, 32).astype("float32")).shape == (2, 2)
    history = names["history"].history
    assert np.isfinite(history["loss"]).all() and {"cl", "kd", "fm", "mm", "accuracy", "agreement"} <= set(history)


def test_images_of_the_quickstart_can_be_written(tmp_path, monkeypatch):
    [code] = [block for block in PYTHON if "tfds.load" in block]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fine_detail.FineDetail, "split_sizes", {"train": 8, "validation": 8, "test": 8})
    exec(code.replace('tfds.load("fine_detail"', 'tfds.load("fine_detail", data_dir="."'), {})
    images = [by_pillow((tmp_path / "textures" / f"{number}.png").read_bytes()) for number in range(8)]
    assert all(image.shape == (96, 96, 3) and image.std() > 5 for image in images)


@pytest.mark.parametrize("folder", [".", "experiments", "experiments/android", "saved_models"])
def test_links_lead_somewhere(folder):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / folder / "README.md").read_text()):
        assert target.startswith("http") or (ROOT / folder / target).exists(), target


def row(method, seed, top1):
    return {
        "method": method,
        "split": "test",
        "seed": str(seed),
        "top1": str(top1),
        "teacher_agreement": "0.5",
        "macs": "2000000",
        "macs_downscaler": "0",
    }


def test_summary_computes_mean_spread_and_recovered_share():
    rows = [row("original", 0, 0.9), row("bicubic", 0, 0.5), row("thumbnet", 0, 0.7), row("thumbnet", 1, 0.8)]
    lines = summary.markdown([*rows, {**row("thumbnet", 2, 0.0), "split": "validation"}]).splitlines()
    assert len(lines) == 5
    # mean 75, deviations 5 and 5: sample standard deviation sqrt(50) = 7.1; share (0.75 - 0.5) / (0.9 - 0.5) = 0.62
    assert "| 75.0 ± 7.1 | 50.0 ± 0.0 | 0.62 | 2.0 | 2 |" in lines[4]
    assert "| 90.0 | 50.0 | - | 2.0 | 1 |" in lines[2]


def test_summary_refuses_missing_results_and_repeated_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    with pytest.raises(UserError, match="has no results.csv"):
        summary.collect("x", [str(tmp_path)])
    (tmp_path / "results.csv").write_text(",".join(summary.COLUMNS) + "\ndirect,4,test,0,9,0.5,1,1,1,0,1\n")
    with pytest.raises(UserError, match="each seed is counted once"):
        summary.collect("x", [str(tmp_path), str(tmp_path)])
    summary.collect("x", [str(tmp_path)])
    assert read_rows(tmp_path / "x.csv")[0]["top1"] == "0.5"


def test_summary_takes_runs_that_have_the_same_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    runs = {"a": [("original", 0), ("bicubic", 0), ("thumbnet", 0)], "b": [("original", 1), ("bicubic", 1)]}
    for run, found in runs.items():
        (tmp_path / run).mkdir()
        write_rows(tmp_path / run / "results.csv", COLUMNS, [row(method, seed, 0.5) for method, seed in found])
    folders = [str(tmp_path / run) for run in runs]
    with pytest.raises(UserError, match="original of 0, 1; bicubic of 0, 1; thumbnet of 0$"):
        summary.collect("discs", folders)
    with pytest.raises(UserError, match="each seed is counted once"):
        summary.collect("discs", folders[:1] * 2)
    assert not (tmp_path / "discs.csv").exists()
    summary.collect("discs", folders[:1])
    assert [each["method"] for each in read_rows(tmp_path / "discs.csv")] == ["original", "bicubic", "thumbnet"]


def test_summary_sorts_by_methods_and_by_seeds_as_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    for seed in (10, 9):
        (tmp_path / str(seed)).mkdir()
        write_rows(
            tmp_path / f"{seed}/results.csv", COLUMNS, [row(name, seed, 0.5) for name in ("bicubic", "original")]
        )
    summary.collect("discs", [str(tmp_path / "10"), str(tmp_path / "9")])
    found = [(each["method"], each["seed"]) for each in read_rows(tmp_path / "discs.csv")]
    assert found == [("original", "9"), ("original", "10"), ("bicubic", "9"), ("bicubic", "10")]
