"""Trains rows of the experiments' tables one after the other, each for some seeds, and notes their results.

  python -m experiments.run --list                                             # rows, and which seeds are measured
  python -m experiments.run --rows=flowers_32_bicubic,flowers_32_thumbnet --seeds=0,1,2

A row is a flagfile `experiments/rows/<set>_<row>.flags`. Each pair of row and seed is a run directory
`<runs>/<row>_seed<n>`, whose teacher is that of `<set>_original` with the same seed, which is trained first where it
isn't there; sets of one full size have one T (`TEACHER_SETS`), rows `generic_*` have none. Rows in bfloat16 are trained
in float32 where the machine is clearly faster so. Results go to `experiments/results/<set>.csv` as each run ends. What
stands there isn't run again, unless `--again` asks for those whose run directories are missing or hold other results.
Several such commands may run side by side: one that needs what another is training waits for it. Interrupt it anyhow:
the same command goes on where it was (`minutes` are then those of the last start).
"""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

from absl import flags as absl_flags

from experiments import origins
from experiments.summary import RESULTS, ROOT
from thumbnet_tf import cache_files, flags, stages, timing
from thumbnet_tf.config import Config, FlagError, UserError, check_options, option
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.evaluate import COLUMNS as EVALUATED
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL

ROWS = ROOT / "experiments" / "rows"
TEACHER_SETS = {"flowers_64": "flowers_32", "plant_64": "plant_32"}  # whose T a set has, where it isn't its own
ALONE = "generic"  # sets whose rows are networks without a teacher begin like this
LOSSES = ("kd", "val_kd", "fm", "val_fm")  # of the last epoch, where the row has them
COUNTS = ("macs", "macs_downscaler", "params")  # of today's models (recount.py), not of those of the day of training
COLUMNS = ("row", *EVALUATED, *LOSSES, "minutes", "cores", "date", *origins.ORIGINS)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    rows: tuple[str, ...] = option((), "comma-separated names of flagfiles in experiments/rows, without .flags")
    seeds: tuple[str, ...] = option(("0",), "comma-separated seeds of each row")
    runs: str = option("runs", "folder of the run directories")
    dataset: str = option("", "data in another place than the rows' flagfiles say, as in thumbnet_tf.train")
    again: bool = option(
        False,
        "train also what is measured, where its run directory is missing or has other results; they take the old ones' "
        "place",
    )
    list: bool = option(False, "list all rows and the seeds that are measured, and do nothing")

    def __post_init__(self) -> None:
        check_options(self)
        for seed in self.seeds:
            if not seed.isdecimal() or seed != str(int(seed)):
                raise FlagError(f"--seeds takes whole numbers, as in 0,1,2. Received: {seed!r}")
        unknown = [row for row in self.rows if row not in names()]
        if unknown:
            raise FlagError(f"--rows takes names that --list shows. Received: {', '.join(unknown)}")
        if not self.rows and not self.list:
            raise FlagError("--rows must name at least one row; --list shows all. Received: none")
        for row in self.rows:
            stages.students(config_of(row))  # refuses what would be refused at the row's turn
        data = sorted({config_of(row).dataset for row in self.rows}) if self.dataset else []
        made = [row for row in self.rows if set_of(row).startswith(ALONE)]
        if data and (len(data) > 1 or made or not data[0].startswith("folder:")):
            raise FlagError(
                "--dataset takes the place of one folder of photographs, which all --rows must be of. "
                f"Received: {self.dataset}, with rows of {', '.join(data)}"
            )


def names() -> list[str]:
    """Returns the names of all rows."""
    return sorted(path.stem for path in ROWS.glob("*.flags"))


def set_of(row: str) -> str:
    """Returns the set, such as `flowers_32`, that a row's name begins with."""
    return "_".join(row.split("_")[:2])


def name_in_set(row: str) -> str:
    """Returns what a row is called in its set: its method, or its difference."""
    return row.removeprefix(f"{set_of(row)}_")


def config_of(row: str) -> Config:
    """Returns what a row's flagfile configures."""
    path = (ROWS / f"{row}.flags").relative_to(ROOT)
    if not (ROOT / path).exists():
        raise UserError(
            f"a row needs a flagfile, and its set those of original, bicubic and thumbnet. Received: {path}"
        )
    return configured(path)


def configured(path: str | pathlib.Path) -> Config:
    """Returns what a flagfile configures; its paths count from the working directory, the repository's root."""
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("flagfile", "", "", flag_values=values)
    flags.define(Config, flag_values=values)
    return flags.parsed(Config, values(["train", f"--flagfile={path}"])[1:], flag_values=values)


