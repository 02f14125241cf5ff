"""The log of a run: what it takes, and that it never gets in the way. Archives that are damaged."""

import logging
import os
import zipfile

import pytest

from thumbnet_tf.config import UserError
from thumbnet_tf.files import check_archive, logging_to


def test_names_that_are_no_utf8_are_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("thumbnet_tf"), "propagate", False)  # pytest-xdist can't pass such a name on
    with logging_to(tmp_path / "log.txt"):
        logging.getLogger("thumbnet_tf.data").warning("left out: %s", os.fsdecode(b"caf\xe9.jpg"))
    assert "left out: caf\\udce9.jpg" in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file on a disk that is always full")
def test_a_log_that_can_not_be_written_hides_no_error(tmp_path, capfd):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(UserError, match="what ended the run"), logging_to(tmp_path / "log.txt"):
        for number in range(200):  # more than is kept back before it is written
            logging.getLogger("thumbnet_tf.train").info("line %d of a long log", number)
        raise UserError("what ended the run")
    assert "Logging error" not in capfd.readouterr().err
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder can't be written \(Is a directory\).*choose another place"):
        logging_to(tmp_path / "folder").__enter__()


def test_damage_anywhere_in_an_archive_is_seen(tmp_path):
    path = tmp_path / "model.keras"
    weights = bytes(range(256)) * 40
    with zipfile.ZipFile(path, "w") as archive:  # stored as it is, as Keras does
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", weights)
    check_archive(path)
    whole = path.read_bytes()
    start = whole.index(weights)
    for place in (start, start + len(weights) // 2, start + len(weights) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(zipfile.BadZipFile, match=r"^model.weights.h5 in it is damaged$"):
            check_archive(path)
    path.write_bytes(whole[: start + 100])
    with pytest.raises(zipfile.BadZipFile, match="not a zip file"):
        check_archive(path)
