"""Tests of predicting: what is printed and saved is what the run's models say of the files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import by_pillow, encode, exif
from PIL import Image
from run_helpers import CLASSES, IMAGE_SIZE, RATIO, disc

from thumbnet_tf import predict, preprocess
from thumbnet_tf.config import UserError
from thumbnet_tf.downscaler import ToThumbnail
from thumbnet_tf.evaluate import load_parts
from thumbnet_tf.predict import Options, list_images, predict_files, thumbnail_name
from thumbnet_tf.runs import RunDir

SMALL = IMAGE_SIZE // RATIO


def expected(run: RunDir, method: str, files: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns scores (n, C) and thumbnails uint8 (n, s, s, 3), one image at a time, eagerly."""
    small, network = load_parts(run, method)
    scores, thumbnails = [], []
    for file in files:
        image = preprocess.eval_crop(preprocess.decode_image(tf.io.read_file(file)), IMAGE_SIZE, 0.875)
        seen = tf.cast(image[None], tf.float32)
        if small is not None:
            seen = small(seen, training=False)
            thumbnails.append(seen[0].numpy())
        logits = network(seen, training=False)["logits"].numpy()[0].astype(float)
        scores.append(np.exp(logits) / np.exp(logits).sum())
    if small is None:
        return np.array(scores), None
    pixels = np.array(thumbnails)
    np.testing.assert_array_equal(pixels, np.rint(pixels))
    return np.array(scores), pixels.astype(np.uint8)


def scores_of(prediction: predict.Prediction) -> np.ndarray:
    """Returns a prediction's scores by label, (C,)."""
    return np.array([dict(prediction.top)[name] for name in CLASSES])


@pytest.mark.parametrize("method", ["original", "direct", "bicubic", "thumbnet"])
def test_predictions_are_the_models_own_whatever_the_batch(tiny_run, disc_files, method):
    scores, thumbnails = expected(tiny_run, method, disc_files)
    assert np.ptp(scores, axis=0).max() > 1e-3  # the images are told apart at all
    for batch_size in (1, 3, 32):
        found = list(predict_files(tiny_run, disc_files, method=method, batch_size=batch_size))
        assert [p.file for p in found] == disc_files
        np.testing.assert_allclose([scores_of(p) for p in found], scores, atol=1e-5)
        for i, p in enumerate(found):
            assert [score for _, score in p.top] == sorted(dict(p.top).values(), reverse=True)
            assert p.top[0][0] == CLASSES[scores[i].argmax()]
            if thumbnails is None:
                assert p.thumbnail is None
            else:
                assert p.thumbnail.dtype == np.uint8
                np.testing.assert_array_equal(p.thumbnail, thumbnails[i])


def test_lines_are_path_and_best_labels(tiny_run, disc_files, capsys):
    predict.main(Options(run_dir=str(tiny_run.path), top=2, files=tuple(disc_files)))
    lines = capsys.readouterr().out.splitlines()
    scores, _ = expected(tiny_run, "thumbnet", disc_files)
    assert len(lines) == len(disc_files)
    for line, file, row in zip(lines, disc_files, scores, strict=True):
        path, *labels = line.split("\t")
        assert path == file and len(labels) == 2
        for text, label in zip(labels, np.argsort(-row), strict=False):
            name, score = text.split(" ")
            assert name == CLASSES[label] and float(score) == pytest.approx(row[label], abs=6e-5)
            assert len(score) == len("0.1234")


def test_saved_thumbnails_hold_the_pixels_and_give_the_same_answer(tiny_run, disc_files, tmp_path, capsys):
    options = {"run_dir": str(tiny_run.path), "json": True}
    folder = tmp_path / "a" / "thumbs"
    predict.main(Options(**options, save_thumbnails=str(folder), files=tuple(disc_files)))
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    scores, thumbnails = expected(tiny_run, "thumbnet", disc_files)
    assert len({row["thumbnail"] for row in first}) == len(list(folder.iterdir())) == len(disc_files)
    for row, file, wanted, pixels in zip(first, disc_files, scores, thumbnails, strict=True):
        assert row["file"] == file
        assert (row["label"], row["score"]) == (row["top"][0]["label"], row["top"][0]["score"])
        assert row["label"] == CLASSES[wanted.argmax()] and row["score"] == pytest.approx(wanted.max(), abs=1e-5)
        assert sum(item["score"] for item in row["top"]) == pytest.approx(1, abs=1e-5)
        with Image.open(row["thumbnail"]) as image:
            assert image.format == "PNG" and image.size == (SMALL, SMALL)
        np.testing.assert_array_equal(by_pillow(Path(row["thumbnail"]).read_bytes()), pixels)

    saved = tuple(row["thumbnail"] for row in first)
    predict.main(Options(**options, from_thumbnails=True, files=saved))
    second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for before, after in zip(first, second, strict=True):
        assert after["file"] == before["thumbnail"] and after["thumbnail"] is None
        assert [item["label"] for item in after["top"]] == [item["label"] for item in before["top"]]
        np.testing.assert_allclose(
            [item["score"] for item in after["top"]], [item["score"] for item in before["top"]], atol=1e-6
        )

    predict.main(Options(**options, save_thumbnails=str(folder), files=(disc_files[0],)))  # overwrites its own
    assert len(list(folder.iterdir())) == len(disc_files)


