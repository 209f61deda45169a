"""
Check the built pages as a reader without a network gets them.

    python docs/check_site.py                 # scripts, styles, links, the search index
    python docs/check_site.py --browser       # the same, then formulas, search and console in a headless Chromium, offline
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SITE = Path(__file__).resolve().parent / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SEARCHED = "reanalyze"  # a word that a reader of the pages may look for
# What a browser fetches to show a page. A link (<a href>) to another site is fine, and so is where a page says it lives.
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}


class Page(HTMLParser):
    """
    What a page refers to.

    :param text: HTML
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """
        :param tag: name of the element
        :param attrs: its attributes
        """
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if FETCHED.get(tag, "") in values:
            self.fetched.append(values[FETCHED[tag]])
        elif tag == "link" and FETCHED_LINKS & set(values.get("rel", "").split()):
            self.fetched.append(values["href"])
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])


def problems(site: Path) -> Iterator[str]:
    """
    :param site: folder of the built pages
    :return: a sentence for each thing that is wrong
    """
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"there are no pages in {site}: run `make docs`"
        return
    for path, page in pages.items():
        name = path.relative_to(site)
        if name.parts[0] == "_modules":  # viewcode's links back miss their places where a class is described twice
            continue
        for address in page.fetched:
            if urlsplit(address).scheme in ("http", "https") or address.startswith("//"):
                yield f"{name} fetches {address} from another server"
        for address in [*page.fetched, *page.links]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{name} refers to {address}, which does not exist"
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors and address in page.links:
                yield f"{name} refers to {address}, where there is no such place"
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:@import|url\()\s*[\"']?(https?://[^\"')]+)", sheet.read_text(encoding="utf-8")):
            yield f"{sheet.relative_to(site)} fetches {address} from another server"
    index = site / "searchindex.js"
    if not index.exists() or SEARCHED not in index.read_text(encoding="utf-8"):
        yield f"the search index does not know {SEARCHED!r}"
    if "search-results" not in (site / "search.html").read_text(encoding="utf-8"):
        yield "search.html is not the page of the search: does a page have its name?"


def browser_problems(site: Path, browser: str) -> Iterator[str]:
    """
    :param site: folder of the built pages
    :param browser: program
    :return: a sentence for each thing that a browser without a network does not show
    """
    formulas, said = dom(browser, site / "how_it_works.html")
    if formulas.count("<mjx-container") < 20:
        yield f"how_it_works.html shows {formulas.count('<mjx-container')} formulas in {browser}"
    if '<g data-mml-node="merror"' in formulas:
        yield "how_it_works.html has formulas that MathJax does not understand"
    results, also_said = dom(browser, site / "search.html", f"?q={SEARCHED}")
    if not re.search(r"class=\"(?:kind-\w+|search)[^\"]*\"", results) or 'href="how_it_works.html' not in results:
        yield f"searching {SEARCHED!r} finds nothing in {browser}"
    said += also_said
    for name in ("index", "notebook", "ezm", "api"):
        said += dom(browser, site / f"{name}.html")[1]
    yield from (f"the console of {browser} says {line}" for line in dict.fromkeys(said))


def dom(browser: str, path: Path, query: str = "") -> tuple[str, list[str]]:
    """
    :param browser: program
    :param path: a page
    :param query: of its address
    :return: the page after its scripts have run, without a network, and what the browser's console says
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--disable-gpu", f"--user-data-dir={profile}", "--virtual-time-budget=30000"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files", "--dump-dom"]
        command += ["--enable-logging=stderr"]
        command += ["--no-sandbox"] * (hasattr(os, "geteuid") and os.geteuid() == 0)  # Chromium refuses root otherwise
        command.append(path.as_uri() + query)
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return done.stdout, re.findall(r":CONSOLE\W\d+\W*\] (.+)", done.stderr)


def main() -> int:
    """
    :return: exit status: 0 if all is well, 1 if something is wrong
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=SITE, help="folder of the pages (default docs/_build/html)")
    parser.add_argument("--browser", action="store_true", help="look at pages in a headless Chromium, too")
    args = parser.parse_args()
    found = list(problems(args.site.resolve()))
    if args.browser and not found:
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        found += [f"there is no {', '.join(BROWSERS)}"] if browser is None else browser_problems(args.site.resolve(), browser)
    if found:
        print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
