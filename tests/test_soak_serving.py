"""The soak test, with few requests; `python tests/soak_serving.py` sends thousands."""

import pytest
import soak_serving


@pytest.mark.slow
def test_good_and_bad_requests_from_another_process(exported):
    report = soak_serving.soak(exported, requests=400, workers=4)
    assert not report.wrong, report.wrong[:5]
    assert len(report.seconds) == 400
    kinds = set(report.counts)
    assert {"good files", "good batches", "truncated files", "random bytes", "empty strings"} <= kinds
    assert {f"huge {kind} headers" for kind in ("PNG", "JPEG", "BMP", "GIF", "WebP")} <= kinds
