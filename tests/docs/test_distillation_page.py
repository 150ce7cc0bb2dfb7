"""The guide from strong to weak: its commands run in their order, on what is like two machines."""

from __future__ import annotations

import shutil
import subprocess

from tests.docs.pages import ROOT, blocks, first
from tests.runs import metrics_of, scored_rows, write_rows
from tests.support import tiny_llama, tiny_tokenizer

PAGE = ROOT / "docs" / "guides" / "distillation.md"


def _commands():
    bash = [block for block in blocks(PAGE) if block.language == "bash"]
    return [words[1:] for block in bash for words in block.commands if words[0] == "prefopt"]


def test_the_weak_policy_learns_from_the_strong_one_s_table_alone(tmp_path, prefopt, tiny_model):
    write_rows(tmp_path / "preferences.jsonl", scored_rows(8))
    strong = tmp_path / "strong-base"
    tokenizer = tiny_tokenizer(chat_template=None, vocab_size=330)
    tiny_llama(len(tokenizer), seed=7).save_pretrained(strong)
    tokenizer.save_pretrained(strong)
    (tmp_path / "from_table.yaml").write_text(first(PAGE, "yaml"))
    train, export, score, learn = _commands()
    train[train.index("--policy") + 1] = str(strong)
    weak = ["--model.init_args.policy.name", str(tiny_model)]
    prefopt(*train)
    prefopt(*export)
    said = prefopt(*score, *weak)
    assert "Log-probs are in tables/base-" in said
    assert "Log-probs are in tables/model-" in said
    (move,) = [block.text for block in blocks(PAGE) if block.text.startswith("mv")]
    subprocess.run(move, shell=True, check=True, cwd=tmp_path)
    # Another machine: neither the strong model is there nor what lay beside it.
    for folder in ("strong-base", "strong", "tables", "runs/strong", ".cache"):
        shutil.rmtree(tmp_path / folder)
    prefopt(*learn, *weak)
    metrics = metrics_of(tmp_path / "runs" / "weak")
    assert 0 < metrics["val/alpha_1"] < 1
    # Other rows are not those of the table.
    write_rows(tmp_path / "preferences.jsonl", scored_rows(9))
    assert "strong-table" in prefopt.fails(*learn, *weak, "--run_dir", "runs/other")
