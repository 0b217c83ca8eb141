"""The page and the files of a comparison, and the two commands that make them."""

from __future__ import annotations

import csv
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from qfleet.command_line.cli import main
from qfleet.common.errors import ConfigError
from qfleet.studies import figures
from qfleet.studies.comparison import group_by_configuration
from qfleet.studies.readings import read_run
from qfleet.studies.report import Report
from qfleet.studies.words import Words


@pytest.fixture
def report(make_run) -> Report:
    paths = [make_run(f"a{s}", seed=s) for s in (1, 2)]
    paths.append(make_run("b1", learner={"batch_size": 64}, status="failed", exit_code=5))
    (paths[0] / "videos").mkdir()
    (paths[0] / "videos" / "play.webp").write_bytes(b"film")
    runs = [read_run(path) for path in paths]
    return Report(group_by_configuration(runs), "CartPole-v1 & <more>", Words("en"))


def test_page_is_whole_and_asks_for_nothing_from_elsewhere(report) -> None:
    page = report.html()

    assert page.startswith("<!doctype html>")
    assert "CartPole-v1 &amp; &lt;more&gt;" in page
    assert page.count("<svg") == 5  # curves, three traces, lengths
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(picture)
    assert "data:image/webp;base64,ZmlsbQ==" in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in links), links
    assert not re.search(r"url\((?!#)", page)
    assert "learner.batch_size 64, seed 1: exit 5" in page


def test_same_runs_give_the_same_page(report) -> None:
    assert report.html() == report.html()


def test_threshold_is_the_environments(report) -> None:
    assert report.threshold == 475.0


def test_csv_and_json_hold_the_figures(report, tmp_path) -> None:
    report.write(tmp_path / "r.csv")
    report.write(tmp_path / "r.json")

    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    content = json.loads((tmp_path / "r.json").read_text())

    assert [row["arm"] for row in rows] == ["learner.batch_size 32", "learner.batch_size 64"]
    assert float(rows[0]["score"]) == content["arms"][0]["score"] == 480.0
    assert content["arms"][1]["score"] is None
    assert [run["failure"] for run in content["runs"]] == [None, None, "exit 5: failed"]


def test_other_suffix_is_refused(report, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.html, \.csv, \.json"):
        report.write(tmp_path / "r.pdf")


def test_large_film_is_named_and_not_embedded(report, make_run, monkeypatch) -> None:
    monkeypatch.setattr("qfleet.studies.report.MAX_VIDEO_BYTES", 3)

    page = report.html()

    assert "base64" not in page
    assert "play.webp" in page


def test_japanese_page_has_japanese_words_in_its_pictures(report) -> None:
    page = Report(report.arms, "題", Words("ja")).html()

    assert '<html lang="ja">' in page
    assert "更新回数" in page
    assert "学習曲線" in page


def test_japanese_page_has_no_english_words_where_it_says_how_it_was_measured(report) -> None:
    in_japanese = Report(report.arms, "題", Words("ja"), base_changes=("全条件で",))

    measured = in_japanese.html().partition("測定条件")[2].partition("</ul>")[0]
    assert "シード 1" in measured
    assert "ランタイム: " in measured
    assert "このページを作成した計算機" in measured
    assert "全条件で" in measured
    assert "seed" not in measured


def test_command_prints_a_table_or_writes_a_file(make_run, tmp_path, capsys) -> None:
    runs = [str(make_run("a1", seed=1)), str(make_run("a2", seed=2))]

    assert main(["report", *runs]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2
    assert table[1].split()[:2] == ["cartpole", "2"]
    assert "480.0 (480.0–480.0)" in table[1]
    assert main(["report", *runs, "-o", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(tmp_path)]) == 2


def test_in_means_table(monkeypatch) -> None:
    monkeypatch.setattr(figures, "MAX_POINTS", 3)
    for lengths, numbers, means in [
        ([], [], []),
        ([9.0, 11.0, 4.0], [1, 2, 3], [9, 11, 4]),
        ([9.0, 11.0, 4.0, 6.0], [1, 2, 4], [9, 11, 5]),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0], [2, 4, 7], [1.5, 3.5, 7]),
    ]:
        found = figures.in_means(np.array(lengths))
        assert (found[0].tolist(), found[1].tolist()) == (numbers, means)
