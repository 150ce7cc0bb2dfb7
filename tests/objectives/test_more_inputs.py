"""Rationales, prompt contrasts and preference degrees: losses, views and the rows that they need."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pl_prefopt.data import Renderer
from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.formats import as_fields, to_row
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.keywords import without_keywords
from pl_prefopt.objectives import (
    DPO,
    ORPO,
    Compose,
    DegreeClassification,
    DegreeDPO,
    LogisticRationale,
    LogRatio,
    RationaleDPO,
    RationaleORPO,
    RcDPO,
    Sum,
)
from pl_prefopt.rows import Message
from pl_prefopt.types import ResponseLogProbs, ViewLogProbs
from pl_prefopt.views import ContrastPrompt, KeywordRemoval, RationaleView
from tests.data.support import dataset, pair
from tests.objectives.batches import make_batch
from tests.support import tiny_tokenizer

POLICY, REFERENCE = [[-5.0, -9.0], [-7.0, -6.0]], [[-6.0, -8.0], [-6.0, -8.0]]
SCORES = [[1.0, 0.0], [1.0, 0.0]]


def with_view(name, sums, references=None, lengths=5):
    """Two pairs with a second view, whose log-probs have a gradient."""
    batch = make_batch(POLICY, REFERENCE, SCORES)
    sums = torch.tensor(sums, requires_grad=True)
    return dataclasses.replace(
        batch,
        views={
            name: ViewLogProbs(
                policy=ResponseLogProbs(sum=sums, length=torch.full(sums.shape, lengths)),
                references=torch.zeros(0, *sums.shape) if references is None else torch.tensor([references]),
                present=torch.ones(sums.shape, dtype=torch.bool),
            )
        },
    )


def slope(loss, batch, name):
    return torch.autograd.grad(loss.sum(), batch.views[name].policy.sum)[0][:, 0]


# -- rationales


@pytest.mark.parametrize("gamma", [1e-4, 0.1, 3.0])
def test_a_rationales_logistic_loss_has_its_closed_form(gamma):
    batch = with_view("rationale", [[-20.0], [-0.5]])
    term = RationaleDPO(beta=0.5, gamma=gamma)(batch).loss - DPO(beta=0.5)(batch).loss
    x = gamma * torch.tensor([-20.0, -0.5])
    torch.testing.assert_close(term, torch.log1p(torch.exp(-x)))
    assert (term >= math.log(2)).all()
    gradient = slope(term, batch, "rationale")
    torch.testing.assert_close(gradient, -gamma * torch.sigmoid(-x))
    assert ((gradient >= -gamma) & (gradient <= -gamma / 2)).all()
    if gamma == 1e-4:  # half the weight of γ NLL
        torch.testing.assert_close(term, math.log(2) - x / 2, rtol=0, atol=1e-6)


def test_without_gamma_they_are_dpo_and_orpo():
    batch = with_view("rationale", [[-20.0], [-0.5]])
    plain = DPO(beta=0.5)(batch).loss + math.log(2)
    torch.testing.assert_close(RationaleDPO(beta=0.5, gamma=0.0)(batch).loss, plain)
    torch.testing.assert_close(RationaleORPO(gamma=0.0)(batch).loss, ORPO()(batch).loss)
    assert torch.equal(RationaleORPO()(batch).reward, ORPO()(batch).reward)


def test_rorpo_fine_tunes_on_the_mean_log_prob_of_a_rationale():
    batch = with_view("rationale", [[-20.0], [-0.5]])
    term = RationaleORPO(gamma=2.0)(batch).loss - ORPO()(batch).loss
    torch.testing.assert_close(term, torch.tensor([2 * 20 / 5, 2 * 0.5 / 5]))
    torch.testing.assert_close(slope(term, batch, "rationale"), torch.full((2,), -2 / 5))
    per_token = Compose(score=LogRatio(0.5), terms=[LogisticRationale(0.1, "token")])(batch)
    expected = DPO(beta=0.5)(batch).loss - torch.nn.functional.logsigmoid(torch.tensor([-0.4, -0.01]))
    torch.testing.assert_close(per_token.loss, expected)


def test_a_tie_has_no_rationale_and_extreme_ones_are_finite():
    batch = dataclasses.replace(
        with_view("rationale", [[-1e4], [-1e4]]), scores=torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    )
    outcome = RationaleDPO(gamma=1.0)(batch)
    assert outcome.loss[1] == 0
    assert outcome.loss[0].isfinite()
    assert slope(outcome.loss, batch, "rationale").tolist() == [-1.0, 0.0]


def rationale_rows(count):
    return [to_row(pair(number) | {"rationale": "It {first} fits."}) for number in range(count)]


def test_the_view_asks_about_both_in_an_order_that_does_not_tell_the_winner():
    rows, view = rationale_rows(400), RationaleView()
    first = 0
    for number, row in enumerate(rows):
        shown = view(rows, number)
        (question,), ((answer,),) = shown.prompt, shown.responses
        good, bad = (response[0].content for response in row.responses)
        assert question.content.startswith("Which of the two responses to the prompt is preferable, and why?")
        assert f"Prompt:\nQuestion {number}?" in question.content
        chosen_first = question.content.index(good) < question.content.index(bad)
        first += chosen_first
        letter = "A" if chosen_first else "B"
        assert answer.content == f"Response {letter} is preferable. It {{first}} fits."
        assert (shown.scores, shown.columns) == (None, row.columns)
    assert 160 < first < 240  # within four standard deviations of one half
    again = dataclasses.replace(rows[0], responses=rows[0].responses[::-1], scores=(0.0, 1.0))
    assert view([again], 0).prompt == view(rows, 0).prompt
    assert view([again], 0).responses == view(rows, 0).responses
    tied = dataclasses.replace(rows[0], scores=(1.0, 1.0))
    assert view([tied], 0).responses[0][0].content == "It {first} fits."
    with pytest.raises(ConfigError, match=r"expected `answer` to contain \{winner\}"):
        RationaleView(answer="{rationale}")


def test_rows_that_no_rationale_can_be_about_are_refused():
    listed = to_row({"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [3, 2, 1], "rationale": "Long."})
    with pytest.raises(DataError, match=r"which of two responses is better, but a row .* has 3: use pairs"):
        RationaleDPO().check_training_rows([listed])
    with pytest.raises(
        DataError, match=r"expected two responses and a text in the column 'rationale', .*got 3"
    ):
        RationaleView()([listed], 0)
    with pytest.raises(DataError, match="got 2 responses and no text"):
        RationaleView()([to_row(pair())], 0)


# -- prompt contrasts

CONTRAST = {"prompt_chosen": "Name a prime.", "prompt_rejected": "Name a square.", "completion": "7"}


def test_rc_dpo_has_its_closed_form_and_knows_no_constant_of_a_response():
    batch = with_view("contrast", [[-8.0, -1.0], [-4.0, -1.0]], [[-7.0, -2.0], [-6.0, -2.0]])
    outcome = RcDPO(beta=0.5)(batch)
    margins = 0.5 * torch.tensor([(-5 + 6) - (-8 + 7), (-7 + 6) - (-4 + 6)]).float()
    torch.testing.assert_close(outcome.loss, torch.log1p(torch.exp(-margins)))
    torch.testing.assert_close(outcome.reward, 0.5 * (batch.policy.sum - batch.references[0]).detach())
    assert outcome.stats["contrast_accuracy"] == 0.5
    torch.testing.assert_close(slope(outcome.loss, batch, "contrast"), 0.5 * torch.sigmoid(-margins))

    def moved(response, prompt):
        """c(y) is added to a response under both prompts, c(x) under its own alone."""
        view = batch.views["contrast"]
        policy = dataclasses.replace(view.policy, sum=view.policy.sum + response)
        return RcDPO(beta=0.5)(
            dataclasses.replace(
                batch,
                policy=dataclasses.replace(batch.policy, sum=batch.policy.sum + response + prompt),
                views={"contrast": dataclasses.replace(view, policy=policy)},
            )
        ).loss

    torch.testing.assert_close(moved(3.0, 0.0), outcome.loss)
    assert (moved(0.0, 3.0) < outcome.loss).all()  # log Z(x) doesn't cancel
    both = Sum(parts={"pairs": DPO(beta=0.5), "prompts": RcDPO(beta=0.5)}, weights={"prompts": 0.25})(batch)
    torch.testing.assert_close(both.loss, DPO(beta=0.5)(batch).loss + 0.25 * outcome.loss)


@pytest.mark.parametrize("gap", [1e3, -1e3, 1e4])
def test_rc_dpo_is_finite_where_prompts_differ_by_far(gap):
    batch = with_view("contrast", [[-5.0 - gap, 0.0], [-7.0 - gap, 0.0]], REFERENCE)
    outcome = RcDPO(beta=1.0)(batch)
    assert outcome.loss.isfinite().all()
    assert slope(outcome.loss, batch, "contrast").isfinite().all()


def test_a_row_may_have_two_prompts():
    row = to_row(CONTRAST | {"system": "Be brief.", "context": "Judge truth."})
    system = Message("system", "Be brief.")
    assert row.prompt == (system, Message("user", "Name a prime.\n\nJudge truth."))
    other = ContrastPrompt()([row], 0)
    assert other.prompt == (system, Message("user", "Name a square.\n\nJudge truth."))
    assert other.responses == row.responses == ((Message("assistant", "7"),),)
    assert to_row(as_fields(row)) == row
    two = to_row(pair() | {"prompt_rejected": [{"role": "user", "content": "Else?"}]})
    assert ContrastPrompt()([two], 0).prompt == (Message("user", "Else?"),)
    with pytest.raises(BadRowError, match="the prompt and 'prompt_rejected' are identical"):
        to_row(CONTRAST | {"prompt_rejected": "Name a prime."})
    with pytest.raises(BadRowError, match="the prompt is empty"):
        to_row(CONTRAST | {"prompt_rejected": " "})
    with pytest.raises(DataError, match="expected a second prompt in the column 'prompt_rejected', got none"):
        ContrastPrompt()([to_row(pair())], 0)


def test_prompts_that_are_the_same_tokens_are_bad_rows(tmp_path):
    rows = [CONTRAST | {"prompt_rejected": prompt} for prompt in ("Name a square.", "Not a prime.", "Hi!")]
    renderer = Renderer(tiny_tokenizer(), template="none", max_prompt_length=2)
    views = {"contrast": ContrastPrompt()}
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: its two prompts differ only in what is trunc"):
        dataset(rows, tmp_path, views=views, renderer=renderer)
    data = dataset(rows, tmp_path, views=views, renderer=renderer, on_bad_row="skip")
    assert [row.origin for row in data.rows] == ["rows.jsonl, row 1", "rows.jsonl, row 3"]
    assert data.summary.skipped == 1
    assert "1 bad rows skipped" in data.report
    texts = [renderer.decode(ids) for ids in data.batch([0, 1]).trees["contrast"].prompt_ids]
    assert [text[-1] for text in texts] == [".", "!"]
    with pytest.raises(DataError, match="expected rows whose two prompts differ, got none"):
        dataset(rows[1:2], tmp_path, views=views, renderer=renderer, on_bad_row="skip")


# -- preference degrees


def degree_batch(outputs, lengths):
    """Two pairs, a view per degree above 0 with these lengths, and a head's outputs on all of them."""
    batch = make_batch(POLICY, REFERENCE, SCORES, length=torch.full((2, 2), 9))
    views = {
        f"degree_{k}": ViewLogProbs(
            policy=ResponseLogProbs(sum=torch.full((2, 2), -3.0), length=torch.tensor(length)),
            references=torch.zeros(1, 2, 2),
            present=torch.ones(2, 2, dtype=torch.bool),
            outputs={"degree": outputs[k]},
        )
        for k, length in enumerate(lengths, start=1)
    }
    return dataclasses.replace(batch, views=views, outputs={"degree": outputs[0]})


