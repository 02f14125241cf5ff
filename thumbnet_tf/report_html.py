"""Building blocks of the report: one HTML file that needs neither a network nor scripts. All text is escaped."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbf9; --card: #fff; --ink: #1d232b; --soft: #57606c; --line: #dcdfe3;
  --good: #17663a; --bad: #a32218; --accent: #1f5fa8; --navy: #000080; --tint: #f1f3f5; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1c2026; --ink: #e6e9ed; --soft: #a4adb8;
  --line: #363c45; --good: #6fce95; --bad: #ff9a8f; --accent: #8bb9f0; --navy: #98a4ff; --tint: #252a31; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; overflow-wrap: anywhere; }
main, header, footer { max-width: 62rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--accent); }
.soft, figcaption, footer, nav { color: var(--soft); font-size: .9em; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0 0; padding: 0; }
.note { border-left: 3px solid var(--accent); background: var(--tint); padding: .5rem .8rem; margin: .8rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
  margin: 1.4rem 0 .8rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; white-space: nowrap; font-size: 1.5rem; line-height: 1.3; }
.scroll { overflow-x: auto; margin: .8rem 0; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; padding: .6rem .65rem 0; color: var(--soft); }
th, td { text-align: left; padding: .4rem .65rem; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 7rem; }
tbody tr:last-child > * { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
figure { margin: .8rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .8rem; }
.plot { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; margin: 0; }
.plot.wide { max-width: 32rem; margin: .8rem 0; }
.plot svg { display: block; width: 100%; height: auto; fill: currentColor; }
@media screen and (prefers-color-scheme: dark) { .plot svg { filter: brightness(1.35); } }
svg text { font-family: inherit !important; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .8rem; }
.cards.narrow { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; }
.card h3 { margin: 0 0 .5rem; }
.strip { display: flex; gap: .6rem; align-items: flex-start; }
.strip > div { flex: 1 1 0; min-width: 0; font-size: .8rem; line-height: 1.4; }
.strip img { display: block; }
.large { width: 100%; aspect-ratio: 1; border-radius: 4px; }
.pixels { image-rendering: pixelated; }
.own { margin: .3rem 0; image-rendering: pixelated; max-width: 100%; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.bar { display: block; width: 7rem; height: 1.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.2rem; margin: .8rem 0; font-size: .95rem; }
dt { font-weight: 600; }
dd { margin: 0; min-width: 0; }
@media (max-width: 36rem) { dl { display: block; } dd { margin-bottom: .5rem; } }
pre { overflow-x: auto; background: var(--tint); border-radius: 8px; padding: .8rem; font-size: .85rem;
  overflow-wrap: normal; }
footer { padding: 2rem 1rem; }
@page { margin: 14mm; }
@media print {
  :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; --good: #17663a;
    --bad: #a32218; --accent: #1f5fa8; --navy: #000080; --tint: #f4f4f4; }
  body { font-size: 10pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main, header, footer { max-width: none; padding: 0; }
  nav { display: none; }
  .tiles { grid-template-columns: repeat(5, 1fr); }
  .tile b { font-size: 15pt; }
  h2, h3, caption, section > p:first-of-type { break-after: avoid; }
  dl { display: grid; }
  .card, .plot, .tile, .scroll, tr, p, pre { break-inside: avoid; }
  thead { display: table-header-group; }
  .scroll, pre { overflow: visible; }
  .scroll { border-radius: 0; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  table { font-size: 8pt; }
  th, td { padding: .25rem .4rem; }
  .cards { grid-template-columns: repeat(2, 1fr); }
  .cards.narrow { grid-template-columns: repeat(4, 1fr); }
  .card { padding: .4rem; }
  .strip > div { font-size: 7pt; }
  .plots { grid-template-columns: repeat(3, 1fr); }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{lead}
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main>
{sections}
</main>
<footer>{footer}</footer>
</body>
</html>
"""


class Markup(str):
    """Text that is HTML already; everything else is escaped."""


