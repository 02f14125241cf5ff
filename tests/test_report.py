"""The report: the run's numbers, escaped, in a file that asks for nothing; and what it says where parts lack."""

import collections
import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from report_helpers import Parsed, table_of
from run_helpers import CLASSES, IMAGE_SIZE, RATIO
from teacher_helpers import teacher

from thumbnet_tf import parity, report, report_sections, teachers
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.data import sources
from thumbnet_tf.report import Options
from thumbnet_tf.report_data import gather
from thumbnet_tf.report_html import Markup, element, table
from thumbnet_tf.stats import Paired, wilson
from thumbnet_tf.train import train

ROOT = pathlib.Path(__file__).parent.parent
WITH_DATA = {"Images and thumbnails", "Classes", "Right before, wrong now", "Calibration"}
ALWAYS = {"What was trained", "Accuracy", "Cost", "Training", "Export", "Repeat it"}


@pytest.fixture(scope="module")
def study(tiny_run):
    """Returns what is gathered of the tiny run."""
    return gather(tiny_run)


@pytest.fixture(scope="module")
def text(study) -> str:
    """Returns its report."""
    return report_sections.page(study, 4, 10)


@pytest.fixture(scope="module")
def page(text) -> Parsed:
    """Returns it read."""
    return Parsed(text)


def test_nothing_is_asked_for_from_elsewhere(page, text):
    tags = collections.Counter(tag for tag, _ in page.found)
    assert not {"script", "link", "iframe", "object", "form"} & tags.keys()
    assert not re.search(r"https?:|@import|//\w+\.\w", re.sub(r"base64,[^\"]*", "", text))
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    for _, attributes in page.found:
        assert attributes.get("src", "data:image/").startswith("data:image/")
        for key in ("href", "xlink:href"):
            assert attributes.get(key, "#").startswith("#")
        assert not any(key.startswith("on") for key in attributes)
    assert len(text) < 3e6


def test_it_can_be_read_by_any_means(page):
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [attributes[key][1:] for _, attributes in page.found for key in ("href", "xlink:href") if key in attributes]
    assert set(links) <= set(ids)
    assert {"Classes", "Export"} < set(page.texts["h2"]) == WITH_DATA | ALWAYS and len(page.texts["h1"]) == 1
    assert all(attributes["alt"] for tag, attributes in page.found if tag == "img")
    assert all(attributes["scope"] in ("row", "col") for tag, attributes in page.found if tag == "th")
    drawings = [attributes for tag, attributes in page.found if tag == "svg"]
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in drawings)
    assert len([a for a in drawings if a.get("role") == "img"]) == 1 + 1 + 7  # cost, reliability, and the curves


def test_augmentation_is_what_the_epochs_show():
    cached = {"teacher_cache": "all", "cached_views": 8}
    assert report_sections.augmentation(Config(augment="crop_flip", epochs=3, **cached)) == (
        "crop_flip, 3 views of each image"
    )
    assert report_sections.augmentation(Config(augment="none", **cached)) == "none"
    mixed = Config(augment="none", epochs=30, mixup_alpha=0.2, **cached)
    assert report_sections.augmentation(mixed) == "none, 8 views of each image, MixUp of alpha 0.2"
    assert report_sections.augmentation(Config(augment="crop", teacher_cache="off")) == "crop, new each epoch"


def test_accuracies_are_the_runs(page, study, tiny_run):
    rows = {row["method"]: row for row in read_rows(tiny_run.path / "results.csv") if row["split"] == "test"}
    shown = table_of(page, "Wilson intervals")
    assert list(shown) == list(rows) == ["original", "direct", "bicubic", "thumbnet"]
    for method, row in rows.items():
        total = int(row["examples"])
        right = round(float(row["top1"]) * total)
        assert int(study.right(method).sum()) == right
        low, high = wilson(right, total)
        assert shown[method]["top-1, %"] == f"{100 * float(row['top1']):.1f}"
        assert shown[method]["95 % interval"] == f"{100 * low:.1f} to {100 * high:.1f}"
    (titles, *lines) = next(found for name, found in page.rows.items() if "paired" in name)
    pairs = [line[:2] for line in lines]
    assert pairs == [[m, "original"] for m in ("direct", "bicubic", "thumbnet")] + [["thumbnet", "bicubic"]]
    for line in lines:
        cells = dict(zip(titles, line, strict=True))
        pair = Paired.of(study.right(line[1]), study.right(line[0]))
        assert cells["points"] == f"{100 * pair.difference:+.1f}"
        assert (cells["only it right"], cells["only the other right"]) == (str(pair.second), str(pair.first))
        assert cells["p"] == f"{pair.p_value():.3f}"


