"""Generative pairwise reward models: rows of comparisons, and verdicts against plain transformers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.judges import ComparisonRows, GenerativePairs, JudgedRow, JudgeTemplate
from pl_prefopt.policies import PolicySpec
from pl_prefopt.rows import Message, PreferenceRow
from tests.method_files import CONFIGS
from tests.runs import NO_TEXTS, pair_rows, write_rows

ANSWERS = ("A fox.", "No.", "Maybe, yes.")


def said(text):
    return (Message("assistant", text),)


def row(count=2, **settings):
    prompt = (Message("user", "What is it?"),)
    return PreferenceRow(prompt=prompt, responses=tuple(map(said, ANSWERS[:count])), **settings)


def question(first, second, context=""):
    values = {"prompt": "What is it?", "first": first, "second": second, "context": context, "columns": {}}
    return JudgeTemplate.load("pairwise_token").messages(values)


def test_pairs_become_questions_in_both_orders(tmp_path):
    made = [one for _, one in ComparisonRows().apply([row(scores=(0.0, 1.0), source="s")], [])]
    assert [one.responses for one in made] == [(said("A"),), (said("B"),)]
    assert [[turn.as_dict() for turn in one.prompt] for one in made] == [
        question(ANSWERS[1], ANSWERS[0]),
        question(ANSWERS[0], ANSWERS[1]),
    ]
    assert {(one.scores, one.source) for one in made} == {((1.0,), "s")}

    template = tmp_path / "reasons.yaml"
    text = "gives: probabilities\nuser: '{{ prompt }}{{ first }}{{ second }}'\n"
    template.write_text(text + "pattern: '([AB])$'\nlabels: {A: 1, B: 0}\n")
    reasons = {"why": ("The first is right.", "The second is right.")}
    rows = [row(scores=(1.0, 0.0), columns=reasons)]
    made = [one for _, one in ComparisonRows(str(template), reasons="why").apply(rows, [])]
    assert [one.responses[0][0].content for one in made] == [
        "The first is right.\n\nA",
        "The second is right.\n\nB",
    ]
    with pytest.raises(DataError, match="expected the verdict 'A' to be read from 'The first is right"):
        list(ComparisonRows(reasons="why").apply(rows, []))
    with pytest.raises(DataError, match="expected a text in the column 'other', got None in a row"):
        list(ComparisonRows(str(template), reasons="other").apply(rows, []))
    with pytest.raises(ConfigError, match="expected a template that compares"):
        ComparisonRows("pointwise_token")


def test_verdicts_are_next_token_probabilities_of_plain_transformers(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = [tokenizer.convert_tokens_to_ids(name) for name in ("A", "B")]

    def first_wins(first, second):
        text = tokenizer.apply_chat_template(
            question(first, second, "Be brief."), tokenize=False, add_generation_prompt=True
        )
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return model(inputs).logits[0, -1, ids].softmax(-1)[0].item()

    judge = GenerativePairs(PolicySpec(name=str(tiny_model)))
    with judge:
        (verdict,) = judge.verdicts([JudgedRow.of(row(3), "Be brief.")])
    for i in range(3):
        for j in range(3):
            there, back = first_wins(ANSWERS[i], ANSWERS[j]), first_wins(ANSWERS[j], ANSWERS[i])
            if i != j:
                assert verdict.probabilities[i][j] == pytest.approx((there + 1 - back) / 2, abs=1e-5)
            if i < j:
                assert verdict.by_order[0][i][j] == pytest.approx(there, abs=1e-5)
    assert verdict.cost.input_tokens > 0
    with pytest.raises(ConfigError, match="expected a template that compares"):
        GenerativePairs(PolicySpec(name=str(tiny_model)), comparison="pointwise_token")


def test_a_model_is_trained_on_comparisons_and_labels_rows(prefopt, tmp_path, tiny_model):
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows(4))
    files = [str(CONFIGS / f"{name}.yaml") for name in ("base", "methods/sft", "hardware/cpu")]
    comparisons = "[{class_path: pl_prefopt.judges.ComparisonRows}]"
    prefopt(
        "fit", *(part for file in files for part in ("-c", file)), *NO_TEXTS, "--policy", tiny_model,
        "--data.train", rows, "--data.held_out", 1, "--data.transforms", comparisons,
        "--trainer.max_steps", 1, "--run_dir", "run",
    )  # fmt: skip
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "judge", "--merge", "true")
    prefopt("label", rows, "--judge", "GenerativePairs", "--judge.model.name", "judge", "--out", "out.jsonl")
    labelled = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [sum(line["scores"]) for line in labelled] == pytest.approx([1.0] * 4)