def escape(value: object) -> Markup:
    """Returns a value's text as HTML; `Markup` stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def join(parts: Sequence[object], between: str = "\n") -> Markup:
    """Returns the parts as HTML, one after the other."""
    return Markup(between.join(escape(part) for part in parts))


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """Returns an element with its content and its attributes (`class_` for `class`), all escaped."""
    return Markup(f"<{tag}{_attributes(attributes)}>{join(content, '')}</{tag}>")


def _attributes(values: Mapping[str, object]) -> str:
    names = {name: name.rstrip("_").replace("_", "-") for name in values}
    return "".join(f' {names[name]}="{html.escape(str(value))}"' for name, value in values.items())


def paragraph(*content: object, **attributes: object) -> Markup:
    """Returns a paragraph."""
    return element("p", *content, **attributes)


def note(*content: object) -> Markup:
    """Returns a paragraph that says what is missing, and why."""
    return element("p", *content, class_="note")


def facts(pairs: Sequence[tuple[object, object]]) -> Markup:
    """Returns a list of names and what belongs to them."""
    return element("dl", *(part for name, value in pairs for part in (element("dt", name), element("dd", value))))


def table(caption: str, titles: Sequence[object], rows: Sequence[Sequence[object]], words: int = 1) -> Markup:
    """Returns a table that scrolls in its own box.

    Args:
        caption: what it shows.
        titles: of the columns.
        rows: their cells; the first of each is the row's title.
        words: how many columns from the left hold words; the others hold numbers.
    """

    def cell(index: int, value: object, head: bool = False) -> Markup:
        attributes = {} if index < words else {"class_": "number"}
        if head or index == 0:
            return element("th", value, scope="col" if head else "row", **attributes)
        return element("td", value, **attributes)

    head = element("tr", *(cell(index, title, head=True) for index, title in enumerate(titles)))
    body = [element("tr", *(cell(index, value) for index, value in enumerate(row))) for row in rows]
    inner = element("table", element("caption", caption), element("thead", head), element("tbody", *body))
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def plot(drawing: Markup, caption: object = "", wide: bool = False) -> Markup:
    """Returns a figure of an inline SVG with its caption."""
    below = element("figcaption", caption) if caption else ""
    return element("figure", drawing, below, class_="plot wide" if wide else "plot")


def image(pixels: np.ndarray, alt: str, exact: bool, class_: str, own_size: bool = False) -> Markup:
    """Returns an image inside the file.

    Args:
        pixels: uint8 (H, W, 3).
        alt: what it shows, for those who don't see it.
        exact: PNG; else JPEG, which takes fewer bytes.
        class_: of the element.
        own_size: whether it is as large on the page as it is in pixels.
    """
    content, kind = io.BytesIO(), "png" if exact else "jpeg"
    Image.fromarray(pixels).save(content, kind, **({"optimize": True} if exact else {"quality": 88}))
    source = f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
    size = {"width": pixels.shape[1], "height": pixels.shape[0]} if own_size else {}
    return Markup(f"<img{_attributes({'class_': class_, 'src': source, 'alt': alt, **size})}>")


def page(title: str, lead: object, sections: Sequence[tuple[str, object]], footer: object) -> str:
    """Returns the whole file.

    Args:
        title: of the page.
        lead: what stands above the contents.
        sections: title and HTML of each.
        footer: what stands below.
    """
    names = [f"part-{index}" for index in range(1, len(sections) + 1)]
    contents = [
        element("li", element("a", head, href=f"#{name}")) for name, (head, _) in zip(names, sections, strict=True)
    ]
    parts = [
        element("section", element("h2", head, id=name), body, aria_labelledby=name)
        for name, (head, body) in zip(names, sections, strict=True)
    ]
    return _PAGE.format(
        title=escape(title),
        style=_STYLE,
        lead=escape(lead),
        contents=join(contents),
        sections=join(parts),
        footer=escape(footer),
    )
