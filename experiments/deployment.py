"""Collects what was measured of exported models in `experiments/results/` and writes its tables.

  python -m experiments.deployment parity flowers_quick saved_models/thumbnet/1
  python -m experiments.deployment wire flowers_quick runs/flowers_quick/thumbnet runs/flowers_jpeg70/thumbnet
  python -m experiments.deployment parity flowers_quick        # the table anew from the CSV

The first takes an export's parity.csv, for README.md; the second the wire.csv of methods of runs, for
experiments/README.md.
"""

import pathlib
import sys

from experiments.summary import RESULTS, ROOT, write
from thumbnet_tf import card, parity, wire
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.runs import RunDir

UPLINK_MBPS = 10  # for which the time to send is given


def collect_parity(name: str, exports: list[str]) -> None:
    """Copies the parity table of an export."""
    if len(exports) != 1:
        raise UserError(f"parity takes one export. Received: {' '.join(exports)}")
    write_rows(RESULTS / f"{name}_parity.csv", parity.COLUMNS, _read(pathlib.Path(exports[0]) / "parity.csv"))


def parity_markdown(rows: list[dict[str, str]]) -> str:
    """Returns the parity table of E + S, and T beside it."""
    titles, lines = card.parity_cells([row for row in rows if row["artifact"] in ("thumbnet", "teacher")])
    return _markdown(titles, lines)


def collect_wire(name: str, methods: list[str]) -> None:
    """Joins the wire tables of methods of runs, with the quality that each was trained through."""
    rows = []
    for method in map(pathlib.Path, methods):
        trained = RunDir.existing(method.parent).config().thumbnail_jpeg
        rows += [{**row, "trained_through": trained} for row in _read(method / "wire.csv")]
    write_rows(RESULTS / f"{name}_wire.csv", ("trained_through", *wire.COLUMNS), rows)


def wire_markdown(rows: list[dict[str, str]]) -> str:
    """Returns the test rows: bytes and accuracy of what is sent."""
    titles = ("trained", "sent as", "bytes", "full JPEG / it", "photo / it", "top-1, %", "lost, points")
    titles += ("encode, ms", "send, ms", "decode, ms")
    lines = [
        (
            f"`{row['method']}`" + (f" through JPEG {trained}" if (trained := row["trained_through"]) != "0" else ""),
            f"{row['encoding']} {row['quality']}".strip(),
            f"{float(row['bytes_mean']):.0f}",
            f"{float(row['ratio_to_full_jpeg']):.1f}",
            f"{float(row['ratio_to_original_jpeg']):.1f}",
            f"{100 * float(row['top1']):.1f}",
            f"{float(row['top1_lost_points']):.1f}",
            f"{float(row['encode_ms']):.2f}",
            f"{8 * float(row['bytes_mean']) / (1000 * UPLINK_MBPS):.2f}",
            f"{float(row['decode_ms']):.2f}",
        )
        for row in rows
        if row["split"] == "test"
    ]
    return _markdown(titles, lines)


def _read(path: pathlib.Path) -> list[dict[str, str]]:
    rows = read_rows(path)
    if not rows:
        raise UserError(f"a table measured before is expected; export, or run thumbnet_tf.wire. Received: {path}")
    return rows


def _markdown(titles: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rule = ["---" if index < 2 else "---:" for index in range(len(titles))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *lines))


KINDS = {
    "parity": (collect_parity, parity_markdown, ROOT / "README.md"),
    "wire": (collect_wire, wire_markdown, ROOT / "experiments" / "README.md"),
}


def main(arguments: list[str]) -> int:
    """Collects where something to collect from is given, and writes the table."""
    kind, *rest = arguments or [""]
    if kind not in KINDS:
        print(__doc__)
        return 2
    return write(rest, __doc__, *KINDS[kind], f"_{kind}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
