"""A report, read."""

import collections
import html.parser

EMPTY = {"meta", "img", "link", "input", "br", "hr"}  # elements without an end


class Parsed(html.parser.HTMLParser):
    """Elements, texts and tables of a page; fails on what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.found, self.texts = [], [], collections.defaultdict(list)
        self.rows: dict[str, list[list[str]]] = {}  # by a table's caption
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.rows[self.texts["caption"][-1]].append([])
        elif tag in ("td", "th"):
            self.rows[self.texts["caption"][-1]][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "caption":
            self.rows[self.texts["caption"][-1]] = []

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]].append(data)
        if {"td", "th"} & set(self.open[-2:]):
            self.rows[self.texts["caption"][-1]][-1][-1] += data


def table_of(page: Parsed, caption: str) -> dict[str, dict[str, str]]:
    """Returns a table's cells by title of row and column."""
    (titles, *rows) = next(rows for name, rows in page.rows.items() if caption in name)
    return {row[0]: dict(zip(titles, row, strict=True)) for row in rows}
