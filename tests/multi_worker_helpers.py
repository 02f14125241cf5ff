"""The processes of a job of several machines on localhost."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent


def environment(cluster: dict, kind: str, index: int) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


class Machines:
    """The processes of one start of a job; none outlives a `with` block."""

    def __init__(self, count: int, *arguments: str, own: dict[int, tuple[str, ...]] | None = None, **variables) -> None:
        """Starts `count` machines; with one, there is no job. `own` are arguments, `variables` go to the last."""
        sockets = [socket.socket() for _ in range(count)]
        for free in sockets:
            free.bind(("localhost", 0))
        addresses = [f"localhost:{free.getsockname()[1]}" for free in sockets]
        for free in sockets:
            free.close()
        self.processes = []
        for index in range(count):
            place = environment({"worker": addresses}, "worker", index) if count > 1 else {}
            common = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
            extra = {name: str(value) for name, value in variables.items()} if index == count - 1 else {}
            call = [sys.executable, str(ROOT / "tests" / "multi_worker_job.py"), *arguments]
            self.processes.append(
                subprocess.Popen(
                    [*call, *(own or {}).get(index, ())],
                    cwd=ROOT,
                    env={**os.environ, **common, **place, **extra},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()

    def ends(self, timeout: float = 240.0) -> list[tuple[int, str]]:
        """Returns the exit code and the output of each machine, once all have ended; kills them where one doesn't."""
        try:
            outputs = [process.communicate(timeout=timeout)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, output) for process, output in zip(self.processes, outputs, strict=True)]


def await_pause(path: pathlib.Path, machines: Machines) -> None:
    end = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in machines.processes), machines.ends()
        time.sleep(0.05)
