"""`prefopt data`: what rows are taken for, before any training."""

from __future__ import annotations

import json

from tests.support import CHATML


def test_rows_are_shown_with_their_layouts_columns_and_tokens(prefopt, tiny_model, tmp_path):
    pair = {"prompt": "Name a gas.", "chosen": "Neon.", "rejected": "Iron."}
    rows = [
        {**pair, "annotator": "a", "weight": 2},
        {"prompt": "Name a gas.", "responses": ["Neon.", "Argon.", "Iron."], "scores": [9, 9, 1]},
        {**pair, "weight": 1},
        {**pair, "prompt": ""},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = prefopt("data", tmp_path / "rows.jsonl", "--tokenizer", tiny_model, "--rows", "1")
    assert "rows.jsonl: 3 rows, 7 responses" in printed
    assert "rows.jsonl, row 4: the prompt is empty" in printed
    assert "layouts: pairs 2, ranked 1" in printed
    assert "columns not used: annotator" in printed
    assert "rows with ties: 1; repeated rows: 1" in printed
    assert "response 2, " in printed
    assert "rows.jsonl, row 1" in printed
    assert "rows.jsonl, row 2" not in printed
    # What counts are the response's tokens, its end among them, and none of the prompt's.
    prompt, response = (
        next(lines[number + 1] for number, line in enumerate(lines) if line.strip().startswith(start))
        for lines in [printed.splitlines()]
        for start in ("prompt, ", "response 1, ")
    )
    assert "[" not in prompt
    assert response.strip().startswith("[")
    assert response.rstrip().endswith("*]")


def test_columns_are_mapped_and_mistakes_named(prefopt, tiny_model, tmp_path):
    row = {"question": "Name a gas.", "chosen": "Neon.", "rejected": "Iron."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    given = ("data", tmp_path / "rows.jsonl", "--tokenizer", tiny_model)
    assert "layouts: pairs 1" in prefopt(*given, "--columns", "prompt=question")
    assert "expected `--columns OURS=THEIRS`" in prefopt.fails(*given, "--columns", "prompt")
    (tmp_path / "brief.jinja").write_text("{% if brief %}Say little.{% endif %}" + CHATML)
    assert "expected `--aspects COLUMN=WEIGHT`" in prefopt.fails(*given, "--aspects", "clear")
    row = {"prompt": "Name a gas.", "responses": ["Neon.", "Iron."], "clear": [3, 1], "true": [1, 0]}
    unrated = row | {"clear": [3, None]}
    (tmp_path / "lists.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(unrated)}\n")
    scored = prefopt("data", tmp_path / "lists.jsonl", *given[2:], "--aspects", "clear=1", "true=3")
    assert "score 1.5" in scored
    assert "layouts: ranked 1\n" in scored
    assert "columns not used" not in scored
    given = (*given, "--columns", "prompt=question", "--template", tmp_path / "brief.jinja")
    told = prefopt(*given, "--template_arguments", '{"brief": true}')
    assert "little" in told.replace("·", "")
    assert "little" not in prefopt(*given).replace("·", "")
    assert "expected a JSON object, got 'brief'" in prefopt.fails(*given, "--template_arguments", "brief")
    given = ("data", tmp_path / "rows.jsonl", "--tokenizer", tiny_model)
    said = prefopt.fails(*given[:-1], tmp_path / "nowhere")
    assert "expected a tokeniser at `--tokenizer" in said