def method_of(row: str) -> str:
    """Returns the method that a row trains; of one that trains no student, `original`."""
    return next(iter(config_of(row).methods), ORIGINAL)


def teacher_row(row: str) -> str:
    """Returns the row that trains the teacher of a row."""
    return f"{TEACHER_SETS.get(set_of(row), set_of(row))}_{ORIGINAL}"


def measured(row: str) -> dict[int, float]:
    """Returns the seeds of a row that are in its set's CSV, and the minutes that each took."""
    found = read_rows(RESULTS / f"{set_of(row)}.csv", ("row", "seed", "minutes"), words=("row",))
    return {int(each["seed"]): float(each["minutes"]) for each in found if each["row"] == row}


def has_teacher(row: str) -> bool:
    """Returns whether a row learns from the teacher of another one."""
    return row != teacher_row(row) and not set_of(row).startswith(ALONE)


def folder(row: str, seed: str, options: Options) -> pathlib.Path:
    """Returns the run directory of a row and a seed, from the repository's root."""
    return pathlib.Path(options.runs) / f"{row}_seed{seed}"


def there(row: str, seed: str, options: Options) -> bool:
    """Returns whether the run directory of a row and a seed is there, and finished."""
    return RunDir(ROOT / folder(row, seed, options)).is_done(method_of(row))


def noted(row: str, seed: str, options: Options) -> bool:
    """Returns whether the run directory of a row and a seed is finished and the CSV holds its results, and its T."""
    if not there(row, seed, options):
        return False
    run = RunDir(ROOT / folder(row, seed, options))
    of_run = [each for each in read_rows(run.path / "results.csv") if each["method"] == method_of(row)]
    in_csv = [each for each in read_rows(RESULTS / f"{set_of(row)}.csv") if (each["row"], each["seed"]) == (row, seed)]
    compared = [name for name in EVALUATED if name not in COUNTS]
    values = [{tuple(each[name] for name in compared) for each in found} for found in (of_run, in_csv)]
    teachers = {each.get("teacher") or "" for each in in_csv}
    return values[0] == values[1] and teachers <= {"", origins_of(row, run)["teacher"]}  # "" from before it was noted


def finished(row: str, seed: str, options: Options) -> bool:
    """Returns whether a row is measured, and if its models are needed, also there."""
    needed = options.again or row == teacher_row(row)
    return int(seed) in measured(row) and (not needed or noted(row, seed, options))


def jobs(options: Options) -> list[tuple[str, str]]:
    """Returns the rows and seeds to train, in the order given: what isn't measured yet, and first its T.

    Raises:
        UserError: when a run directory holds other results than the CSV, and `--again` isn't given.
    """
    found = {}  # a set that keeps its order
    for row in options.rows:
        for seed in options.seeds:
            if int(seed) in measured(row):
                known = noted(row, seed, options)
                is_evaluated = (ROOT / folder(row, seed, options) / "results.csv").exists()
                if not options.again and not known and is_evaluated and there(row, seed, options):
                    raise UserError(
                        f"{folder(row, seed, options)} holds other results than experiments/results/{set_of(row)}.csv; "
                        "delete it, or give --again for its results to take the old ones' place"
                    )
                if not options.again or known:
                    more = "" if options.again else "; --again trains it where its run directory is missing"
                    print(f"{row}, seed {seed} is measured{more}", file=sys.stderr)
                    continue
            if has_teacher(row) and not finished(teacher_row(row), seed, options):
                found[teacher_row(row), seed] = None
            found[row, seed] = None
    return list(found)


def check_teachers(found: list[tuple[str, str]], options: Options) -> None:
    """Sees to it that no measured row is left unsaid beside a T that didn't teach it.

    Raises:
        UserError: when a T is to be trained anew, others have learned from the measured one, and `--again` isn't given.
    """
    for row, seed in found:
        taught = [name for name in names() if has_teacher(name) and teacher_row(name) == row]
        taught = [name for name in taught if int(seed) in measured(name) and (name, seed) not in found]
        if not taught or noted(row, seed, options):
            continue
        if not options.again:
            raise UserError(
                f"{folder(row, seed, options)} is missing or holds another T than the one that taught what is measured "
                f"with this seed: {', '.join(taught)}. Take a seed that --list doesn't show, or give --again and train "
                "those anew too"
            )
        print(f"with T of seed {seed}, train anew too: {', '.join(taught)}; another has taught them", file=sys.stderr)


