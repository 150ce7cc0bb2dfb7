"""The page holds what there is, says what is missing, and keeps text text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pl_prefopt.evaluations import Evaluation, add_evaluation
from pl_prefopt.report import build_report, read_runs
from pl_prefopt.report.predictions import read_predictions
from pl_prefopt.report.token_maps import token_maps
from tests.report.folders import SPITE, pair_rows, ranked_rows, unpaired_rows, write_run


class Elements(HTMLParser):
    """The tags of a page, and what is inside scripts and outside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.scripts, self.texts = [], [], []
        self.policy = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        assert not any(name.startswith("on") for name in named)
        self.policy = (
            named["content"] if named.get("http-equiv") == "Content-Security-Policy" else self.policy
        )

    def handle_data(self, data):
        where = self.scripts if self.tags and self.tags[-1] == "script" and self.cdata_elem else self.texts
        where.append(data)


def page_of(*folders):
    return build_report(read_runs(folders)).html


@pytest.fixture(scope="module")
def spiteful(tmp_path_factory):
    """A page of two runs whose names, sources, prompts and responses hold markup and scripts."""
    folder = tmp_path_factory.mktemp("runs")
    named = write_run(folder / "<img src=x onerror=alert(1)>", ranked_rows(skill=-1), seed_everything=SPITE)
    words = dict.fromkeys(("command", "data", "part", "checkpoint", "method", "date"), SPITE)
    add_evaluation(named / "metrics.json", Evaluation(metrics={"test/accuracy": 0.5}, step=3, **words))
    return page_of(named, write_run(folder / "other", ranked_rows(seed=1)))


def test_what_is_written_stays_text(spiteful):
    elements = Elements(spiteful)
    assert not {"img", "b", "i"} & set(elements.tags)
    assert elements.tags.count("script") == 3
    text = "".join(elements.texts)
    assert SPITE in text
    assert "<img src=x onerror=alert(1)>" in text


def test_figures_are_json_that_ends_no_script(spiteful):
    (block,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', spiteful)
    assert "<" not in block
    figures = json.loads(block)
    assert set(figures) == {
        "curve_loss", "curve_accuracy", "curve_margin", "margin_gap", "reward_length", "calibration",
        "accuracy_gap", "accuracy_source", "margins", "best_of_n",
    }  # fmt: skip
    (trace, _) = figures["margin_gap"]["data"]
    # Plotly reads tags in its texts; there are none but our line breaks, and in the layout of a hover.
    shown = [*trace["customdata"], trace["name"]]
    assert all("<" not in text.replace("<br>", "") for text in shown)
    assert any("&lt;/script&gt;" in text for text in shown)


def test_only_the_scripts_of_the_page_may_run_and_nothing_is_loaded(spiteful):
    elements = Elements(spiteful)
    scripts = re.findall(r"<script>(.*?)</script>", spiteful, flags=re.DOTALL)
    allowed = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts}
    (sources,) = re.findall(r"script-src ([^;]*)", elements.policy)
    assert set(sources.split()) == {f"'sha256-{value}'" for value in allowed}
    assert elements.policy.startswith("default-src 'none'")
    assert "http" not in elements.policy
    page = re.sub(r"<script.*?</script>", "", spiteful, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)", page)


def test_a_run_without_a_test_says_what_to_type(tmp_path):
    page = page_of(write_run(tmp_path / "run"))
    assert "run has no predictions" in page
    assert f"prefopt test -c {tmp_path / 'run' / 'config.yaml'} --data.test val.jsonl" in page
    assert "No pairs with graded scores" not in page.split('id="numbers"')[0]
    assert "70.0 %" in page
    assert "One run alone" in page


def test_a_run_that_was_never_measured_makes_a_page(tmp_path):
    page = page_of(write_run(tmp_path / "run", trained=False))
    assert "Not measured yet." in page
    assert "No run logged this in training." in page


def test_many_runs_one_of_them_untested(tmp_path):
    rows = ranked_rows(prompts=6)
    tested = [write_run(tmp_path / f"run{number}", rows, seed_everything=number) for number in range(11)]
    page = page_of(*tested, write_run(tmp_path / "untested"))
    assert "untested has no predictions of a test" in page
    assert "different prompts" not in page
    colours = re.findall(r'style="border-top-color:(#\w+)', page)
    assert len(colours) == 12
    assert colours[10] == colours[0]


def test_runs_on_different_rows_do_not_compare(tmp_path):
    page = page_of(write_run(tmp_path / "a", pair_rows()), write_run(tmp_path / "b", pair_rows(prompts=5)))
    assert "different prompts or responses (prompts: a 20, b 5)" in page


def test_unpaired_rows_show_rewards_by_verdict(tmp_path):
    page = page_of(write_run(tmp_path / "kto", unpaired_rows()))
    (block,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)
    (box,) = json.loads(block)["reward_label"]["data"]
    assert box["x"] == ["undesirable (10)", "desirable (10)"]
    assert "undesirable</p>" in page


def test_the_same_runs_make_the_same_page(tmp_path):
    folder = write_run(tmp_path / "run", ranked_rows())
    assert page_of(folder) == page_of(folder)


def test_what_is_no_run_is_left_out_of_a_report_of_many(tmp_path, prefopt):
    write_run(tmp_path / "runs" / "dpo", pair_rows())
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "notes.txt").touch()
    printed = prefopt("report", *sorted(Path("runs").iterdir()), "--out", "none/../pages/page.html")
    assert "Left out: Expected a run's folder, but runs/empty has no config.yaml." in printed
    assert "Left out: Expected a run's folder, such as runs/NAME, but runs/notes.txt is a file." in printed
    assert "Wrote pages/page.html" in printed
    assert Path("pages/page.html").is_file()
    assert not Path("none").exists()
    said = prefopt.fails("report", "runs/empty", "runs/notes.txt")
    assert "Expected a run's folder, but runs/empty has no config.yaml." in said


def test_tokens_are_coloured_by_their_reward_and_stay_text(tmp_path):
    rows = ranked_rows(prompts=8)
    for row in rows:
        for response in row["responses"]:
            response["tokens"] = [["Good ", 0.5], [SPITE, -0.25], ["\u2028end", None], [" zero", 0.0]]
    page = page_of(write_run(tmp_path / "run", rows))
    elements = Elements(page)
    assert not {"img", "b", "i"} & set(elements.tags)
    assert SPITE in "".join(elements.texts)
    assert elements.tags.count("script") == 3
    style = 'style="background:color-mix(in srgb, var(--{}) {}%, transparent)"'
    assert f'title="+0.5 nats" {style.format("good", 70)}>Good </span>' in page
    assert f'title="-0.25 nats" {style.format("bad", 35)}' in page
    assert 'title="not counted"' in page
    assert page.count('<details class="tokens"') == 5, "the first prompts"
    assert 'id="tokens"' not in page_of(write_run(tmp_path / "without", ranked_rows()))
    maps = token_maps(read_predictions(tmp_path / "run" / "test" / "predictions.jsonl")[0].responses)
    assert {one.largest for one in maps} == {0.5}
