"""The order of training rows: by score gap, by a column, by the gap of a column."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_prefopt.data import ByColumn, ByColumnGap, ByScoreGap, LengthGroupedSampler, PreferenceDataModule
from pl_prefopt.errors import PrefOptError
from tests.data.support import Recorder, pair, trainer, write_jsonl
from tests.support import tiny_tokenizer

KEYS = np.array([3.0, 1.0, 1.0, 7.0, 0.0, 1.0, 2.0, 5.0, 1.0, 4.0])


def batches(*, epoch: int = 0, rank: int = 0, ranks: int = 1, **options) -> list[list[int]]:
    lengths = np.random.default_rng(0).integers(1, 30, len(KEYS))
    sampler = LengthGroupedSampler(
        lengths, 2, shuffle=True, keys=KEYS, num_replicas=ranks, rank=rank, **options
    )
    sampler.set_epoch(epoch)
    assert len(sampler) == len(list(sampler))
    return list(sampler)


@pytest.mark.parametrize("options", [{}, {"max_tokens": 40}], ids=["rows", "tokens"])
def test_an_epoch_goes_through_the_rows_by_ascending_key(options):
    rows = [sorted(KEYS[batch]) for batch in batches(**options)]
    assert [key for batch in rows for key in batch] == sorted(KEYS)
    assert sorted(row for batch in batches(**options) for row in batch) == list(range(len(KEYS)))


def test_the_ranks_share_the_next_rows():
    steps = list(zip(batches(rank=0, ranks=2), batches(rank=1, ranks=2), strict=True))
    keys = [sorted(KEYS[[row for rank in step for row in rank if row >= 0]]) for step in steps]
    assert [key for step in keys for key in step] == sorted(KEYS)


def test_equal_keys_are_shuffled_by_seed_and_epoch():
    orders = [
        str([row for batch in batches(epoch=epoch, seed=seed) for row in batch if KEYS[row] == 1])
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) > 1
    assert batches(epoch=1, seed=3) == batches(epoch=1, seed=3)


def scored(number: int) -> dict:
    """The gap of the scores is 7·number mod 11, that of the rewards its negative, halved."""
    gap = 7 * number % 11
    return {
        "prompt": f"Question {number}?",
        "responses": [f"Good {number}" + " indeed" * (number % 3), f"Bad {number}"],
        "scores": [1.0 + gap, 1.0],
        "reward": [0.0, gap / 2],
        "difficulty": gap,
        "note": "n",
    }


@pytest.fixture
def make(tmp_path: Path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def make_module(order, records=None, **options) -> PreferenceDataModule:
        rows = write_jsonl(tmp_path / "rows.jsonl", records or [scored(i) for i in range(1, 11)])
        settings = {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache")}
        return PreferenceDataModule(rows, batch_size=2, order=order, **{**settings, **options})

    return make_module


@pytest.mark.parametrize(
    ("order", "first"),
    [
        (ByScoreGap(), 10),
        (ByScoreGap(descending=False), 1),
        (ByColumn("difficulty"), 1),
        (ByColumn("difficulty", descending=True), 10),
        (ByColumnGap("reward"), 1),
        (ByColumnGap("reward", descending=False), 10),
    ],
    ids=str,
)
def test_rows_come_in_the_order_that_is_named(make, tmp_path, order, first):
    module, data = Recorder(), make(order)
    trainer(tmp_path, max_epochs=1).fit(module, data)
    gaps = [data.datasets["train"].rows[row].scores[0] - 1 for _, batch in module.seen for row in batch]
    pairs = [sorted(gaps[at : at + 2]) for at in range(0, 10, 2)]
    ascending = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert pairs == (ascending if first == 1 else ascending[::-1])


def test_a_resumed_run_goes_on_in_the_same_order(make, tmp_path):
    saved = ModelCheckpoint(tmp_path / "c", save_top_k=-1, filename="{step}", every_n_train_steps=1)
    whole = Recorder()
    trainer(tmp_path, max_epochs=2, callbacks=[saved], enable_checkpointing=True).fit(
        whole, make(ByColumn("difficulty"))
    )
    for step in (3, 7):
        rest = Recorder()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The training rows")
            trainer(tmp_path, max_epochs=2).fit(
                rest, make(ByColumn("difficulty")), ckpt_path=tmp_path / "c" / f"step={step}.ckpt"
            )
        assert rest.seen == whole.seen[step:]
    with pytest.warns(UserWarning, match=r"`data\.order`"):
        trainer(tmp_path, max_epochs=2).fit(
            Recorder(), make(ByScoreGap()), ckpt_path=tmp_path / "c" / "step=3.ckpt"
        )


@pytest.mark.parametrize(
    ("order", "records", "said"),
    [
        (ByColumn("dificulty"), None, r"data\.order needs the column 'dificulty', but train .* has no such"),
        (ByColumn("note"), None, r"finite numbers in the column 'note', but .*row 1 has 'n'"),
        (
            ByColumn("reward"),
            None,
            r"one number per row in the column 'reward', .* pl_prefopt.data.ByColumnGap",
        ),
        (ByColumnGap("difficulty"), None, r"one number per response .* use pl_prefopt.data.ByColumn\."),
        (ByScoreGap(), [pair(0), pair(1)], r"by ByScoreGap needs scores .*row 1 has none: add 'scores'"),
        (
            ByColumnGap("reward"),
            [scored(1), {**scored(2), "scores": [1.0, 1.0]}],
            r"needs a best and a worst response in each row, but .*row 2 has none",
        ),
    ],
    ids=["missing", "texts", "per response", "per row", "labels", "ties"],
)
def test_rows_that_can_not_be_ordered_are_refused(make, order, records, said):
    data = make(order, records)
    with pytest.raises(PrefOptError, match=said):
        data.setup("fit")


def test_only_the_training_rows_need_the_column(make, tmp_path):
    val = write_jsonl(tmp_path / "val.jsonl", [pair(i) for i in range(4)])
    data = make(ByColumn("difficulty"), val=val)
    module = Recorder()
    trainer(tmp_path, max_epochs=1).fit(module, data)
    assert sorted(module.evaluated) == [0, 1, 2, 3]
