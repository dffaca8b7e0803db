"""Sphinx configuration of the documentation site. `make docs` builds docs/ in English and docs/ja/ in Japanese."""

from __future__ import annotations

import re

from sphinx.application import Sphinx
from sphinx.search import SearchLanguage

project = "aiochatstream"
extensions = ["myst_parser"]
exclude_patterns = ["ja", "site"]
nitpicky = True
myst_heading_anchors = 4

html_theme = "furo"
html_title = project
html_copy_source = False
html_use_index = False
templates_path = ["templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}

LANGUAGE_LINK = re.compile(r"\*\[(?:日本語|English)\]\([^)]+\)\*")
HTML_ANCHOR = re.compile(r'^<a id="([^"]+)"></a>$', re.MULTILINE)
OUTER_PAGE = re.compile(r"\]\(((?:\.\./)+[\w/]+\.md)(?:#[^)]*)?\)")
SECTION = re.compile(r"^## (.*)\n((?:(?!## ).*\n)*)", re.MULTILINE)
PAGE_LINK = re.compile(r"\]\((\w+)\.md\)")


def adapt_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace what a page contains for readers of the Markdown file."""
    text = LANGUAGE_LINK.sub("", source[0])  # the sidebar has this link
    text = HTML_ANCHOR.sub(r"(\1)=", text)
    text = OUTER_PAGE.sub(r"](path:\1)", text)  # a page outside the site becomes a download
    if docname == "index":
        sections = [(title, PAGE_LINK.findall(body)) for title, body in SECTION.findall(text)]
        text += "\n".join(table_of_contents(title, pages) for title, pages in sections if pages)
    source[0] = text


def table_of_contents(caption: str, pages: list[str]) -> str:
    """Return the directive that lists `pages` in the sidebar."""
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", *pages, "```", ""])


class JapaneseSearch(SearchLanguage):
    """Search by pairs of characters, because Japanese has no spaces between words."""

    lang = "ja"
    language_name = "Japanese"
    terms = "(?=([々ぁ-ヿ一-鿿]{2}))|([0-9A-Za-z_]+)"
    js_splitter_code = f"var splitQuery = (query) => [...query.matchAll(/{terms}/g)].map((term) => term[1] ?? term[0]);"

    def split(self, input: str) -> list[str]:  # noqa: A002 - Sphinx's name
        return [pair or word for pair, word in re.findall(self.terms, input)]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", adapt_page)
    app.add_search_language(JapaneseSearch)
    return {"parallel_read_safe": True}