@pytest.mark.parametrize("bits", range(2, 9))
def test_thumbnails_of_fewer_bits_survive_8_bit_files(bits):
    seen = ToThumbnail(bits)(np.random.default_rng(bits).uniform(-5, 260, (1, 64, 64, 3)).astype(np.float32)).numpy()
    assert len(np.unique(seen)) == 2**bits
    stored = np.rint(seen).astype(np.uint8)
    np.testing.assert_array_equal(ToThumbnail(bits)(stored.astype(np.float32)).numpy(), seen)


def test_thumbnails_of_same_named_files_have_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {thumbnail_name(file) for file in ("a/cat.jpg", "b/cat.jpg", "cat.jpg", "cat.png", "x" * 250 + ".jpg")}
    assert len(names) == 5 and all(name.endswith(".png") and len(name) < 64 for name in names)
    assert thumbnail_name("a/cat.jpg") == thumbnail_name(str(tmp_path / "b" / ".." / "a" / "cat.jpg"))
    assert thumbnail_name("a/cat.jpg").startswith("cat-")


def test_a_folder_that_can_not_be_read_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"must be readable; allow it or give another. Received: {tmp_path}$"):
        list_images([str(tmp_path)])
    for name in (".hidden/in", "a.png", "b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "0.png").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: path.name not in (".hidden", "in", "b"))
    with pytest.raises(UserError, match=rf"allow it or give another. Received: {tmp_path}/b$"):
        list_images([str(tmp_path)])
    (tmp_path / "b").rmdir()
    assert list_images([str(tmp_path)]) == [str(tmp_path / "0.png")]  # hidden ones don't matter


def test_folders_are_listed_deeply_in_natural_order(tmp_path):
    images = ("b/10.png", "b/9.JPG", "b/c/1.webp", "A.gif", "b/extra.png/2.png")
    for name in (*images, "b/note.txt", ".hidden/1.png", "b/.1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    single = tmp_path / "b" / "note.txt"
    found = list_images([str(tmp_path), str(single), str(tmp_path / "A.gif")])
    tree = ["A.gif", "b/9.JPG", "b/10.png", "b/c/1.webp", "b/extra.png/2.png"]
    assert found == [*(str(tmp_path / name) for name in tree), str(single), str(tmp_path / "A.gif")]


def test_bad_images_stop_or_are_skipped(tiny_run, disc_files, tmp_path, caplog, capsys):
    bad, empty, cut = tmp_path / "bad.jpg", tmp_path / "empty.png", tmp_path / "cut.jpg"
    bad.write_bytes(b"no image")
    empty.write_bytes(b"")
    cut.write_bytes(encode(disc(0, 0), "JPEG")[:-200])
    files = (disc_files[0], str(bad), disc_files[1], str(empty), str(cut))
    with pytest.raises(UserError, match=r"can't be decoded; mend .*--on_bad_image=skip. Received: .*bad.jpg \(Unknown"):
        predict.main(Options(run_dir=str(tiny_run.path), files=files))
    assert capsys.readouterr().out == ""
    predict.main(Options(run_dir=str(tiny_run.path), files=files, on_bad_image="skip"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == disc_files[:2]
    messages = [record.getMessage() for record in caplog.records if record.name == predict.__name__]
    assert [str(path) in text for path, text in zip((bad, empty, cut), messages, strict=True)] == [True] * 3
    with pytest.raises(UserError, match=r"at least one image must be readable.*Received: 1 unreadable"):
        predict.main(Options(run_dir=str(tiny_run.path), files=(str(bad),), on_bad_image="skip"))


def test_images_that_exif_says_to_turn_are_told(tiny_run, disc_files, tmp_path, caplog):
    turned = tmp_path / "phone.jpg"
    turned.write_bytes(encode(disc(0, 0), "JPEG", exif=exif(8)))
    predict.main(Options(run_dir=str(tiny_run.path), files=(*disc_files[:2], str(turned))))
    assert "1 of 3 images carry an EXIF orientation, which is ignored" in caplog.text
    caplog.clear()
    predict.main(Options(run_dir=str(tiny_run.path), files=tuple(disc_files[:2])))
    assert "EXIF" not in caplog.text


def test_default_method_is_thumbnet_else_the_last_of_a_finished_run(tiny_run, run_copy):
    assert predict.choose_method(tiny_run, "") == "thumbnet"
    assert predict.choose_method(tiny_run, "direct") == "direct"
    (run_copy.path / "thumbnet" / "done.json").unlink()
    unfinished = (
        "a finished run, or --method name one of original, direct, bicubic; the command .* goes on with thumbnet"
    )
    with pytest.raises(UserError, match=unfinished):
        predict.choose_method(run_copy, "")
    assert predict.choose_method(run_copy, "bicubic") == "bicubic"
    config = run_copy.path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"methods": ["direct", "bicubic"]}))
    assert predict.choose_method(run_copy, "") == "bicubic"
    for method in ("thumbnet", "nonsense"):
        with pytest.raises(UserError, match=rf"finished in this run: original, direct, bicubic. Received: '{method}'"):
            predict.choose_method(run_copy, method)
    for method in ("original", "direct", "bicubic"):
        (run_copy.path / method / "done.json").unlink()
    with pytest.raises(UserError, match=r"must hold a finished method; finish thumbnet_tf.train"):
        predict.choose_method(run_copy, "")


def test_mistakes_are_told(tiny_run, run_copy, disc_files, tmp_path):
    def run(**options):
        predict.main(Options(**{"run_dir": str(tiny_run.path), "files": tuple(disc_files), **options}))

    with pytest.raises(UserError, match=r"every file or folder must exist; correct the path. Received: 'nowhere.jpg'"):
        run(files=(disc_files[0], "nowhere.jpg"))
    with pytest.raises(UserError, match=r"a folder must hold images \(.jpg.*Received: .*empty"):
        (tmp_path / "empty").mkdir()
        run(files=(str(tmp_path / "empty"),))
    with pytest.raises(UserError, match=r"--save_thumbnails needs a --method that makes.*Received: original"):
        run(method="original", save_thumbnails=str(tmp_path / "t"))
    with pytest.raises(UserError, match=r"--from_thumbnails needs a --method that reads.*Received: original"):
        run(method="original", from_thumbnails=True)
    with pytest.raises(UserError, match=rf"takes thumbnails of {SMALL} x {SMALL} pixels.*0.png of 46 x 40"):
        run(from_thumbnails=True)
    with pytest.raises(UserError, match=r"--save_thumbnails must lie outside the folders of images"):
        images = tiny_run.path.parent / "images"
        run(files=(str(images),), save_thumbnails=str(images / "thumbs"))
    with pytest.raises(UserError, match=r"can't be written"):
        (tmp_path / "file").write_text("")
        run(save_thumbnails=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"--run_dir must hold the config.json"):
        run(run_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"give image files or folders.*Received: none"):
        Options(run_dir=str(tiny_run.path))
    with pytest.raises(UserError, match=r"--from_thumbnails makes no new ones"):
        run(from_thumbnails=True, save_thumbnails="t")
    (run_copy.path / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data.json can't be read \(JSONDecodeError\); restore it"):
        run(run_dir=str(run_copy.path))
    (run_copy.path / "data.json").write_text("[]")
    with pytest.raises(UserError, match=r"data.json can't be read \(ValueError\); restore it"):
        run(run_dir=str(run_copy.path))
    shutil.copy(tiny_run.path / "data.json", run_copy.path)
    (run_copy.path / "thumbnet" / "student.keras").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"student.keras can't be loaded as a Keras model"):
        run(run_dir=str(run_copy.path))


def test_command_line(tiny_run, disc_files, tmp_path):
    """A process of its own finds the models' layers and keeps standard output clean."""
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"  # no UTF-8
    shutil.copy(disc_files[0], name)
    (tmp_path / "bad.jpg").write_bytes(b"no image")

    command = [sys.executable, "-m", "thumbnet_tf.predict", f"--run_dir={tiny_run.path}", "--top=1", tmp_path]
    # flags may stand behind files
    done = subprocess.run([*command, "--on_bad_image=skip"], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (label, _), *_ = next(predict_files(tiny_run, disc_files)).top
    assert done.stdout.startswith(name + b"\t" + label.encode() + b" ") and done.stdout.count(b"\n") == 1
    assert b"left out, can't be decoded" in done.stderr and b"bad.jpg" in done.stderr
