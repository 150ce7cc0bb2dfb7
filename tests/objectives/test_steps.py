"""Tree TPO: weighted steps against loops, what it reduces to, its lines, and the rows that it takes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch

from pl_prefopt.data import Renderer
from pl_prefopt.data.formats import as_fields, convert
from pl_prefopt.errors import DataError
from pl_prefopt.metrics import build_suite
from pl_prefopt.modules import PreferenceModule
from pl_prefopt.modules.compatibility import check_rows
from pl_prefopt.modules.line_steps import LineSteps, check_lines
from pl_prefopt.objectives import GivenSteps, LambdaLoss, SimilarToBest, TreeTPO
from pl_prefopt.rows import Message, PreferenceRow
from pl_prefopt.types import ResponseLogProbs, ScoredBatch, TokenNumbers, TokenTree
from tests.data.support import dataset
from tests.support import CHATML, tiny_tokenizer

STEPS = torch.tensor(
    [
        [[0, 0, 1, 2, 2], [0, 1, 1, -1, -1], [-1] * 5, [0, 1, 2, 3, -1]],
        [[0, 1, 1, 2, -1], [0, 0, 0, 0, 0], [0, 1, -1, -1, -1], [0, 1, 2, 2, 2]],
    ]
)
SCORES = torch.tensor([[0.2, 1.0, torch.nan, 0.6], [1.0, 0.1, 1.0, 0.4]])
"""The second prompt has two best responses, of three and of two steps."""


@pytest.fixture
def batch():
    numbers = torch.Generator().manual_seed(4)
    counted = STEPS >= 0

    def made(*shape):
        values = torch.randn(*shape, generator=numbers, dtype=torch.float64)
        return torch.where(counted, values, 0.0)

    policy = made(2, 4, 5).requires_grad_()
    references = made(1, 2, 4, 5)
    states = torch.randn(2, 4, 5, 3, generator=numbers, dtype=torch.float64, requires_grad=True)
    tokens = TokenNumbers(counted=counted, policy=policy, references=references, steps=STEPS, states=states)
    return ScoredBatch(
        policy=ResponseLogProbs(sum=policy.sum(-1), length=counted.sum(-1)),
        references=references.sum(-1),
        scores=SCORES,
        present=counted.any(-1),
        graded=torch.tensor([True, True]),
        tokens=tokens,
        columns={
            "step_rewards": (
                ("[1, 2, 0.5]", "[3, 1]", None, "[0, 1, 1, 4]"),
                ("[1, 1, 1]", "[2]", "[0.5, 2]", "[1, 0, 3]"),
            )
        },
    )


def similar(batch, b, r, s):
    """1 + the mean cosine with the best responses that have the step."""
    means = {
        (i, k): batch.tokens.states[b, i, STEPS[b, i] == k].mean(0)
        for i in range(4)
        for k in range(5)
        if (STEPS[b, i] == k).any()
    }
    best = [i for i in range(4) if SCORES[b, i] == SCORES[b].nan_to_num(-1).max()]
    cosines = [
        torch.cosine_similarity(means[r, s], means[i, s], dim=0).item() for i in best if (i, s) in means
    ]
    return 1 + (sum(cosines) / len(cosines) if cosines else 0.0)


def given(batch, b, r, s):
    return json.loads(batch.columns["step_rewards"][b][r])[s]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("steps", "weight"), [(SimilarToBest(), similar), (GivenSteps(), given)])
def test_weighted_steps_against_loops(batch, steps, weight, normalize):
    """Value and gradient; weights have none, so nothing reaches the hidden states."""
    ratio = batch.tokens.policy - batch.tokens.references[0]
    losses, rewards = [], torch.zeros(2, 4, dtype=torch.float64)
    for b in range(2):
        reward = {}
        for r in range(4):
            count = int(STEPS[b, r].max()) + 1
            weights = [weight(batch, b, r, s) for s in range(count)]
            total = sum(weights) if normalize else 1.0
            if count:
                shares = [weights[s] / total * ratio[b, r, STEPS[b, r] == s].sum() for s in range(count)]
                reward[r] = 0.5 * sum(shares)
                rewards[b, r] = reward[r].item()
        order = sorted(reward, key=lambda r: -reward[r].item())
        rank = {r: place for place, r in enumerate(order, start=1)}
        loss = 0.0
        for i, j in itertools.permutations(reward, 2):
            if SCORES[b, i] > SCORES[b, j]:
                gain = abs(2 ** SCORES[b, i].item() - 2 ** SCORES[b, j].item())
                gain *= abs(1 / math.log1p(rank[i]) - 1 / math.log1p(rank[j]))
                loss = loss - gain * torch.nn.functional.logsigmoid(reward[i] - reward[j])
        losses.append(loss)
    expected = torch.stack(losses)
    outcome = TreeTPO(normalize=normalize, steps=steps)(batch)
    torch.testing.assert_close(outcome.loss, expected, rtol=1e-6, atol=1e-9)  # scores are float32
    torch.testing.assert_close(outcome.reward, rewards)
    torch.testing.assert_close(outcome.token_reward.sum(-1), rewards)
    slope, states = torch.autograd.grad(
        outcome.loss.sum(), [batch.tokens.policy, batch.tokens.states], allow_unused=True, retain_graph=True
    )
    assert states is None
    torch.testing.assert_close(
        slope, torch.autograd.grad(expected.sum(), batch.tokens.policy)[0], rtol=1e-6, atol=1e-9
    )


def test_equal_weights_are_lambda_loss(batch):
    ones = [["[1, 1, 1, 1, 1]"] * 4] * 2
    equal = dataclasses.replace(batch, columns={"step_rewards": tuple(map(tuple, ones))})
    found = TreeTPO(beta=0.3, normalize=False, steps=GivenSteps())(equal)
    expected = LambdaLoss(beta=0.3)(batch)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.reward, expected.reward)
    # Similarity can't tell them apart either where all hidden states agree: every weight is 2 or, beyond the
    # best response's steps, 1; of one step per response it is twice the reward.
    alike = dataclasses.replace(batch.tokens, states=torch.ones(2, 4, 5, 3), steps=STEPS.clamp(max=0))
    alike = TreeTPO(beta=0.15, normalize=False)(dataclasses.replace(batch, tokens=alike))
    torch.testing.assert_close(alike.loss, expected.loss, rtol=1e-6, atol=1e-9)


def test_a_line_that_the_text_did_not_have_is_no_number(batch):
    short = (("[1]", "[1]", None, "[1]"), ("[1, 1, 1]", "[2]", "[0.5, 2]", "[1, 0, 3]"))
    loss = TreeTPO(normalize=False, steps=GivenSteps())(
        dataclasses.replace(batch, columns={"step_rewards": short})
    ).loss
    assert loss.isnan().tolist() == [True, False]


def test_lines_are_found_from_tokens():
    """As many as the text has with visible characters; the end token belongs to the last."""
    tokenizer = tiny_tokenizer()
    for text, lines in (
        ("One fox.\nTwo dogs.\nThree.", 3),
        ("\n\n One.\n \n\n\tTwo: \n", 2),
        ("One", 1),
        ("a\r\nb", 2),
    ):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        mask = torch.ones(1, 1, len(ids), dtype=torch.bool)
        tree = TokenTree(
            prompt_ids=torch.tensor([[1]]),
            prompt_mask=torch.ones(1, 1, dtype=torch.bool),
            response_ids=torch.tensor([[ids]]),
            response_mask=mask,
            counted_mask=mask,
        )
        steps = LineSteps(tokenizer)(tree)[0, 0].tolist()
        assert steps[-1] == lines - 1
        pieces = [
            tokenizer.decode([i for i, step in zip(ids[:-1], steps, strict=False) if step == line])
            for line in range(lines)
        ]
        assert [piece.strip() for piece in pieces] == [
            line.strip() for line in text.split("\n") if line.strip()
        ]


THINKING = CHATML.replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}",
)
"""Writes two lines with visible text into each assistant turn, as Qwen3's template does."""


