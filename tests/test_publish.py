"""Versions: numbered, never overwritten, all or nothing, whatever kills the export."""

import hashlib
import json
import pathlib
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from thumbnet_tf import publish
from thumbnet_tf.config import UserError


def publish_one(root, names=("model",), version=0, text="x"):
    with publish.staging(root, names, version) as (number, folders):
        for name, folder in folders.items():
            (folder / "file").write_text(f"{text} {name} {number}")
    return number


def test_versions_count_up_over_all_models_of_an_export(tmp_path):
    assert publish_one(tmp_path) == 1
    assert publish_one(tmp_path, version=7) == 7
    assert publish_one(tmp_path, names=("model_teacher", "model")) == 8
    assert publish.versions(tmp_path / "model") == [1, 7, 8]
    assert publish.versions(tmp_path / "model_teacher") == [8]
    assert (tmp_path / "model_teacher" / "8" / "file").read_text() == "x model_teacher 8"
    assert publish.versions(tmp_path / "nothing") == []


def test_a_version_is_never_overwritten(tmp_path):
    publish_one(tmp_path, version=3)
    with pytest.raises(UserError, match=r"leave it out to get 4\. Received: 3, which exists"):
        publish_one(tmp_path, version=3, text="other")
    assert (tmp_path / "model" / "3" / "file").read_text() == "x model 3"


def test_an_error_publishes_nothing_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), publish.staging(tmp_path, ("model",)) as (_, folders):
        (folders["model"] / "file").write_text("half")
        assert publish.versions(tmp_path / "model") == []
        raise KeyError
    assert [path.name for path in (tmp_path / "model").iterdir()] == [".lock"]


def test_two_exports_of_a_model_do_not_mix(tmp_path):
    with publish.staging(tmp_path, ("model",)), pytest.raises(UserError, match="another export to .*model is running"):
        publish_one(tmp_path)


def test_kill_leaves_no_version_and_the_next_export_cleans_up(tmp_path):
    code = f"""
import pathlib, sys, time
from thumbnet_tf import publish
with publish.staging(pathlib.Path({str(tmp_path)!r}), ("model",)) as (number, folders):
    (folders["model"] / "saved_model.pb").write_text("half")
    print("written", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert publish.versions(tmp_path / "model") == []
    assert (tmp_path / "model" / ".partial-1" / "saved_model.pb").exists()
    assert publish_one(tmp_path) == 1
    assert {path.name for path in (tmp_path / "model").iterdir()} == {".lock", "1"}
    assert not (tmp_path / "model" / "1" / "saved_model.pb").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="can't be written"):
        publish_one(tmp_path / "file")


def test_manifest_lists_every_file_with_its_digest(tmp_path):
    (tmp_path / "a").mkdir()
    content = np.random.default_rng(0).bytes(1000) + bytes(9000)
    (tmp_path / "a" / "b").write_bytes(content)
    publish.write_labels(tmp_path, ["rosé", "b c"])
    publish.write_manifest(tmp_path, {"name": "m"})
    manifest = publish.read_manifest(tmp_path)
    assert manifest["name"] == "m"
    assert set(manifest["files"]) == {"a/b", "labels.txt"}
    entry = manifest["files"]["a/b"]
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["bytes"] == 10000
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a" / "b", "file")
        assert entry["zipped_bytes"] == archive.getinfo("file").compress_size < 1100
    assert publish.read_labels(tmp_path) == ["rosé", "b c"]
    assert json.loads((tmp_path / "manifest.json").read_text("utf-8")) == manifest


def test_a_folder_without_manifest_is_no_export(tmp_path):
    with pytest.raises(UserError, match=r"holds a manifest\.json; give one\. Received"):
        publish.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"holds a manifest\.json; give one\. Received"):
        publish.read_manifest(tmp_path)


def test_what_can_not_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "labels.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"labels.txt must hold UTF-8 text; .*Received: UnicodeDecodeError"):
        publish.read_labels(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    with pytest.raises(UserError, match=rf"must be readable; .*Received: {tmp_path} \(Permission denied\)"):
        publish.versions(tmp_path)
