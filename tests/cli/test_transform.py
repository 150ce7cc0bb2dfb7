"""`prefopt transform` and `data.transforms`: from a file to a file, and in a run."""

from __future__ import annotations

import json
import sys

import yaml

from tests.runs import pair_rows, scored_rows, write_rows

OWN = """
from dataclasses import dataclass

from pl_prefopt.data.transforms import RowTransform


@dataclass(frozen=True)
class Everything(RowTransform):
    def apply(self, rows, held_out):
        return ((number, None) for number in range(len(rows)))
"""


def test_rows_are_transformed_from_a_file_to_a_file(prefopt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_rows.py").write_text(OWN)
    write_rows(tmp_path / "rows.jsonl", [*scored_rows(3), scored_rows(1)[0]])
    write_rows(tmp_path / "test.jsonl", scored_rows(2)[1:])
    names = ("RemoveDuplicates", "RemoveLeakage", "BestAgainstEach")
    transforms = [{"class_path": f"pl_prefopt.data.transforms.{name}"} for name in names]
    transforms[2]["init_args"] = {"into": "step"}
    transforms.append({"class_path": "own_rows.Everything"})
    (tmp_path / "transforms.yaml").write_text(yaml.safe_dump({"transforms": transforms}))
    given = ("transform", tmp_path / "rows.jsonl", "-c", tmp_path / "transforms.yaml")
    out = tmp_path / "out.jsonl"
    printed = prefopt(*given, "--held_out", tmp_path / "test.jsonl", "--out", out)
    assert "rows.jsonl: 4 rows, 0 bad rows skipped" in printed
    assert "RemoveDuplicates(by='row'): 4 rows -> 3, 1 removed, 0 changed" in printed
    assert "RemoveLeakage(by='prompt', threshold=None, words=3): 3 rows -> 2, 1 removed" in printed
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert f"Wrote {len(written)} rows to" in printed
    assert [row["step"] for row in written] == [0, 0, 1, 2]
    assert all(row["scores"][0] > row["scores"][1] for row in written)
    said = prefopt.fails(*given, "--out", tmp_path / "out.csv")
    assert "expected --out to end in .jsonl" in said
    assert "needs transforms" in prefopt.fails("transform", tmp_path / "rows.jsonl", "--out", out)


def test_a_run_prints_what_its_transforms_did(prefopt, tiny_model, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [row | {"strength": n - 1.0} for n, row in enumerate(pair_rows(4))])
    flip = {"class_path": "pl_prefopt.data.transforms.FlipWeak", "init_args": {"below": 0}}
    data = {"train": str(tmp_path / "rows.jsonl"), "transforms": [flip]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    axes = [part for name in ("base", "methods/dpo", "hardware/cpu") for part in ("-c", name)]
    run = ["--model.init_args.policy.name", tiny_model, "--trainer.fast_dev_run", "1", "--data.held_out", "0"]
    printed = prefopt("fit", *axes, "-c", tmp_path / "data.yaml", *run)
    assert "FlipWeak(column='strength', below=0" in printed
    assert "4 rows -> 4, 0 removed, 1 changed" in printed