@pytest.mark.parametrize("limit", [None, 24])
@pytest.mark.parametrize(
    ("template", "joined", "found"), [(THINKING, [], 5), (CHATML, ["\ntwo"], 2), (CHATML, [], None)]
)
def test_lines_of_tokens_must_be_those_of_the_text(tmp_path, template, joined, found, limit):
    """Whole responses, and truncated ones, of which fewer lines are left than the text has."""
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.add_tokens(joined)
    renderer = Renderer(tokenizer, max_response_length=limit)
    rows = [
        {
            "prompt": "Hi",
            "chosen": "one\ntwo\n\nthree of them, and so on until here: 0123456789 0123456789",
            "rejected": "No",
        }
    ]
    made = {"val": dataset(rows, tmp_path, renderer=renderer, split="val")}
    if found is None:
        check_lines(LineSteps(tokenizer), made)
        return
    with pytest.raises(
        DataError, match=rf"response 1 of .*row 1 \(val\) has 3, but its tokens have {found}:"
    ):
        check_lines(LineSteps(tokenizer), made)


def row(weights, *texts, more=""):
    responses = tuple((Message("assistant", text, more),) for text in texts)
    return PreferenceRow(
        prompt=(Message("user", "Hi"),),
        responses=responses,
        scores=tuple(range(len(texts))),
        origin="rows.jsonl, row 3",
        columns={"step_rewards": weights},
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            row(("[1]", "[1, 2]"), "a", "b\n\nc\nd"),
            "got 2 for the 3 lines of response 2 of rows.jsonl, row 3",
        ),
        (row(("[1]", "[-1]"), "a", "b"), "finite number of at least 0 per line, but rows.jsonl, row 3"),
        (row(("[1]", None), "a", "b"), "expected a list of lists in the column 'step_rewards'"),
        (row(0.5, "a", "b"), "expected a list of lists"),
        (row(("[1]", "[true]"), "a", "b"), "expected a list of lists"),
        (row(("[1]", "[1]"), "a", "b", more='{"reasoning_content": "x"}'), "has reasoning or tool calls"),
    ],
)
def test_rows_without_a_weight_per_line_are_refused(rows, said):
    with pytest.raises(DataError, match=said):
        TreeTPO(normalize=True, steps=GivenSteps()).check_training_rows([rows])
    with pytest.raises(DataError, match=r"rows.jsonl, row 3 \(val\)"):
        check_rows(TreeTPO(normalize=True, steps=GivenSteps()), {"val": SimpleNamespace(rows=[rows])})


