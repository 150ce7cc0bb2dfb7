"""Generative judges in this process, against plain transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pl_prefopt.errors import ConfigError
from pl_prefopt.judges import JudgedRow, LocalPairs, LocalScores
from pl_prefopt.policies import PolicySpec
from pl_prefopt.rows import Message
from tests.support import save_tiny_model

ANSWERS = ("The quick brown fox.", "No.", "It is a small red animal, say the books.")
PAIRS = """
gives: probabilities
system: You compare.
user: "{{ prompt }}|{{ first }}|{{ second }}"
pattern: '([AB])$'
labels: {A: 1, B: 0}
"""
SCORES = """
gives: scores
user: "{{ prompt }}|{{ response }}"
pattern: '([AB])$'
labels: {A: 3, B: 8}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that says A or B, whichever its random weights prefer."""
    folder = save_tiny_model(tmp_path_factory.mktemp("judge"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    a, b = tokenizer.convert_tokens_to_ids(["A", "B"])
    with torch.no_grad():
        own = model.lm_head.weight[a].clone()
        model.lm_head.weight.zero_()
        model.lm_head.weight[a], model.lm_head.weight[b] = own, -own  # one of them is above all others
    model.save_pretrained(folder)
    for name, text in (("pairs", PAIRS), ("scores", SCORES)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


def row(*texts, prompt="What is a fox?"):
    return JudgedRow(
        prompt=(Message("user", prompt),), responses=tuple((Message("assistant", text),) for text in texts)
    )


def plain(folder, messages, length=3):
    """The probability of A against B at the last token of a greedy answer, one question at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    for _ in range(length):
        with torch.no_grad():
            chances = model(ids).logits[0, -1].double().softmax(-1)
        ids = torch.cat([ids, chances.argmax()[None, None]], dim=1)
    a, b = chances[tokenizer.convert_tokens_to_ids(["A", "B"])]
    return float(a / (a + b))


def of_pair(folder, first, second):
    system = {"role": "system", "content": "You compare."}
    return plain(folder, [system, {"role": "user", "content": f"What is a fox?|{first}|{second}"}])


def test_comparisons_are_those_of_plain_transformers_in_both_orders(folder):
    spec = PolicySpec(name=str(folder))
    with LocalPairs(spec, str(folder / "pairs.yaml"), max_tokens=3, batch_size=4) as judge:
        verdict, other = judge.verdicts([row(*ANSWERS), row("Yes.", "No.", prompt="Late?")])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        there = of_pair(folder, ANSWERS[i], ANSWERS[j])
        back = 1 - of_pair(folder, ANSWERS[j], ANSWERS[i])
        assert 0.001 < there < 0.999
        assert [matrix[i][j] for matrix in verdict.by_order] == pytest.approx([there, back], abs=1e-5)
        assert verdict.probabilities[i][j] == pytest.approx((there + back) / 2, abs=1e-5)
    assert other.invalid == 0
    assert verdict.cost.output_tokens == 6 * 3
    assert (verdict.cost.requests, verdict.cost.money) == (0, 0)


def test_grades_are_means_under_the_probabilities_or_the_verdicts_alone(folder):
    spec, template = PolicySpec(name=str(folder)), str(folder / "scores.yaml")
    chances = [plain(folder, [{"role": "user", "content": f"What is a fox?|{answer}"}]) for answer in ANSWERS]
    with LocalScores(spec, template, max_tokens=3) as judge:
        (verdict,) = judge.verdicts([row(*ANSWERS)])
    assert verdict.scores == pytest.approx([3 * chance + 8 * (1 - chance) for chance in chances], abs=1e-5)
    with LocalScores(spec, template, max_tokens=3, token_probabilities="never") as judge:
        (verdict,) = judge.verdicts([row(*ANSWERS)])
    assert verdict.scores == tuple(3.0 if chance > 0.5 else 8.0 for chance in chances)
    assert judge.fingerprint() != LocalScores(spec, template, max_tokens=3).fingerprint()


def test_what_cannot_be_judged_is_invalid_and_what_cannot_work_is_refused(folder, tmp_path):
    spec = PolicySpec(name=str(folder))
    with LocalScores(spec, str(folder / "scores.yaml"), max_tokens=3) as judge:
        (verdict,) = judge.verdicts([row("No.", "fox " * 600, "<|im_start|>")])
    assert verdict.scores[1:] == (None, None)
    assert "takes at most 512 tokens, and the question has" in verdict.problems[0]
    assert "<|im_start|>" in verdict.problems[1]
    with pytest.raises(ConfigError, match="`max_tokens` to be below 512"):
        LocalScores(spec, str(folder / "scores.yaml"), max_tokens=512).prepare()
    other = tmp_path / "words.yaml"
    other.write_text(SCORES.replace("[AB]", "A|Zebra").replace("B: 8", "Zebra: 8"))
    with pytest.raises(ConfigError, match="no single token for some of the labels A, Zebra"):
        LocalScores(spec, str(other), max_tokens=3, token_probabilities="always").prepare()
    # One label alone would have all of the probability: the verdict counts.
    with LocalScores(spec, str(other), max_tokens=3) as judge:
        scores = next(judge.verdicts([row(*ANSWERS)])).scores
    assert set(scores) <= {3.0, None}
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}Q"
    strict = save_tiny_model(tmp_path / "strict", chat_template=template)
    with pytest.raises(ConfigError, match="move `system` of the judge's template into `user`"):
        LocalPairs(PolicySpec(name=str(strict)), max_tokens=3).prepare()
