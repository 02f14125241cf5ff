"""Room for T's cache: it is told, limited and checked before anything is written, and shared with other processes."""

import contextlib
import dataclasses
import fcntl
import logging
import multiprocessing
import pathlib
import resource
import shutil
import time

import pytest
from cache_helpers import files_of, open_caches, prepare

from thumbnet_tf import cache_files, loop, teacher_cache
from thumbnet_tf.config import UserError
from thumbnet_tf.runs import RunDir
from thumbnet_tf.train import train


def test_a_file_takes_no_more_than_was_told_and_little_less(tmp_path):
    for records, content in ((1, 20), (1000, 20), (4096, 400), (100, 32768)):
        path = tmp_path / f"{records}-{content}"
        with cache_files.writing(path) as write:
            for _ in range(records):
                write(bytes(content))
        told = cache_files.file_size(records, content)
        assert told - 131072 <= path.stat().st_size <= told, (records, content)
    # 4096 records of 400 bytes and 64 beside each: 29 blocks of 65536; two for the index
    assert cache_files.file_size(4096, 400) == 31 * 65536


def test_a_finished_cache_is_free_while_the_other_is_filled(cached, monkeypatch):
    cfg, dataset, teacher = cached
    fill, found = teacher_cache.TeacherCache.fill, []

    def is_free(folder):
        with open(folder / "lock", "w") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def look(cache, *args):
        folders = sorted(path for path in teacher_cache.folder_of(cfg).iterdir() if path.is_dir())
        found.append((cache.split.name, [(path.name.split("-")[0], is_free(path)) for path in folders]))
        fill(cache, *args)

    monkeypatch.setattr(teacher_cache.TeacherCache, "fill", look)
    prepare(cfg, dataset, teacher)
    assert found == [
        ("validation", [("train", False), ("validation", False)]),
        ("train", [("train", False), ("validation", True)]),
    ]


def test_as_many_files_may_be_open_as_a_cache_has():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        cache_files.allow_open_files(88)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 600  # 88 and 512 others
        cache_files.allow_open_files(89)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (601, before[1])
        if before[1] != resource.RLIM_INFINITY:
            with pytest.raises(UserError, match=f"files of T's cache .* Received: a limit of {before[1]} open files"):
                cache_files.allow_open_files(before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_is_obeyed_before_anything_is_written(cached):
    cfg, dataset, teacher = cached
    needed = 18 * cache_files.file_size(8, 512)  # of 2 views x 4 blocks and 1 of validation, logits and maps
    tight = dataclasses.replace(cfg, cache_limit_gb=(needed - 1) / 2**30)
    with pytest.raises(UserError, match=r"T's cache needs 3\.4 MiB more .* raise --cache_limit_gb, delete caches"):
        prepare(tight, dataset, teacher)
    assert [p.name for p in teacher_cache.folder_of(cfg).rglob("*") if p.is_file()] == ["lock"] * 3
    caches = prepare(dataclasses.replace(cfg, cache_limit_gb=(needed + 100) / 2**30), dataset, teacher)
    assert sum(path.stat().st_size for path in files_of(caches)) <= needed


def test_room_is_checked_before_the_teacher_is_trained(config, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained"))
    cfg = config(teacher_cache="all", cache_limit_gb=0.001)
    with pytest.raises(UserError, match="Received: --cache_limit_gb=0.001"):
        train(cfg)
    run = RunDir(cfg.run_dir)
    assert not (run.path / "data.json").exists()  # so that another start may correct any flag


def test_a_disk_with_too_little_room_is_told_before(cached, monkeypatch):
    cfg, dataset, teacher = cached
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match="and the disk has 0.0 MiB left; make room, or give another --cache_dir"):
        prepare(cfg, dataset, teacher)
    needed = 18 * cache_files.file_size(8, 512)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, needed + 2**20))
    monkeypatch.setattr(teacher_cache, "held", lambda *_: (0, 2**20 + 1))
    with pytest.raises(UserError, match=r"the disk has 4\.4 MiB left, where other runs are to write 1\.0 MiB; make"):
        prepare(cfg, dataset, teacher)
    monkeypatch.setattr(teacher_cache, "held", lambda *_: (0, 2**20))
    prepare(cfg, dataset, teacher)


