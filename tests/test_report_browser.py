"""The report in a real browser, headless: it isn't blank, and fits a phone."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from thumbnet_tf import report_sections
from thumbnet_tf.report_data import gather

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PHONE = 390  # pixels
# a page within frames as wide as a phone, which says how wide their contents are
PROBE = """<!DOCTYPE html><title>probe</title>
{frames}
<pre id="widths"></pre>
<script>
addEventListener("load", () => {{
  document.getElementById("widths").textContent = [...document.querySelectorAll("iframe")]
    .map(frame => frame.contentDocument.documentElement.scrollWidth).join(" ");
}});
</script>"""


@pytest.fixture
def browse(tmp_path):
    """Returns a function that calls a browser and returns what it prints."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")

    def call(*arguments: str) -> str:
        command = [found, *FLAGS, f"--user-data-dir={tmp_path}/profile", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return call


def test_the_report_fits_a_phone_and_is_not_blank(tiny_run, tmp_path, browse):
    text = report_sections.page(gather(tiny_run), 4, 10)
    wide = "<!DOCTYPE html><div style='width: 700px; margin: 0'>x</div>"
    frames = "\n".join(
        f'<iframe style="width: {PHONE}px; height: 800px; border: 0" srcdoc="{html.escape(page)}"></iframe>'
        for page in (text, wide)
    )
    (tmp_path / "probe.html").write_text(PROBE.format(frames=frames))
    shown = browse("--dump-dom", f"file://{tmp_path}/probe.html")
    widths = [int(width) for width in re.search(r'<pre id="widths">([\d ]+)</pre>', shown)[1].split()]
    assert widths[0] == PHONE
    assert widths[1] > 700  # the probe sees what is too wide

    (tmp_path / "report.html").write_text(text)
    browse("--window-size=1200,1500", f"--screenshot={tmp_path}/page.png", f"file://{tmp_path}/report.html")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape == (1500, 1200, 3)
    for part in np.split(pixels, 5):  # no stretch of it is empty
        assert part.std() > 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 30
