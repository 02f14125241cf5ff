"""What can go wrong in an export: mistakes are told in one line, and nothing half done is published or left."""

import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest
from run_helpers import export_options

from thumbnet_tf import evaluate, export, parity, publish, tflite, variants
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.runs import RunDir

MISTAKES = {
    "unknown variant": ({"variants": ("int4",)}, "--variants takes a list of float32, .*Received: 'int4'"),
    "unknown also": ({"also": ("student",)}, "--also takes a list of teacher, classifier"),
    "threshold without number": ({"fail_under": ("int8",)}, "--fail_under takes variant:points.*Received: 'int8'"),
    "negative threshold": ({"fail_under": ("int8:-1",)}, "--fail_under takes variant:points"),
    "unknown threshold": ({"fail_under": ("int9:1",)}, "--fail_under takes variant:points"),
    "name with a folder": ({"name": "a/b"}, "--name must be a plain folder's name"),
    "hidden name": ({"name": ".a"}, "--name must be a plain folder's name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_flags(mistake):
    changes, message = MISTAKES[mistake]
    with pytest.raises(FlagError, match=message):
        export.Options(run_dir="x", **changes)


def test_mistakes_about_the_run(tiny_run, tmp_path):
    with pytest.raises(UserError, match="--run_dir must hold the config.json"):
        export.export(export_options(RunDir(tmp_path), tmp_path))
    with pytest.raises(UserError, match="one that reads thumbnails; --also=teacher exports T beside it. Rec.*: orig"):
        export.export(export_options(tiny_run, tmp_path, method="original"))
    with pytest.raises(UserError, match="--method must be one finished in this run"):
        export.export(export_options(tiny_run, tmp_path, method="no_kd"))
    with pytest.raises(
        UserError,
        match="give --variants=int8; .* need the learned downscaler. Received: a method that has the bicubic one",
    ):
        export.export(export_options(tiny_run, tmp_path, method="bicubic", variants=("int8", "pruned")))
    shipped = tiny_run.load_model("thumbnet", "shipped")
    with pytest.raises(UserError, match="give --variants=float32; int8 and int8_qat need thumbnails of 8 bits"):
        variants.possible(("float32", "int8"), Config(thumbnail_bits=4), "learned", shipped)
    rest = ("float32", "float16", "dynamic", "pruned", "clustered")
    assert variants.possible(variants.VARIANTS, Config(thumbnail_bits=4), "learned", shipped) == rest
    assert variants.possible(variants.VARIANTS, Config(), "bicubic", shipped) == tflite.VARIANTS
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        export.export(export_options(tiny_run, tmp_path / "file"))


def test_a_file_that_can_not_be_made_is_left_out_or_told(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise RuntimeError("only integer tensors\nare allowed")

    monkeypatch.setattr(tflite, "convert", refuse)
    assert list(variants._converted(None, "thumbnet", "int8", None, lenient=True)) == []
    assert "left out: thumbnet can't be made as int8. Received: only integer tensors are allowed" in caplog.text
    with pytest.raises(UserError, match="leave int8 out of --variants; thumbnet can't be made as int8"):
        list(variants._converted(None, "thumbnet", "int8", None, lenient=False))


def test_a_full_disk_leaves_nothing_out(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tflite, "convert", refuse)
    with pytest.raises(UserError, match=r"make room .* TMPDIR; thumbnet can't be made as int8. .*No space left"):
        list(variants._converted(None, "thumbnet", "int8", None, lenient=True))
    monkeypatch.setattr(parity.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2**20))
    logits = types.SimpleNamespace(shape=(None, 100))
    models = types.SimpleNamespace(
        student=types.SimpleNamespace(input_shape=(None, 16, 16, 3)),
        shipped=types.SimpleNamespace(output={"logits": logits}),
    )
    split = types.SimpleNamespace(num_examples=1000)
    small, scores = (parity.Subject(name, "int8", pathlib.Path("x")) for name in ("downscaler", "classifier"))
    # 1000 x (32 x 32 x 3 + 16 x 16 x 3) bytes; in each turn 1000 x 16 x 16 x 3 and 1000 x 100 x 4
    for subjects, turns, size in (([], 2, 4), ([small], 1, 4), ([small] * 3, 2, 8), ([scores] * 3, 4, 8)):
        with pytest.raises(UserError, match=rf"temporary files need {size} MB in .*; make room .* 1 MB free"):
            parity._prepare(pathlib.Path("folder"), subjects, models, split, Config(image_size=32), turns)


def test_a_run_that_was_not_evaluated_is_refused_before_anything_is_written(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "read_results", lambda run, split: [{"method": "original"}])
    with pytest.raises(UserError, match="must hold results of original and thumbnet; .*evaluate --run_dir="):
        export.export(export_options(tiny_run, tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_kill_during_an_export_leaves_no_version(tiny_run, tmp_path, number):
    command = [sys.executable, "-m", "thumbnet_tf.export", f"--run_dir={tiny_run.path}", f"--out={tmp_path}"]
    (tmp_path / "temporary").mkdir()
    with subprocess.Popen(
        [*command, "--variants="],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        partial = tmp_path / "thumbnet" / ".partial-1" / "saved_model.pb"
        deadline = time.monotonic() + 180
        while (
            not list((tmp_path / "temporary").glob("thumbnet-parity-*/*.npy"))
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        assert partial.exists(), process.communicate()[1].decode()[-500:]
        process.send_signal(number)
        process.communicate()
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    if number == signal.SIGTERM:  # nothing half done is left, nor temporary files
        assert not partial.exists() and not list((tmp_path / "temporary").glob("thumbnet-*"))
    assert publish.versions(tmp_path / "thumbnet") == []