def test_a_folder_that_can_not_be_entered_holds_nothing_that_counts(tmp_path, monkeypatch):
    for name in ("lost+found", "train-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "made").write_bytes(bytes(50))
    inside = pathlib.Path.read_text, pathlib.Path.is_file

    def denied(call):
        def refuse(path, *args):
            if path.parent.name == "lost+found":
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args)

        return refuse

    monkeypatch.setattr(pathlib.Path, "read_text", denied(inside[0]))
    monkeypatch.setattr(pathlib.Path, "is_file", denied(inside[1]))
    assert cache_files.held(tmp_path) == (50, 0)


def _hold(folder, ready, release) -> None:
    with cache_files.lock(folder):
        ready.set()
        release.wait(60)


def _grow(folder, ready) -> None:
    with cache_files.lock(folder), cache_files.growing(folder, 2**21):
        ready.set()
        time.sleep(60)


@pytest.mark.slow
def test_another_cache_that_is_being_filled_is_not_waited_for_but_counted(cached, caplog):
    cfg, dataset, teacher = cached
    other = teacher_cache.folder_of(cfg) / "train-other"
    other.mkdir(parents=True)
    (other / "made").write_bytes(bytes(2**20))
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_grow, args=(other, ready))
    process.start()
    try:
        assert ready.wait(60)
        (other / "more").write_bytes(bytes(2**19))
        there, promised = cache_files.held(teacher_cache.folder_of(cfg))
        assert there + promised == 3 * 2**20 and 0 <= there - 3 * 2**19 < 10  # the promise itself takes some bytes
        needed = sum(each.num_bytes(each.files()) for each in open_caches(cfg, dataset, teacher).values())
        tight = dataclasses.replace(cfg, cache_limit_gb=(needed + 2**20) / 2**30)
        with pytest.raises(UserError, match=r"already holds 1\.5 MiB, where other runs are to write 1\.5 MiB; raise"):
            prepare(tight, dataset, teacher)
        assert cache_files.held(other.parent, [other]) == (there, 0)
        with caplog.at_level("INFO", "thumbnet_tf"):
            caches = prepare(cfg, dataset, teacher)
        assert not any(each.missing() for each in caches.values())
        assert "another process is at work on" not in caplog.text
        assert [path.parent for path in other.parent.rglob("room.partial")] == [other]
        process.kill()
        process.join(60)
        assert cache_files.held(other.parent)[1] == 0  # what a killed process was about to write doesn't count
    finally:
        process.kill()
        process.join(60)


class Releasing(logging.Handler):
    """Lets the other process go on once this one says that it waits."""

    def __init__(self, release) -> None:
        super().__init__()
        self.go_on = release

    def emit(self, record: logging.LogRecord) -> None:
        if "another process is at work on" in record.getMessage():
            self.go_on.set()


def test_a_second_process_waits_for_the_first(cached, caplog):
    cfg, dataset, teacher = cached
    caches = prepare(cfg, dataset, teacher)
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    waiting = Releasing(release)
    process = context.Process(target=_hold, args=(caches["train"].folder, ready, release))
    process.start()
    try:
        assert ready.wait(60)
        cache_files._log.addHandler(waiting)
        with caplog.at_level("INFO", "thumbnet_tf"):
            prepare(cfg, dataset, teacher)
        assert release.is_set()
        assert f"another process is at work on {caches['train'].folder}; waiting for it" in caplog.text
    finally:
        cache_files._log.removeHandler(waiting)
        release.set()
        process.join(60)
    assert RunDir(cfg.run_dir).path.exists() is False
