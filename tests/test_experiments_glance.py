"""The first table of the top README."""

import pathlib

from experiments import glance


def test_glance_shows_others_where_they_are_measured_for_all_seeds(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    tops = {
        "flowers_32_original": [0.9, 0.92, 0.97],
        "flowers_64_bicubic": [0.7, 0.8, 0.9],
        "flowers_64_bicubic_kd": [0.8],
        "flowers_64_thumbnet": [0.86, 0.87],
    }
    macs = {"flowers_32_original": "9500000", "flowers_64_thumbnet": "2000000"}
    rows = [
        {"row": name, "split": split, "top1": str(top if split == "test" else 0), "seed": str(seed)}
        | {"macs": macs.get(name, "0"), "macs_downscaler": "900000"}
        for name, found in tops.items()
        for seed, top in enumerate(found, 1)
        for split in ("test", "validation")
    ]
    monkeypatch.setattr(glance, "LINES", (("flowers", "flowers_64", "bicubic", "bicubic_kd", "thumbnet", ""),))
    monkeypatch.setattr(glance, "rows_of", lambda of_set: rows)
    assert glance.markdown().splitlines()[2:] == ["| flowers | 128 to 64 | 91.0 | 75.0 | - | 86.5 | - | 10, 3 | 2 |"]
