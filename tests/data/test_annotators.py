"""What annotators leave in rows: their names, scores, votes, and the criteria that they were given."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pl_prefopt.data import Names, PreferenceDataModule
from pl_prefopt.data.columns import describe_unused
from pl_prefopt.data.dialogues import BadRowError
from pl_prefopt.data.formats import convert, to_prompt, to_row
from pl_prefopt.errors import ConfigError, DataError
from tests.data.support import Recorder, dataset, pair, trainer, user, write_jsonl
from tests.support import tiny_tokenizer

# Published in fnlp/hh-rlhf-strength-cleaned with its mean and its deviation.
CHOSEN = [3.71875, 0.58984375, 3.390625, 0.006805419921875, -0.6953125]
CHOSEN += [1.0390625, 1.4140625, 0.8359375, 3.078125, 2]
REJECTED = [3.546875, 0.9921875, 2.125, -0.330078125, 1.171875]
REJECTED += [1.2578125, 1.078125, 1.0546875, 3.546875, 2.265625]


@pytest.mark.parametrize(
    "names",
    [("chosen_score_list", "rejected_score_list"), ("score_chosen", "score_rejected")],
)
def test_lists_of_scores_become_a_strength_even_where_they_contradict_the_label(names):
    row = to_row(pair() | {names[0]: CHOSEN, names[1]: str(REJECTED)})
    assert (row.scores, row.graded) == ((1.0, 0.0), False)
    assert row.columns["strength"] == pytest.approx(-0.1331085, abs=1e-7)
    assert row.columns["strength_std"] == pytest.approx(0.7559609, abs=1e-7)


def test_lists_of_scores_per_response_become_their_means():
    row = to_row({"prompt": "Hi", "responses": ["a", "b"], "scores": [[7, 9], "[4]"]})
    assert (row.scores, row.graded) == ((8.0, 4.0), True)
    assert row.columns == {"strength": (8.0, 4.0), "strength_std": (1.0, 0.0)}


def test_ultrafeedbacks_aspects_are_columns_with_gaps():
    def rated(**ratings):
        return {"response": str(ratings), "overall_score": 5, "annotations": ratings}

    first = rated(honesty={"Rating": "4"}, truthfulness={"Rating": "N/A"}, helpfulness={"Rating": 2})
    second = rated(honesty={"Rating": "5"}, truthfulness={}, other=None)
    row = to_row({"instruction": "Hi", "completions": [first, second, {"response": "c", "overall_score": 1}]})
    assert row.scores == (5.0, 5.0, 1.0)
    assert row.columns == {"honesty": (4.0, 5.0, None), "helpfulness": (2.0, None, None)}
    with pytest.raises(BadRowError, match=r"annotations\.honesty\.Rating' to be a number, got 'high'"):
        to_row({"instruction": "Hi", "completions": [rated(honesty={"Rating": "high"})]})


def test_the_setting_aspects_scores_responses_by_the_weighted_mean_of_their_ratings(tmp_path: Path):
    def rated(honesty, helpfulness):
        ratings = {"honesty": {"Rating": honesty}, "helpfulness": {"Rating": helpfulness}}
        return {"response": f"{honesty} {helpfulness}", "overall_score": 5, "annotations": ratings}

    rows = [{"instruction": "Hi", "completions": [rated("4", "1"), rated("2", "5")]}]
    rows += [{"instruction": "Ho", "completions": [rated("4", "1"), rated("N/A", "5")]}, pair()]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"tokenizer": None, "on_bad_row": "skip", "cache_dir": str(tmp_path / "cache")}
    data = PreferenceDataModule(path, aspects={"honesty": 3, "helpfulness": -1}, **settings)
    store = data._store(data.sources["train"])
    assert [(row.scores, row.graded) for row in store.rows] == [(((12 - 1) / 4, (6 - 5) / 4), True)]
    assert store.problems == [
        "rows.jsonl, row 2: response 2 has no rating in the column 'honesty', which `data.aspects` names",
        "rows.jsonl, row 3: expected the column 'honesty', which `data.aspects` names, to have a rating per "
        "response, got none",
    ]
    assert describe_unused(store.columns, used=()) == []
    plain = PreferenceDataModule(path, **settings)
    assert plain._store(plain.sources["train"]).rows[0].scores == (5, 5)  # nothing of the other is cached
    for weights, reason in (
        ({"honesty": 0}, "weight other than 0"),
        ({"honesty": math.nan}, "expected a number"),
    ):
        with pytest.raises(ConfigError, match=reason):
            PreferenceDataModule(path, aspects=weights)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"score_chosen": [1, 2], "score_rejected": [1]}, "one score per annotator"),
        ({"score_chosen": [1], "score_rejected": 2}, "to be a list"),
        ({"score_chosen": [], "score_rejected": []}, "one score per annotator"),
        ({"score_chosen": [1, None], "score_rejected": [1, 2]}, r"'score_chosen\[1\]' to be a number"),
        (
            {"score_chosen": [1], "score_rejected": [2], "strength": 3},
            "both the column 'strength' and the ratings",
        ),
        ({"context": ["a"]}, "'context' to be text"),
    ],
)
def test_what_annotators_cannot_have_meant(more, reason):
    with pytest.raises(BadRowError, match=reason):
        to_row(pair() | more)
    with pytest.raises(BadRowError, match=r"expected at least one score in 'scores\[1\]'"):
        to_row({"prompt": "Hi", "responses": ["a", "b"], "scores": [[1], []]})


def test_votes_order_responses_that_nothing_else_orders():
    row = to_row({"prompt": "Hi", "responses": ["a", "b"], "votes": [2, 5]})
    assert (row.scores, row.graded, row.columns) == ((2.0, 5.0), True, {"votes": (2, 5)})
    row = to_row({"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 0], "votes": [2, 5]})
    assert (row.scores, row.columns) == ((1.0, 0.0), {"votes": (2, 5)})
    assert to_row({"prompt": "Hi", "responses": ["a", "b"], "votes": 12}).scores is None


def test_context_ends_the_last_user_turn_of_any_layout_and_stays_a_column(tmp_path: Path):
    fields = pair() | {"context": "Judge brevity."}
    assert to_row(fields).prompt == (user("Question 0?\n\nJudge brevity."),)
    assert to_row(fields).columns == {"context": "Judge brevity."}
    whole = [{"role": "user", "content": "Question 0?"}, {"role": "assistant", "content": "Good"}]
    row = to_row(fields | {"chosen": whole})  # which repeats the prompt without the context
    assert row.responses[0][0].content == "Good"
    assert to_row(pair() | {"context": " "}).prompt == (user("Question 0?"),)
    assert to_prompt({"prompt": "Hi", "context": "Be brief."}).prompt == (user("Hi\n\nBe brief."),)
    public = {"context": "Hi", "response1": "a", "response2": "b", "overall_preference": 1}
    assert convert(public).row.prompt == (user("Hi"),)
    assert dataset([fields], tmp_path).unused_columns == []


class Numbered(Recorder):
    """Wants annotators as numbers, and remembers them."""

    def __init__(self) -> None:
        super().__init__(tokenizer=tiny_tokenizer())
        self.needs = SimpleNamespace(views={}, columns=("annotator",), names=("annotator",))
        self.numbers: list[int] = []

    def training_step(self, batch, batch_idx):
        self.numbers += batch.columns["annotator"].tolist()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.numbers += batch.columns["annotator"].tolist()


def annotated(path: Path, *names: object) -> str:
    return write_jsonl(path, [pair(number) | {"annotator": name} for number, name in enumerate(names)])


def test_annotators_have_the_numbers_of_the_training_rows_also_after_a_checkpoint(tmp_path: Path):
    files = {
        "train": annotated(tmp_path / "a.jsonl", "zoe", "bob", "zoe", "ann"),
        "val": annotated(tmp_path / "b.jsonl", "zoe", "eve"),
    }
    settings = {"batch_size": 2, "cache_dir": str(tmp_path / "cache")}
    data, module = PreferenceDataModule(**files, **settings), Numbered()
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    run.fit(module, data)
    assert sorted(module.numbers[:4]) == [0, 1, 2, 2]
    assert sorted(module.numbers[4:]) == [-1, 2]
    assert data.names == {"annotator": Names(("ann", "bob", "zoe"))}
    run.save_checkpoint(tmp_path / "a.ckpt")

    later, fresh = PreferenceDataModule(val=files["val"], **settings), Numbered()
    trainer(tmp_path).validate(fresh, later, ckpt_path=tmp_path / "a.ckpt", verbose=False, weights_only=False)
    assert sorted(fresh.numbers) == [-1, 2]

    more = files | {"train": annotated(tmp_path / "c.jsonl", "zoe", "cat", "ann")}
    again, fresh = PreferenceDataModule(**more, **settings), Numbered()
    with pytest.warns(UserWarning, match="doesn't know, such as 'cat'; all 1 of them get the number -1"):
        trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0, limit_val_batches=0).fit(
            fresh, again, ckpt_path=tmp_path / "a.ckpt", weights_only=False
        )
    assert again.names == data.names
    assert set(fresh.numbers) <= {-1, 0, 2}


def test_names_are_texts_or_whole_numbers_per_row_or_per_response():
    names = Names.of([7, "7", "é", ("b", None)])
    assert names.names == ("7", "b", "é")
    assert names.collate(["b", None, 7, "x"]).tolist() == [1, -1, 0, -1]
    per_response = names.collate([("b", None), None], 3)
    assert per_response.tolist() == [[1, -1, -1], [-1, -1, -1]]
    assert per_response.dtype == torch.int64
    with pytest.raises(DataError, match=r"expected names in the column 'annotator', .* got 0\.5"):
        Names.of([0.5])