def test_lists_of_numbers_per_response_are_kept_as_text():
    fields = {"prompt": "Hi", "responses": ["a\nb", "c"], "scores": [1, 0], "step_rewards": [[1, 0.5], [0]]}
    kept = convert(fields)
    assert kept.row.columns["step_rewards"] == ("[1, 0.5]", "[0]")
    assert convert(as_fields(kept.row)).row == kept.row
    TreeTPO(normalize=True, steps=GivenSteps()).check_training_rows([kept.row])
    (_, _, reason), *_ = convert({**fields, "step_rewards": [[1, "x"], [0]]}).further
    assert reason == "nested values"


def test_a_metric_with_a_value_that_is_nan_is_named(recwarn):
    """Nothing counted is no fault; a NaN among counted values is one."""
    suite, logged = build_suite("val", 0), []
    stub = SimpleNamespace(
        metric_info=[],
        _suites=lambda stage: [suite],
        _forget_metrics=lambda stage: suite.reset(),
        log=lambda name, *_, **__: logged.append(name),
    )
    PreferenceModule._log_metrics(stub, "val")
    assert not [one for one in recwarn if "is not logged" in str(one.message)]
    for metric in (suite["loss"], suite["accuracy"]):
        metric.add(torch.tensor([torch.nan, 1.0]), torch.tensor([True, True]))
    PreferenceModule._log_metrics(stub, "val")
    told = {str(one.message).split()[0] for one in recwarn if "is not logged" in str(one.message)}
    assert told == {"val/loss", "val/accuracy"}
    assert not told & set(logged)
