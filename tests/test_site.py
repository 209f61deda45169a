"""The check of the built pages finds what a reader without a network would miss."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def check_site(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """
    :return: the script, as a module
    """
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("check_site", ROOT / "docs" / "check_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "check_site", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """
    :return: folder of two pages without a fault
    """
    (tmp_path / "index.html").write_text(
        '<script src="own.js?v=1"></script><h1 id="top-of-it">A</h1><a href="search.html#found">s</a><a href="https://x.org">x</a>'
    )
    (tmp_path / "search.html").write_text('<p id="found"><div id="search-results"></div><a href="index.html#top-of-it">i</a>')
    (tmp_path / "own.js").touch()
    (tmp_path / "own.css").write_text("p { background: url(own.js) }")
    (tmp_path / "searchindex.js").write_text('Search.setIndex({"terms": {"reanalyze": 1}})')
    return tmp_path


def test_pages_without_a_fault(check_site: ModuleType, site: Path) -> None:
    assert list(check_site.problems(site)) == []


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("a.html", '<script src="https://cdn.org/m.js"></script>', "a.html fetches https://cdn.org/m.js from another server"),
        ("a.html", '<link rel="stylesheet" href="//cdn.org/m.css">', "a.html fetches //cdn.org/m.css from another server"),
        ("a.html", '<img src="none.png">', "a.html refers to none.png, which does not exist"),
        ("a.html", '<a href="none.html">', "a.html refers to none.html, which does not exist"),
        ("a.html", '<a href="index.html#nowhere">', "a.html refers to index.html#nowhere, where there is no such place"),
        ("own.css", "@import 'https://fonts.org/f.css';", "own.css fetches https://fonts.org/f.css from another server"),
        ("searchindex.js", "Search.setIndex({})", "the search index does not know 'reanalyze'"),
        ("search.html", '<p id="found">', "search.html is not the page of the search: does a page have its name?"),
    ],
)
def test_faults_are_found(check_site: ModuleType, site: Path, file: str, text: str, problem: str) -> None:
    (site / file).write_text(text)
    assert list(check_site.problems(site)) == [problem]


def test_no_page_takes_the_place_of_one_of_sphinx() -> None:
    pages = {path.stem for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".rst", ".ipynb")}
    assert not pages & {"search", "genindex", "py-modindex"}


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for a browser is a shell script")
def test_what_the_console_says_is_read(check_site: ModuleType, site: Path, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(
        "#!/bin/sh\necho '<p>shown</p>'\n"
        "echo '[1:2:0101/0:ERROR:dbus/bus.cc:405] No bus' >&2\n"  # of the browser itself, and no concern of the page
        "echo '[1:2:0101/0:INFO:CONSOLE:7] \"Uncaught ReferenceError: x\", source: a.html (7)' >&2\n"  # as newer ones write it
        "echo '[0101/0:INFO:CONSOLE(8)] \"boom\", source: a.html (8)' >&2\n"
    )
    browser.chmod(0o755)
    shown, said = check_site.dom(str(browser), site / "index.html")
    assert shown == "<p>shown</p>\n"
    assert said == ['"Uncaught ReferenceError: x", source: a.html (7)', '"boom", source: a.html (8)']