def test_degrees_are_classified_by_cross_entropy_beside_dpo():
    outputs = torch.randn(3, 2, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    # The second degree of one response, and the first of another, are no shorter than the degree below.
    batch = degree_batch(outputs, lengths=([[6, 7], [9, 4]], [[5, 7], [3, 3]]))
    counted = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]])
    objective = DegreeDPO(beta=0.5, degree_weight=0.7, removed=[0.3, 0.6])
    term = objective(batch).loss - DPO(beta=0.5)(batch).loss
    losses = torch.stack([-outputs.log_softmax(dim=-1)[k, ..., k] for k in range(3)])
    counts = counted.sum(dim=(0, 2))
    torch.testing.assert_close(term, 0.7 * (counted * losses).sum(dim=(0, 2)) / counts)
    (slope,) = torch.autograd.grad(term.sum(), outputs)
    right = torch.eye(3).view(3, 1, 1, 3)
    expected = (outputs.softmax(dim=-1) - right) * (0.7 * counted / counts.view(1, 2, 1)).unsqueeze(-1)
    torch.testing.assert_close(slope, expected)

    uniform = degree_batch(torch.zeros(3, 2, 2, 3), lengths=([[6, 7], [9, 4]], [[5, 7], [3, 3]]))
    term = objective(uniform).loss - DPO(beta=0.5)(uniform).loss
    torch.testing.assert_close(term, torch.full((2,), 0.7 * math.log(3)))
    without = DegreeDPO(beta=0.5, degree_weight=0.0, removed=[0.3, 0.6])
    assert torch.equal(without(batch).loss, DPO(beta=0.5)(batch).loss)


