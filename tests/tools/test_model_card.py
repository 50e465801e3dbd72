"""Calls and files that `record` refuses, without writing anything."""

from __future__ import annotations

import json

import pytest
from conftest import BUNDLE, fails

from scripts.common.files import sha256_of
from scripts.labels import METADATA_FILE
from scripts.tools.model_card import COLUMNS, END, START, WORST, eval_metrics, record

ROW = {"source": "a", "group": "body", **dict.fromkeys(COLUMNS, 1)}
CASE = {**dict.fromkeys(WORST, 1), "case": "c", "source": "a", "worst_structure": None}
GOOD = {"by_source": [ROW, {**ROW, "source": "all", "group": "all"}], "worst_cases": [CASE]}
TAKES = "--metrics takes the metrics.json that evaluate.yaml writes."


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "README.md").write_text(f"{START}\n{END}\n")
    (folder / "results.json").write_text(json.dumps({"old": GOOD}))
    (folder / "metadata.json").write_text('{"version": "1.0.0",\n   "eval_metrics": {}, "labels": []}\n')
    return folder


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"x": 1}, "it has no list of rows 'by_source'"),
        ([GOOD], "it has no list of rows 'by_source'"),
        ({"by_source": [ROW]}, "it has no list of rows 'worst_cases'"),
        ({"by_source": [{**ROW, "dice": "good"}], "worst_cases": []}, "'dice' in a row of 'by_source' is 'good'"),
        ({"by_source": [{"source": "a"}], "worst_cases": []}, "a row of 'by_source' has no 'group'"),
        ({**GOOD, "worst_cases": [{**CASE, "case": 5}]}, "'case' in a row of 'worst_cases' is 5"),
    ],
)
def test_what_is_no_evaluation_is_not_entered(docs, tmp_path, content, fault):
    metrics = tmp_path / "m.json"
    metrics.write_text(json.dumps(content))
    before = {path.name: path.read_bytes() for path in docs.iterdir()}
    with fails(f"{metrics}: not an evaluation, {fault}. {TAKES}"):
        record(metrics, "night", docs, docs / "metadata.json")
    assert {path.name: path.read_bytes() for path in docs.iterdir()} == before


def test_a_good_one_is_entered_and_damaged_results_are_kept(docs, tmp_path, capsys):
    metrics, results = tmp_path / "m.json", docs / "results.json"
    metrics.write_text(json.dumps(GOOD))
    record(metrics, "night", docs, docs / "metadata.json")
    assert capsys.readouterr().out == f"night is entered in {results}, {docs / 'README.md'} and {docs / 'metadata.json'}\n"
    assert json.loads(results.read_text()).keys() == {"old", "night"}
    card = (docs / "README.md").read_text()
    assert "| night | a | body |" in card
    figures = '{"old_mean_dice": 1, "old_identified": 1, "night_mean_dice": 1, "night_identified": 1}'
    assert (docs / "metadata.json").read_text() == f'{{"version": "1.0.0",\n   "eval_metrics": {figures}, "labels": []}}\n'
    for content, message in (
        ('{"old": {"x": 1}}', f"{results}: an entry is no evaluation ('by_source'). Restore the file: git checkout {results}"),
        ("[]", f"{results}: no evaluations by name. Restore it: git checkout {results}"),
    ):
        results.write_text(content)
        with fails(message):
            record(metrics, "night", docs, docs / "metadata.json")
        assert results.read_text() == content
        assert (docs / "README.md").read_text() == card


def test_metadata_tells_the_published_figures():
    results = json.loads((BUNDLE / "docs" / "results.json").read_text())
    assert json.loads(METADATA_FILE.read_text())["eval_metrics"] == eval_metrics(results)


def test_published_figures_are_those_of_the_shipped_weights():
    results = json.loads((BUNDLE / "docs" / "results.json").read_text())
    assert {results[name]["weights_sha256"] for name in ("validation", "phantoms")} == {sha256_of(BUNDLE / "models" / "model.pt")}


def test_metadata_without_a_place_for_them(docs, tmp_path):
    metrics = tmp_path / "m.json"
    metrics.write_text(json.dumps(GOOD))
    (docs / "metadata.json").write_text('{"version": "1.0.0"}')
    before = {path.name: path.read_bytes() for path in docs.iterdir()}
    with fails(f"{docs / 'metadata.json'}: 'eval_metrics' is missing"):
        record(metrics, "night", docs, docs / "metadata.json")
    assert {path.name: path.read_bytes() for path in docs.iterdir()} == before
