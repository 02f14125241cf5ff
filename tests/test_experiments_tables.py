"""Tables, headers and figures of the experiments' rows."""

import hashlib
import json
import pathlib

import pytest
from matplotlib.collections import PathCollection

from experiments import aims, choices, frontier, published, row_tables, run
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.evaluate import COLUMNS as EVALUATED
from thumbnet_tf.runs import RunDir

SPLITS = ("test", "validation")


def test_a_set_is_shown_beside_its_teacher_of_the_same_seeds(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(row_tables, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(run.TEACHER_SETS, "discs_64", "discs_32")
    write_rows(tmp_path / "results" / "discs_64.csv", run.COLUMNS, [{"row": "discs_64_bicubic", "seed": 3}])
    theirs = [{"row": f"discs_32_{name}", "seed": seed} for name in ("bicubic", "original") for seed in (0, 3)]
    write_rows(tmp_path / "results" / "discs_32.csv", run.COLUMNS, theirs)
    found = [(row["row"], row["seed"]) for row in row_tables.rows_of("discs_64")]
    assert found == [("discs_64_bicubic", "3"), ("discs_32_original", "3")]
    assert row_tables.rows_of("discs_128") == []
    noted = [row | {"teacher": teacher} for row, teacher in zip(theirs, ("aa", "cc", "aa", "bb"), strict=True)]
    write_rows(tmp_path / "results" / "discs_32.csv", run.COLUMNS, noted)
    with pytest.raises(UserError, match="seed 3 must have the same T;.*bicubic, seed 3; apart from them discs_32_orig"):
        row_tables.rows_of("discs_32")
    for wrong, message in (
        ({"teacher": ""}, "with seed 0 must have the same T"),  # taught by a T from before it was noted
        ({"data": "ff"}, "rows of discs_32 must have the same images"),
        ({"options": "ff"}, "rows of discs_32_bicubic must have the same options"),
    ):
        same = [row | {"teacher": f"t{row['seed']}", "data": "d", "options": row["row"]} for row in theirs]
        write_rows(tmp_path / "results" / "discs_32.csv", run.COLUMNS, same)
        assert len(row_tables.rows_of("discs_32")) == 4
        write_rows(tmp_path / "results" / "discs_32.csv", run.COLUMNS, [same[0] | wrong, *same[1:]])
        with pytest.raises(UserError, match=message):
            row_tables.rows_of("discs_32")


def test_table_computes_mean_spread_and_recovered_share(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    common = {"split": "test", "teacher_agreement": "0.5", "macs": "9900000", "params": "2800000"}
    tops = {
        "original": [0.9, 1.0],
        "bicubic": [0.7, 0.7],
        "thumbnet": [0.8, 0.9],
        "area": [0.8],
        "no_fm": [0, 0, 0],
        "slim": [0.9, 0.9],
    }
    tops |= {"narrow_bicubic": [0.75, 0.75], "narrow_thumbnet": [0.8, 0.9], "narrow_bicubic_kd": [0.75, 0.7, 0.8]}
    rows = [
        common | {"row": f"flowers_32_{name}", "seed": str(seed), "top1": str(top), "macs_downscaler": macs}
        for name, found in tops.items()
        for seed, top in enumerate(found)
        for macs in ("4800000" if name == "thumbnet" else "0",)
    ]
    rows += [row | {"split": "validation", "top1": "0.1"} for row in rows]
    lines = {line.split("`")[1]: line for line in row_tables.markdown("flowers_32", rows).splitlines()[2:]}
    # (0.85 - 0.7) / (0.95 - 0.7) = 0.6; --w_cl=0 in this set's flags
    assert lines["thumbnet"].startswith(
        "| `thumbnet` | learned thumbnails, KD + FM + MM | 85.0 ± 7.1 | 10.0 ± 0.0 | 50.0 ± 0.0 | 0.60 |"
    )
    assert lines["thumbnet"].endswith("| 9.9 (+ 4.8) | 2.80 | 2 |")
    assert lines["original"].startswith(
        "| `original` | the teacher T on full images | 95.0 ± 7.1 | 10.0 ± 0.0 | 50.0 ± 0.0 | - |"
    )
    # of its one seed: (0.8 - 0.7) / (0.9 - 0.7) = 0.5; bicubic has no third seed
    assert lines["area"].startswith("| `area` | area thumbnails, CL | 80.0 | 10.0 | 50.0 | 0.50 | 9.9 | 2.80 | 1 |")
    # against bicubic thumbnails with the narrower S: (0.85 - 0.75) / (0.95 - 0.75) = 0.5
    assert "| 85.0 ± 7.1 | 10.0 ± 0.0 | 50.0 ± 0.0 | 0.50 |" in lines["narrow_thumbnet"]
    assert "| 50.0 ± 0.0 | - |" in lines["narrow_bicubic_kd"]
    assert "| 50.0 ± 0.0 | - | 9.9 |" in lines["slim"]  # it has more epochs than bicubic
    assert lines["no_fm"].startswith(
        "| `no_fm` | thumbnet without FM, KD + MM | 0.0 ± 0.0 | 10.0 ± 0.0 | 50.0 ± 0.0 | - |"
    )


def test_overview_shows_each_accuracy_with_its_seeds(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    tops = {
        "flowers_32_original": [0.9, 0.92, 0.97],
        "flowers_64_bicubic": [0.7, 0.8],
        "flowers_64_narrow_thumbnet": [0.85],
        "flowers_64_thumbnet": [0.8, 0.8, 0.8, 0.8],  # the last one's T isn't measured
    }
    rows = [
        {"row": name, "split": split, "top1": str(top if split == "test" else 0), "seed": str(seed)}
        for name, found in tops.items()
        for seed, top in enumerate(found, 1)
        for split in ("test", "validation")
    ]
    assert row_tables.overview_markdown({"flowers_64": rows}).splitlines() == [
        "| data | px | `original` | `bicubic` | `bicubic_kd` | `thumbnet` | `narrow_thumbnet` | `slim` |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| tf_flowers | 128 to 64 | 93.0 ± 3.6 (seeds 1-3) | 75.0 ± 7.1 (seeds 1-2; T 91.0) | - "
        "| 80.0 ± 0.0 (seeds 1-4) | 85.0 (seed 1; T 90.0) | - |",
    ]
    assert row_tables._numbers(["4", "1", "3"]) == "seeds 1, 3, 4"


def test_shares_of_longer_rows_count_from_a_bicubic_as_long(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    common = {"teacher_agreement": "0.5", "macs": "1", "macs_downscaler": "0", "params": "1", "seed": "1"}
    tops = {"32_original": 0.98, "64_bicubic": 0.90, "64_thumbnet": 0.94, "64_thumbnet_72": 0.97}

    def shares(tops):
        rows = [
            common | {"row": f"plant_{name}", "split": s, "top1": str(t)} for name, t in tops.items() for s in SPLITS
        ]
        return {
            line.split("`")[1]: line.split(" | ")[5] for line in row_tables.markdown("plant_64", rows).splitlines()[2:]
        }

    assert shares(tops) == {"original": "-", "bicubic": "0.00", "thumbnet": "0.50", "thumbnet_72": "-"}
    assert shares(tops | {"64_bicubic_72": 0.94})["thumbnet_72"] == "0.75"  # (0.97 - 0.94) / (0.98 - 0.94)


def test_losses_are_means_of_the_rows_that_have_them():
    common = {"split": "test", "row": "flowers_32_thumbnet", "val_kd": "0.9", "fm": "", "val_fm": ""}
    rows = [common | {"kd": kd} for kd in ("0.2", "0.3")] + [common | {"split": "validation", "kd": "9"}]
    rows.append(common | {"row": "flowers_32_bicubic", "kd": "", "val_kd": ""})
    assert row_tables.losses_markdown(rows).splitlines()[2:] == ["| `thumbnet` | 0.250 | 0.900 | - | - | 2 |"]


def test_differences_are_taken_between_rows_of_the_same_seeds(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    of_rows = {
        "thumbnet": {"0": ("0.70", "0.80", "0.300"), "1": ("0.80", "0.90", "0.200")},
        "fm_1": {"1": ("0.79", "0.92", "0.250")},
        "bicubic_kd": {"0": ("0.69", "0.80", "0.350"), "1": ("0.78", "0.86", "0.270"), "2": ("0", "0", "0")},
        "bicubic": {"0": ("0.68", "0.75", "")},
        "temperature_8": {"0": ("0.72", "0.81", "0.9")},  # its KD is another measure
        "e_8": {"2": ("0", "0", "0")},
        "original": {"0": ("0.9", "1", "")},
    }
    rows = [
        {
            "row": f"ablation_32_{name}",
            "split": split,
            "seed": seed,
            "top1": str(float(top) * factor),
            "teacher_agreement": same,
            "val_kd": kd,
        }
        for name, seeds in of_rows.items()
        for seed, (top, same, kd) in seeds.items()
        for split, factor in (("test", 1), ("validation", 2))
    ]
    assert row_tables.differences_markdown("ablation_32", rows).splitlines()[2:] == [
        "| `bicubic` | bicubic thumbnails, CL | -2.0 | -4.0 | -5.0 | - | 1 |",
        "| `bicubic_kd` | bicubic thumbnails, KD | -1.5 | -3.0 | -2.0 | +0.060 | 2 |",  # (-1 - 2) / 2, ...
        "| `fm_1` | thumbnet, FM of weight 1 in place of 0.1 | -1.0 | -2.0 | +2.0 | +0.050 | 1 |",
        "| `temperature_8` | thumbnet, temperature 8 in place of 4 | +2.0 | +4.0 | +1.0 | - | 1 |",
    ]
    assert len(row_tables.differences_markdown("ablation_32", rows[4:]).splitlines()) == 2  # no thumbnet, no rows


def test_header_of_a_measured_row_is_replaced():
    text = (
        "# area of discs.\n# Command: python -m experiments.run --rows=discs_area\n# Cost:     old\n# Expected: old\n"
        "--flagfile=base.flags\n# why\n--w_mm=1\n"
    )
    common = {"row": "discs_area", "split": "test", "cores": "2", "date": "2026-11-24"}
    rows = [
        common | {"seed": "0", "top1": "0.8", "minutes": "9.5"},
        common | {"seed": "1", "top1": "0.9", "minutes": "8"},
    ]
    rows += [rows[0] | {"split": "validation", "top1": "0.1"}]
    assert row_tables.with_header(text, rows) == (
        "# area of discs.\n# Command: python -m experiments.run --rows=discs_area --seeds=0,1 --again\n"
        "# Cost:     8 to 9.5 minutes a seed, T's not counted, CPU cores: 2\n"
        "# Expected: 85.0 ± 7.1 % of test right (seeds 0, 1; 2026-11-24)\n"
        "--flagfile=base.flags\n# why\n--w_mm=1\n"
    )
    one = row_tables.with_header(text, [rows[0] | {"date": "2026-11-25"}]).splitlines()
    assert one[2:4] == [
        "# Cost:     9.5 minutes a seed, T's not counted, CPU cores: 2",
        "# Expected: 80.0 % of test right (seeds 0; 2026-11-25)",
    ]


def test_every_kind_of_row_in_the_figure_has_its_own_colour():
    assert len({frontier.COLOURS[kind] for kind in frontier.SHOWN}) == len(frontier.SHOWN)


def test_bubbles_are_the_largest_layers_input_and_output():
    # ResNet-18 of width 0.5 at 128 px: 64 x 64 x 32 values of 4 bytes into the stem's normalisation and out of it
    assert frontier.row_bytes("flowers_32_original") == 2 * 64 * 64 * 32 * 4
    # 128 x 128 x 3 values into the downscaler and 32 x 32 x 3 out of it: more than S holds
    assert frontier.row_bytes("flowers_32_bicubic") == (128 * 128 + 32 * 32) * 3 * 4
    # E rescales the image: as many out as in
    assert frontier.row_bytes("flowers_32_thumbnet") == 2 * 128 * 128 * 3 * 4
    assert frontier.row_bytes("flowers_32_narrow_thumbnet") == 2 * 128 * 128 * 3 * 4


def test_frontier_shows_means_over_multiply_adds_with_e():
    common = {"split": "test", "macs": "9000000", "macs_downscaler": "1000000"}
    rows = [
        common | {"row": "flowers_32_thumbnet", "seed": seed, "top1": top}
        for seed, top in (("0", "0.78"), ("4", "0.80"))
    ]
    rows += [row | {"row": "flowers_32_original", "top1": "0.82"} for row in rows]
    rows.append(rows[0] | {"split": "validation", "top1": "0.1"})
    axes = frontier.figure("flowers", rows, {"flowers_32_thumbnet": 400_000}).axes[0]
    (bubbles,) = [each for each in axes.collections if isinstance(each, PathCollection)]
    assert bubbles.get_offsets().tolist() == [[10.0, pytest.approx(-3.0)]]  # (0.78 + 0.80) / 2 - 0.82
    assert bubbles.get_sizes().tolist() == [400.0]
    assert axes.get_legend_handles_labels()[1][0].endswith("KD + FM + MM (seeds: flowers_32 0, 4)")


def test_choices_compare_runs_of_one_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "RESULTS", tmp_path)
    digest = hashlib.sha256(b"T").hexdigest()  # of the first run's T; the others were given one
    for name, teacher, rate in (("a", None, 0.1), ("b", digest, 0.2), ("c", 64 * "0", 0.3)):
        run_dir = RunDir(tmp_path / name)
        run_dir.path.mkdir()
        run_dir.claim(Config(learning_rate=rate))
        rows = [
            dict.fromkeys(EVALUATED, "1") | {"method": method, "split": "validation", "top1": str(rate), "seed": "0"}
            for method in ("original", "bicubic")
        ]
        write_rows(run_dir.path / "results.csv", EVALUATED, rows)
        run_dir.method("original").mkdir()
        (run_dir.method("original") / "teacher.keras").write_bytes(b"T" if teacher is None else b"a copy")
        facts = {"fingerprint": "f"} | ({"teacher_file": teacher} if teacher else {})
        (run_dir.path / "data.json").write_text(json.dumps(facts))
    runs = [str(tmp_path / name) for name in "abc"]
    choices.collect("x", runs[:2])
    found = [
        (row["method"], row["difference"], row["validation_top1"]) for row in read_rows(tmp_path / "x_choices.csv")
    ]
    assert found == [("original", "", "0.1"), ("bicubic", "", "0.1"), ("bicubic", "--learning_rate=0.2", "0.2")]
    with pytest.raises(UserError, match=f"have the T and the images of {runs[0]}. Received: {runs[2]}"):
        choices.collect("x", runs)


def test_published_figures_have_a_column_of_their_own(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    tops = {("original", "0"): "0.9", ("bicubic", "0"): "0.7", ("thumbnet", "0"): "0.8", ("thumbnet", "1"): "0.1"}
    rows = [
        {"split": split, "row": f"flowers_64_{method}", "seed": seed, "top1": top if split == "test" else "0"}
        for (method, seed), top in tops.items()
        for split in ("test", "validation")
    ]
    rows[0]["row"] = rows[1]["row"] = "flowers_32_original"  # whose T it has
    short = [row | {"row": f"ablation_32_{run.name_in_set(row['row'])}"} for row in rows]
    found = {"flowers_64": rows, "ablation_32": short}  # on a shorter schedule, and so not shown
    monkeypatch.setattr(published, "rows_of", lambda of_set: found.get(of_set, []))
    paper = {"network": "N", "pixels": "224 to 112", "original": "0.9", "bicubic": "0.8", "thumbnet": "0.89"}
    assert published.markdown([paper]).splitlines()[2:] == [
        "| N (paper) | not named | 224 to 112 | 5 | 90.00 | 80.00 | 89.00 | 0.90 | - |",
        "| resnet18, width 0.5 | tf_flowers | 128 to 64 | 1 | 90.0 | 70.0 | 80.0 | - | 0.50 |",
    ]


def test_aims_are_judged_over_the_seeds_that_all_rows_have():
    tops = {"original": [0.9, 0.9, 0.7], "bicubic": [0.7, 0.6], "thumbnet": [0.8, 0.9, 0.1]}
    rows = [
        {"split": "test", "row": f"flowers_64_{name}", "seed": str(seed), "top1": str(top)}
        for name, found in tops.items()
        for seed, top in enumerate(found)
    ]
    rows.append(rows[-1] | {"split": "validation", "seed": "0", "top1": "0"})
    for row in rows:
        row["row"] = row["row"].replace("flowers_64_original", "flowers_32_original")  # whose T that set has
    # (0.85 - 0.65) / (0.9 - 0.65) over seeds 0 and 1; 100 (0.6 - 0.8333) over all three
    assert aims.measured(aims.Aim("flowers_64", "thumbnet", "bicubic", 0.95, share=True), rows) == (
        pytest.approx(0.8),
        2,
    )
    value, seeds = aims.measured(aims.Aim("flowers_64", "thumbnet", "original", -0.5), rows)
    assert (value, seeds) == (pytest.approx(-23.3333, abs=1e-3), 3)
    assert aims.measured(aims.Aim("flowers_64", "slim", "original", 0.0), rows) == (None, 0)
    level = [row | {"top1": "0.9"} for row in rows]  # nothing is lost, so there is no share of it
    assert aims.measured(aims.Aim("flowers_64", "thumbnet", "bicubic", 0.95, share=True), level) == (None, 2)


def test_an_aim_is_not_met_by_rounding(monkeypatch):
    tops = {"original": (0.8, 0.7), "thumbnet": (0.79996, 0.6)}
    rows = [
        {"split": split, "row": f"discs_64_{name}", "seed": "0", "top1": str(top)}
        for name, found in tops.items()
        for split, top in zip(("test", "validation"), found, strict=True)
    ]
    monkeypatch.setattr(aims, "rows_of", lambda of_set: rows)
    needed = (0.0, -0.1)
    wanted = [aims.Aim("discs_64", "thumbnet", "original", least) for least in needed]
    monkeypatch.setattr(aims, "AIMS", [*wanted, aims.Aim("discs_64", "slim", "original", 0.0)])
    assert aims.markdown().splitlines()[2:] == [
        "| `discs_64` | points of `thumbnet` above T | 0.0 | -0.0 | -10.0 | 1 | no |",
        "| `discs_64` | points of `thumbnet` above T | -0.1 | -0.0 | -10.0 | 1 | yes |",
        "| `discs_64` | points of `slim` above T | 0.0 | - | - | not measured | - |",
    ]
