"""The page of all masks, parsed as a browser parses it."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

from scripts.batch.overview import write_overview

LATIN = os.fsdecode(b"R\xfccken")


class Page(HTMLParser):
    """Parser that collects the text of every element by tag and class, and all links."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.classes: list[str | None] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.links += [os.fsdecode(unquote_to_bytes(value)) for name, value in attrs if name in ("href", "src")]
        self.classes += [dict(attrs).get("class")] if tag == "article" else []

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def test_doubtful_masks_come_first(tmp_path):
    for name in ("a_seg.png", f"b & c/{LATIN}<1>_seg.png", "spines.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    spines = [
        {"mask": "a_seg.nii.gz", "warnings": "", "edited_since": False, "lordosis_deg": 52.4, "cobb_deg": None},
        {"mask": "z_seg.nii.gz", "warnings": "first: <b> & c | second", "edited_since": False, "cobb_deg": 12.6},
        {"mask": f"b & c/{LATIN}<1>_seg.nii.gz", "warnings": "", "edited_since": True},
        {"mask": "y_seg.nii.gz", "warnings": "unsure", "uncertain": True},
        {"mask": "old_seg.nii.gz"},  # tables of an older version have fewer columns
    ]
    (tmp_path / "failures.csv").write_text("file,reason,fix\n/data/bad.nii.gz,cannot be read,Export it again.\n")
    assert write_overview(tmp_path, spines) == tmp_path / "overview.html"
    page = Page(tmp_path / "overview.html")
    assert page.of("h1") == ["5 masks, 3 with warnings, 1 scan failed"] == page.of("title")
    assert page.of("h2") == ["y", "b & c/R\\udcfccken<1>", "z", "a", "old"]
    assert page.classes == ["doubtful", "doubtful", "doubtful", None, None]
    assert page.of("li") == [
        "/data/bad.nii.gz: cannot be read. Export it again.",
        "unsure",
        "the mask was edited after its report: these numbers describe it as it was before",
        "first: <b> & c",
        "second",
    ]
    assert page.of("p")[-2:] == ["Cobb 13°", "lordosis L1-S1 52°"]
    assert page.links == [
        "failures.csv",
        "spines.csv",
        *[f"b & c/{LATIN}<1>_seg.png"] * 2,
        *["a_seg.png"] * 2,
    ]  # only pictures that exist are linked


def test_a_table_of_failures_that_cannot_be_read(tmp_path):
    (tmp_path / "failures.csv").write_text("file\n" + "x" * 200_000)  # more than the csv module takes for a field
    write_overview(tmp_path, [{"mask": "a_seg.nii.gz", "warnings": ""}])
    assert Page(tmp_path / "overview.html").of("h1") == ["1 mask, 0 with warnings"]


def test_a_folder_without_doubts(tmp_path):
    write_overview(tmp_path, [{"mask": "a_seg.nii.gz", "warnings": "", "cobb_deg": "much"}])
    page = Page(tmp_path / "overview.html")
    assert page.of("h1") == ["1 mask, 0 with warnings"]
    assert page.classes == [None]
    assert not page.of("li")
    assert len(page.of("p")) == 1  # no angle that can be read
    assert not page.links
