"""The site of the docs: it builds without a warning, and each page is in its navigation."""

from __future__ import annotations

import html
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import layerport as lp

DOCS = Path(__file__).resolve().parents[1] / "docs"


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", out / "doctrees", "-b", "html"]
    return subprocess.run([*command, source, out / "html"], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("furo")
    out = tmp_path_factory.mktemp("site")
    done = build(DOCS, out)
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_each_page_is_in_the_navigation_and_each_example_to_be_had(site: Path) -> None:
    index = (site / "index.html").read_text()
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").exists()
        assert f'href="{page.stem}.html"' in index or page.stem == "index"
    assert list((site / "_downloads").rglob("one_file_pack.py"))


def test_every_error_is_listed(site: Path) -> None:
    listed = runpy.run_path(str(DOCS / "list_errors.py"))["listed"]()
    assert len(listed) > 400
    shown = re.sub(r"</?span[^>]*>", "", (site / "errors.html").read_text())
    assert "they have 8 to … bytes" in shown  # a repair
    assert shown.count("<tr") > 400
    rooms = {room for part in runpy.run_path(str(DOCS / "list_errors.py"))["PARTS"].values() for room in part}
    assert {one.room for one in listed} <= rooms


def test_every_public_name_is_written_out_and_linked_to(site: Path) -> None:
    shown = (site / "api.html").read_text()
    text = html.unescape(re.sub(r"<[^>]*>", "", shown))
    assert "Bundle.open(folder: str | Path) -> Bundle" in text  # a method, with its types
    assert "source: an nn.Module (with args, and dynamic_shapes" in text  # an argument
    links = re.findall(r'href="api\.html#([^"]+)"', (site / "reference.html").read_text())
    headings = [re.search(rf'<section id="{re.escape(one)}">.*?<h3>([\w.]+)<', shown, re.DOTALL) for one in links]
    assert [one and one[1] for one in headings] == [f"lp.{name}" for name in lp.__all__]


def test_a_page_that_nobody_links_to_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    pages = tmp_path / "docs"
    pages.mkdir()
    for name in ("conf.py", "list_api.py", "list_errors.py"):
        (pages / name).write_text((DOCS / name).read_text())
    (pages / "index.md").write_text("# Index\n\n## Part\n\n[one](one.md)\n")
    (pages / "one.md").write_text("# One\n")
    assert build(pages, tmp_path / "first").returncode == 0
    (pages / "two.md").write_text("# Two\n")
    done = build(pages, tmp_path / "second")
    assert done.returncode != 0 and "two.md" in done.stderr
    (pages / "two.md").unlink()
    (pages / "one.md").write_text("# One\n\n[gone](gone.md)\n")
    assert build(pages, tmp_path / "third").returncode != 0