def test_costs_are_the_runs(page, tiny_run):
    shown = table_of(page, "Cost of one image")
    for row in read_rows(tiny_run.path / "results.csv"):
        both = int(row["macs"]) + int(row["macs_downscaler"])
        cells = shown[row["method"]]
        assert cells["with E"] == f"{both / 1e6:.1f}"
        assert cells["input"] == f"{IMAGE_SIZE if row['method'] == 'original' else IMAGE_SIZE // RATIO} px"


def test_classes_and_images_are_those_of_the_answers(page, study, text):
    shown = table_of(page, "by class")
    assert sorted(shown) == sorted(CLASSES)
    for label, name in enumerate(CLASSES):
        own = study.labels == label
        before, after = study.right("original")[own], study.right("thumbnet")[own]
        assert shown[name]["images"] == str(own.sum())
        assert (shown[name]["T, %"], shown[name]["S, %"]) == (f"{100 * before.mean():.1f}", f"{100 * after.mean():.1f}")
        assert shown[name]["only T right"] == str((before & ~after).sum())
    lost = int((study.right("original") & ~study.right("thumbnet")).sum())
    assert f"T is right and S wrong for {lost} of {len(study.labels)} test images" in text
    cards = sum(tag == "article" for tag, _ in page.found)
    assert cards == 4 + min(lost, 10)
    images = [attributes for tag, attributes in page.found if tag == "img"]
    assert len(images) == 4 * (1 + 2 + 2) + min(lost, 10) * (1 + 2)
    own = [attributes for attributes in images if attributes["class"] == "own"]
    assert {(a["width"], a["height"]) for a in own} == {(str(IMAGE_SIZE // RATIO),) * 2}


def test_three_that_are_lost_and_one_that_is_won(run_copy):
    labels = np.repeat([0, 1, 2], 3)
    for method, wrong in (("original", [0]), ("thumbnet", [1, 2, 5])):
        answers = labels.copy()
        answers[wrong] = (labels[wrong] + 1) % 3
        np.save(run_copy.method(method) / "logits_test.npy", 4 * np.eye(3, dtype=np.float32)[answers])
    study = gather(run_copy)
    np.testing.assert_array_equal(study.labels, labels)
    text = report_sections.page(study, 4, 10)
    page = Parsed(text)
    assert "T is right and S wrong for 3 of 9 test images" in text
    assert sum(tag == "article" for tag, _ in page.found) == 4 + 3
    shown = table_of(page, "by class")
    columns = ("images", "T, %", "S, %", "points", "only T right", "only S right")
    assert [[shown[name][column] for column in columns] for name in CLASSES] == [
        ["3", "66.7", "33.3", "-33.3", "2", "1"],
        ["3", "100.0", "66.7", "-33.3", "1", "0"],
        ["3", "100.0", "100.0", "+0.0", "0", "0"],
    ]
    (titles, *lines) = next(found for name, found in page.rows.items() if "paired" in name)
    cells = next(dict(zip(titles, line, strict=True)) for line in lines if line[:2] == ["thumbnet", "original"])
    assert (cells["points"], cells["only it right"], cells["only the other right"]) == ("-22.2", "1", "3")
    assert cells["p"] == "0.625"  # of 4 that differ at most 1: (1 + 4) / 16, twice


def test_an_export_without_its_table_or_its_run_is_refused(run_copy, tmp_path):
    manifest = {"run": str(run_copy.path), "method": "thumbnet", "version": 1, "created": "2026"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"must hold a parity.csv and name its run; export anew. Received: "):
        gather(run_copy, "", str(tmp_path))
    row = dict.fromkeys(parity.COLUMNS, "1")
    write_rows(tmp_path / "parity.csv", parity.COLUMNS, [row])
    assert gather(run_copy, "", str(tmp_path)).export.parity == [row]
    latest = tmp_path / "thumbnet" / "2"
    latest.mkdir(parents=True)
    for name in ("manifest.json", "parity.csv"):
        shutil.copy(tmp_path / name, latest)
    assert gather(run_copy, "", str(latest.parent)).export.folder == latest  # of the folder above, its latest
    assert report.report(Options(export_dir=str(latest.parent), examples=1, mistakes=0)).parent == run_copy.path
    del manifest["created"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"must hold a parity.csv and name its run; export anew. Received: "):
        gather(run_copy, "", str(tmp_path))


@pytest.mark.slow
def test_a_teacher_of_the_users_own_is_named(own):
    run = train(own(teacher("0..255"), methods=("thumbnet",)))
    text = report_sections.page(gather(run), 1, 1)
    name = f"the network of {run.config().teacher} (map for FM: "
    assert f"against the teacher T: {name}" in text
    assert f"T and S: {name}" in text
    assert "resnet18" not in text
    later = dataclasses.replace(run.config(), teacher=str(run.path))  # as the second of several ratios
    assert teachers.network_name(run, later).startswith(name)
    rows = {row["method"]: row for row in read_rows(run.path / "results.csv") if row["split"] == "test"}
    whole = int(rows["thumbnet"]["macs"]) + int(rows["thumbnet"]["macs_downscaler"])
    more = whole / int(rows["original"]["macs"])
    assert more > 1.05  # E costs more than this T
    assert f"<b>{more:.1f}x</b>as many multiply-adds as T: E costs more than S saves" in text


def test_what_comes_from_data_is_escaped(study):
    name = '<script>alert("&")</script>'
    cfg = dataclasses.replace(study.cfg, dataset=f"folder:{name}", teacher=name)
    facts = {**study.facts, "classes": [name, *CLASSES[1:]]}
    text = report_sections.page(dataclasses.replace(study, cfg=cfg, facts=facts, missing=name), 4, 10)
    page = Parsed(text)
    assert "<script" not in text and not any(tag == "script" for tag, _ in page.found)
    assert name in table_of(page, "by class")
    assert any(name in attributes.get("alt", "") for tag, attributes in page.found if tag == "img")


def test_elements_escape_all_but_markup():
    made = element("p", "<b>", Markup("<i></i>"), title='"&', class_="x", aria_label="y")
    assert made == '<p title="&quot;&amp;" class="x" aria-label="y">&lt;b&gt;<i></i></p>'
    rows = table('"', ("a", "<"), [("&", 1)])
    assert '<th scope="row">&amp;</th><td class="number">1</td>' in rows and "&lt;</th>" in rows


def test_the_command_writes_beside_the_run_and_says_what_is_not_there(run_copy, monkeypatch, capsys):
    monkeypatch.chdir(run_copy.path)  # no saved_models here
    report.main(Options(run_dir=str(run_copy.path), examples=1, mistakes=0))
    out = run_copy.path / "report.html"
    assert capsys.readouterr().out == f"{out}\n"
    assert not list(run_copy.path.glob("*.partial"))
    written = out.read_text()
    assert "No benchmark was run; <code>python -m thumbnet_tf.benchmark" in written
    assert "No export of this run was found in saved_models" in written
    assert "--dataset=folder:" in written and f"--flagfile={run_copy.path}/run.flags" in written


def test_without_the_data_there_is_one_clear_note(run_copy):
    config = json.loads((run_copy.path / "config.json").read_text())
    (run_copy.path / "config.json").write_text(json.dumps({**config, "dataset": "folder:nowhere"}))
    shutil.copytree(ROOT / "experiments" / "results", run_copy.path / "thumbnet" / "benchmark")
    for path in run_copy.path.glob("*/metrics.csv"):
        path.unlink()
    text = report_sections.page(gather(run_copy), 4, 10)
    page = Parsed(text)
    assert set(page.texts["h2"]) == ALWAYS
    assert text.count("could not be read") == 1 and "nowhere" in text
    assert "The run has no metrics.csv" in text
    assert "95 % interval" in text and "paired differences" not in text
    assert table_of(page, "Measured by")["resnet50, 224"]["T"]
    assert gather(run_copy, "bicubic").benchmark == []  # what was measured is thumbnet
    path = run_copy.path / "thumbnet" / "benchmark" / "benchmark_inference.csv"
    rows = [row for row in read_rows(path) if row["model"] != "teacher"]
    write_rows(path, list(rows[0]), rows)
    with pytest.raises(UserError, match=r"a benchmark must hold T in every case; measure anew or delete it"):
        gather(run_copy)


def test_missing_answers_are_told_by_the_note(run_copy):
    for content in (None, np.zeros((2, 3), np.float32)):
        path = run_copy.path / "bicubic" / "logits_test.npy"
        path.unlink(missing_ok=True)
        if content is not None:
            np.save(path, content)
        found = gather(run_copy)
        assert found.dataset is None and found.scores == {}
        assert "`python -m thumbnet_tf.evaluate --run_dir=" in found.missing


def test_mistakes_are_one_line(run_copy, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "load", lambda *_: pytest.fail("what is wrong is seen before the data is read"))
    run_dir = str(run_copy.path)
    with pytest.raises(FlagError, match=r"--run_dir or --export_dir must be given. Received: neither"):
        Options()
    with pytest.raises(UserError, match=r"must hold the config.json of a run"):
        report.report(Options(run_dir=str(tmp_path)))
    with pytest.raises(UserError, match=r"--method must be one that reads thumbnails.*Received: original"):
        report.report(Options(run_dir=run_dir, method="original"))
    with pytest.raises(UserError, match=r"an export's folder, such as .* is expected. Received: .*copy"):
        report.report(Options(run_dir=run_dir, export_dir=run_dir))
    rows = read_rows(run_copy.path / "results.csv")
    write_rows(run_copy.path / "results.csv", list(rows[0]), [row for row in rows if row["method"] != "thumbnet"])
    with pytest.raises(UserError, match=r"must hold results of original and thumbnet; `python -m thumbnet_tf.evaluate"):
        report.report(Options(run_dir=run_dir))
    for broken in ([{"method": "thumbnet", "split": "test"}], [{**row, "macs": "many"} for row in rows]):
        write_rows(run_copy.path / "results.csv", list(broken[0]), broken)
        with pytest.raises(UserError, match=r"must be as it was written; restore it. Received: .*results.csv"):
            report.report(Options(run_dir=run_dir))
    (run_copy.path / "thumbnet" / "done.json").unlink()
    with pytest.raises(UserError, match=r"must hold a finished run; .* goes on with thumbnet. Received: .*copy"):
        report.report(Options(run_dir=run_dir))


def test_a_place_that_cannot_be_written_is_told(study, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "gather", lambda *_: study)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written"):
        report.report(Options(run_dir=str(study.run.path), out=str(tmp_path / "file" / "x.html"), examples=1))


def test_an_export_is_found_shown_and_checked(exported, tiny_run, run_copy, tmp_path, monkeypatch):
    out = report.report(Options(export_dir=str(exported), out=str(tmp_path / "new" / "x.html"), examples=1, mistakes=0))
    page = Parsed(out.read_text())
    (titles, *lines) = page.rows["Exported files against Keras"]
    assert titles[:2] == ["artifact", "variant"]
    assert ["thumbnet", "int8"] in [line[:2] for line in lines]
    monkeypatch.chdir(exported.parent.parent.parent)
    (exported.parent.parent.parent / "saved_models").symlink_to(exported.parent.parent)
    try:
        assert gather(tiny_run).export.folder.resolve() == exported
    finally:
        (exported.parent.parent.parent / "saved_models").unlink()
    with pytest.raises(UserError, match=r"--export_dir must be an export of thumbnet of .*copy as it is now; its mani"):
        gather(run_copy, "", str(exported))
    gone = shutil.copytree(exported, tmp_path / "1")
    manifest = json.loads((gone / "manifest.json").read_text())
    (gone / "manifest.json").write_text(json.dumps({**manifest, "trained_sha256": "of a training before"}))
    with pytest.raises(UserError, match=r"--export_dir must be an export of thumbnet of .* as it is now"):
        gather(tiny_run, "", str(gone))
    (gone / "manifest.json").write_text(json.dumps({**manifest, "run": "gone"}))
    with pytest.raises(UserError, match=r"a run that is still there; its manifest names gone"):
        report.report(Options(export_dir=str(gone)))