def command(row: str, seed: str, options: Options) -> list[str]:
    """Returns the training command of a row and a seed."""
    given = [sys.executable, "-m", "thumbnet_tf.train", f"--flagfile={ROWS.relative_to(ROOT) / row}.flags"]
    given += [f"--seed={seed}", f"--run_dir={folder(row, seed, options)}"]
    if options.dataset:
        given.append(f"--dataset={options.dataset}")
    if config_of(row).mixed_precision == "mixed_bfloat16":
        given.append(f"--mixed_precision={precision(row, seed, options)}")
    if has_teacher(row):
        given.append(f"--teacher={folder(teacher_row(row), seed, options)}")
    return given


def precision(row: str, seed: str, options: Options) -> str:
    """Returns what a row in bfloat16 computes in: what it was begun in, perhaps elsewhere, else what is faster here."""
    run = RunDir(ROOT / folder(row, seed, options))
    if (run.path / "data.json").exists():
        return run.config().mixed_precision
    return "mixed_bfloat16" if bfloat16_pays() else "float32"


def bfloat16_pays() -> bool:
    """Measures whether this machine isn't clearly slower in bfloat16 than in float32.

    In a process of its own: TensorFlow would keep memory of an accelerator that the trainings need.
    """
    code = "from thumbnet_tf import timing; print(timing.slowdown('bfloat16'))"
    found = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return float(found.stdout) <= timing.SLOW


def train(arguments: list[str]) -> int:
    """Runs a training to its end and returns its exit code; SIGTERM is passed on, so that it saves its state."""
    with subprocess.Popen(arguments, cwd=ROOT) as process:
        handlers = {
            signal.SIGTERM: lambda *_: process.terminate(),
            signal.SIGINT: lambda *_: None,  # Ctrl-C reaches the training by itself; a second signal would kill it
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return code if code >= 0 else 128 - code  # as a shell counts a killed process


def cores() -> int:
    """Returns how many CPU cores a training may use: those that it is bound to."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def origins_of(row: str, run: RunDir) -> dict[str, str]:
    """Returns what a row's results came from, a value for each of `ORIGINS`."""
    return origins.of_run(run, "given" if has_teacher(row) else "trained" if row == teacher_row(row) else "none")


def writing() -> contextlib.AbstractContextManager[None]:
    """Holds the CSVs of results for one command that reads and rewrites them; others wait."""
    return cache_files.lock(ROOT / "runs" / "noting")


def note(row: str, seed: str, run: pathlib.Path, minutes: float) -> None:
    """Adds the results of a finished run to its set's CSV, those of the row's method.

    Raises:
        UserError: when the run has no such results.
    """
    path, method = RESULTS / f"{set_of(row)}.csv", method_of(row)
    found = [each for each in read_rows(run / "results.csv") if each["method"] == method]
    if not found:
        raise UserError(f"a finished run is expected. Received: {run}, which has no results of {method}")
    last = next(reversed(read_rows(run / method / "metrics.csv")), {})  # `direct` has none
    how = {name: last.get(name, "") for name in LOSSES}
    how |= {"minutes": f"{minutes:.1f}", "cores": str(cores()), "date": datetime.date.today().isoformat()}
    how |= origins_of(row, RunDir(run))
    new = [{"row": row, **each, **how} for each in found]
    with writing():
        kept = [each for each in read_rows(path) if (each["row"], each["seed"]) != (row, seed)]
        write_rows(path, COLUMNS, sorted(kept + new, key=lambda each: (each["row"], int(each["seed"]), each["split"])))


def main(options: Options) -> int:
    """Trains the jobs and notes their results; returns the exit code of a training that failed."""
    if options.list:
        for row in names():
            print(f"{row:40s} seeds measured: {', '.join(map(str, sorted(measured(row)))) or 'none'}")
        return 0
    found = jobs(options)
    check_teachers(found, options)
    for number, (row, seed) in enumerate(found):
        known = [minutes for each in found[number:] for minutes in measured(each[0]).values()]
        left = f"about {statistics.mean(known) * (len(found) - number):.0f} minutes left" if known else "time unknown"
        print(f"[{number + 1}/{len(found)}] {row}, seed {seed}; {left}", file=sys.stderr, flush=True)
        with cache_files.lock(ROOT / options.runs / "turns" / f"{row}_seed{seed}"):
            if finished(row, seed, options):  # by another such command, while this one waited for it
                continue
            start = time.monotonic()
            code = train(command(row, seed, options))
            if code:
                goes_on = "" if code == flags.USAGE_ERROR else "; the same command goes on from there"
                print(f"{row}, seed {seed} ended with code {code}{goes_on}", file=sys.stderr)
                return code
            note(row, seed, ROOT / folder(row, seed, options), (time.monotonic() - start) / 60)
    return 0


if __name__ == "__main__":
    flags.run(main, Options)