def test_keywords_are_removed_in_growing_amounts():
    text = "A quick brown fox jumps over the lazy dog. The dog sleeps, and the fox is gone!"
    left = [without_keywords(text, share) for share in (0.2, 0.5, 1.0)]
    assert left[0] == "A over the lazy dog. The dog sleeps, and the fox is gone!"
    assert [len(one) for one in left] == sorted({len(one) for one in left}, reverse=True)
    assert not {"fox", "dog", "sleeps", "gone"} & set(left[-1].replace("!", "").split())
    many = ", ".join(f"w{number}" for number in range(25))
    assert without_keywords(many, 0.28).count("w") == 18, "7 of 25, though 0.28 * 25 > 7 in floating point"
    assert without_keywords("Foxes", 1.0) == "Foxes", "nothing would be left"
    assert without_keywords("a dogma of the dog", 0.5) == "a of the dog", "words are whole"
    row = to_row(pair(1) | {"chosen": text})
    changed = KeywordRemoval(0.2)([row], 0)
    assert changed.responses[0][-1].content == left[0]
    assert (changed.prompt, changed.scores) == (row.prompt, row.scores)
    assert KeywordRemoval(0.2).fingerprint != KeywordRemoval(0.3).fingerprint


@pytest.mark.parametrize("removed", [[], [0.5, 0.5], [0.6, 0.3], [-0.1], [0.5, 1.5]])
def test_shares_of_keywords_that_make_no_degrees_are_refused(removed):
    with pytest.raises(ConfigError, match=r"ascending shares above 0|`share` above 0 and at most 1"):
        DegreeClassification(0.1, removed)
