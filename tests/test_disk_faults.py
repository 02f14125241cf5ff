"""A disk that is really full, and one that is read-only: a small file system in memory, where it may be mounted."""

import pathlib
import shutil
import subprocess

import pytest
from train_helpers import assert_same, state_of

from thumbnet_tf import teacher_cache
from thumbnet_tf.config import UserError
from thumbnet_tf.train import train

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path):
    """Returns a file system of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"needs the right to mount: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)  # readers of a cache may still hold files open


def fill(disk: pathlib.Path, left: int) -> pathlib.Path:
    """Fills the file system but for some bytes; returns the file to delete."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return filler


@pytest.mark.parametrize("left", [8_000, 60_000, 200_000])
def test_a_full_disk_while_training_loses_nothing(config, disk, left):
    whole = state_of(train(config("whole", methods=("direct", "thumbnet"))))
    options = {"methods": ("direct", "thumbnet"), "run_dir": str(disk / "run"), "tensorboard": False}
    filler = fill(disk, left)
    with pytest.raises(UserError, match=r"can't be written \(.*[Nn]o space left.*\); what was saved before is intact"):
        train(config(**options))
    filler.unlink()
    assert_same(whole, state_of(train(config(**options))))


def test_a_full_disk_while_caching_loses_nothing(config, disk, monkeypatch):
    options = {"teacher_cache": "all", "augment": "none"}
    whole = state_of(train(config("whole", **options)))
    options["cache_dir"] = str(disk / "cache")
    filler = fill(disk, 8_000)
    with pytest.raises(UserError, match=r"T's cache needs .* and the disk has 0\.0 MiB left; make room"):
        train(config(**options))
    with monkeypatch.context() as patch:  # as if another program had taken the room since it was looked at
        patch.setattr(teacher_cache, "check_room", lambda *args: None)
        with pytest.raises(UserError, match=r"can't be written \(.*No space left.*\); what was saved before is intact"):
            train(config(**options))
    filler.unlink()
    assert_same(whole, state_of(train(config(**options))))


def test_a_read_only_disk_is_one_line(config, disk):
    train(config(run_dir=str(disk / "run"), methods=("direct",), tensorboard=False))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match=r"--run_dir can't be written \(Read-only file system\); choose another place"):
        train(config(run_dir=str(disk / "run"), methods=("direct", "bicubic"), tensorboard=False))
    with pytest.raises(UserError, match=r"can't be written \(Read-only file system\)"):
        train(config(cache_dir=str(disk / "cache"), teacher_cache="all"))
