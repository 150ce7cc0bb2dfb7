"""The `data:` section in a trainer."""

from __future__ import annotations

import functools
import operator
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from pl_prefopt.data import PreferenceDataModule, Renderer, Source
from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.views import Mismatched
from tests.data.support import Recorder, pair, trainer, write_jsonl
from tests.support import tiny_tokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "data"


@pytest.fixture
def make(tmp_path: Path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = write_jsonl(tmp_path / "rows.jsonl", [pair(i % 9, words=i % 5) for i in range(14)])

    def make_module(train: str | Source | None = rows, **options) -> PreferenceDataModule:
        settings = {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache")}
        return PreferenceDataModule(train, **{**settings, **options})

    make_module.rows = rows
    return make_module


def test_fit_with_held_out_prompts_sees_each_row_on_one_side(make, tmp_path: Path):
    module, data = Recorder(), make(held_out=3)
    trainer(tmp_path, max_epochs=1).fit(module, data)
    train, val = data.datasets["train"], data.datasets["val"]
    assert len(train) + len(val) == 14
    assert not {row.prompt for row in train.rows} & {row.prompt for row in val.rows}
    assert sorted(functools.reduce(operator.iadd, (batch for _, batch in module.seen), [])) == list(
        range(len(train))
    )
    assert sorted(module.evaluated) == list(range(len(val)))


def test_fit_without_validation_rows(make, tmp_path: Path):
    module = Recorder()
    trainer(tmp_path, max_epochs=1).fit(module, make())
    assert len(module.seen) == 4
    assert module.evaluated == []


def test_validate_test_and_predict(make, tmp_path: Path):
    data = make(None, val=make.rows, test=Source(path=make.rows), predict=make.rows, eval_batch_size=3)
    module, run = Recorder(), trainer(tmp_path)
    run.validate(module, data, verbose=False)
    assert sorted(module.evaluated) == list(range(14))
    run.test(module, data, verbose=False)
    assert sorted(module.evaluated) == sorted([*range(14), *range(14)])
    predicted = run.predict(module, data)
    assert sorted(functools.reduce(operator.iadd, predicted, [])) == list(range(14))
    assert max(len(batch) for batch in predicted) == 3


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_missing_split_names_the_key(make, stage: str):
    key = {"fit": "train", "validate": "val"}.get(stage, stage)
    with pytest.raises(ConfigError, match=rf"set `data\.{key}`"):
        make(None).setup(stage)


def test_the_tokeniser_and_the_views_are_the_models(make, tmp_path: Path):
    module = Recorder(views={"mismatched": Mismatched()}, tokenizer=tiny_tokenizer(vocab_size=330))
    data = make(tokenizer=None, max_prompt_length=50, max_response_length=None)
    trainer(tmp_path, max_steps=1).fit(module, data)
    own = Renderer(tiny_tokenizer(vocab_size=330), max_prompt_length=50)
    assert data.renderer.fingerprint == own.fingerprint
    assert list(data.datasets["train"].batch([0]).trees) == ["plain", "mismatched"]


def test_without_a_tokeniser(make):
    with pytest.raises(ConfigError, match=r"set `data\.tokenizer`"):
        make(tokenizer=None).setup("fit")
    with pytest.raises(ConfigError, match=r"data\.tokenizer: .*nowhere"):
        make(tokenizer="/nowhere").setup("fit")
    with pytest.raises(ConfigError, match="call `setup` first"):
        _ = make().renderer


def test_bad_rows_stop_the_run_or_are_counted(make, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = write_jsonl(tmp_path / "bad.jsonl", [pair(0), {"prompt": "Hi", "chosen": "a"}, pair(1)])
    with pytest.raises(DataError, match=r"bad\.jsonl, row 2: .*'rejected' is missing"):
        trainer(tmp_path, max_steps=1).fit(Recorder(), make(rows))
    for _ in range(2):
        trainer(tmp_path, max_steps=1).fit(Recorder(), make(rows, on_bad_row="skip"))
        printed = capsys.readouterr().out
        assert printed.count("train (bad.jsonl): 2 rows") == 1
        assert "1 bad rows skipped" in printed
        assert "bad.jsonl, row 2: a pair needs two responses" in printed


def test_a_changed_file_is_read_again(make, tmp_path: Path):
    data = make()
    data.setup("fit")
    write_jsonl(tmp_path / "rows.jsonl", [pair(1)])
    data.setup("fit")
    assert len(data.datasets["train"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size` to be at least 1, got 0"),
        ({"held_out": 2.0}, "write 2 for rows"),
    ],
)
def test_settings_that_cannot_work(options, message: str):
    with pytest.raises(ConfigError, match=message):
        PreferenceDataModule("rows.jsonl", **options)


def test_holding_out_everything(make):
    with pytest.raises(ConfigError, match=r"data\.held_out"):
        make(held_out=14).setup("fit")


def parse(*arguments: str) -> PreferenceDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(PreferenceDataModule, "data")
    return parser.instantiate_classes(parser.parse_args(list(arguments))).data


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_parse(config: Path):
    assert config.read_text().startswith("# ")
    assert list(yaml.safe_load(config.read_text())) == ["data"]
    assert "train" in parse(f"--config={config}").sources


@pytest.mark.parametrize(("name", "rows"), [("hh_rlhf", 1796), ("alpacaeval_ranked", 600)])
def test_the_configs_of_the_shared_data_load(
    shared_data: Path, tmp_path: Path, monkeypatch, name: str, rows: int
):
    monkeypatch.chdir(CONFIGS.parents[1])
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    data = parse(
        f"--config={CONFIGS / name}.yaml",
        f"--data.tokenizer={tmp_path / 'tokenizer'}",
        f"--data.cache_dir={tmp_path / 'cache'}",
        "--data.max_prompt_length=64",
        "--data.max_response_length=512",
    )
    data.setup("fit")
    assert len(data.datasets["train"]) + len(data.datasets["val"]) == rows
    assert len(next(iter(data.train_dataloader()))) == data.batch_size


def test_a_source_on_the_command_line(make):
    data = parse(f"--data.train.path={make.rows}", '--data.train.columns={"question": "prompt"}')
    assert data.sources["train"][0] == Source(path=make.rows, columns={"question": "prompt"})
    assert parse(f"--data.train={make.rows}").sources["train"][0] == Source(path=make.rows)
    several = parse(f"--data.train=[{make.rows}, {{path: b.jsonl, passes: 0.5}}]").sources["train"]
    assert list(several) == [Source(path=make.rows), Source(path="b.jsonl", passes=0.5)]
    named = parse("--data.train={x: a.jsonl, y: {path: b.jsonl, rows_per_epoch: 9}}").sources["train"]
    assert list(named) == [Source(path="a.jsonl"), Source(path="b.jsonl", rows_per_epoch=9)]
    assert named.names == ("x", "y")


def test_rows_are_held_out_only_where_there_are_no_validation_rows(make):
    data = make(val=make.rows, held_out=0.5)
    data.prepare_data()
    data.setup("fit")
    assert (len(data.datasets["train"]), len(data.datasets["val"])) == (14, 14)


def test_the_largest_batch_is_the_longest_rows(make):
    data = make(batch_size=4)
    data.prepare_data()
    data.setup("fit")
    lengths = data.datasets["train"].lengths
    longest = data.largest_batch()
    assert sorted(lengths[longest.index]) == sorted(lengths)[-4:]


def test_the_largest_batch_within_a_limit_on_tokens_is_one_that_comes(make):
    data = make(batch_size=14, max_tokens_per_batch=120)
    data.prepare_data()
    data.setup("fit")
    lengths = data.datasets["train"].lengths
    tokens = [sum(lengths[batch.index.numpy()]) for batch in data.train_dataloader()]
    assert len(tokens) > 1
    assert sum(lengths[data.largest_batch().index.numpy()]) == max(tokens) <= 120


@pytest.mark.parametrize(("limit", "rows"), [(None, 4), (100, 3), (30, 1), (5, 1)])
def test_a_full_batch_needs_no_data_and_keeps_the_limits(make, limit, rows):
    limits = {"batch_size": 4, "max_prompt_length": 10, "max_response_length": 7}
    data = make(None, **limits, max_tokens_per_batch=limit)
    tree = data.full_batch(3).trees["plain"]
    assert tree.prompt_ids.shape == (rows, 10)
    assert tree.response_ids.shape == (rows, 3, 7)
    assert tree.response_lengths == (21,) * rows
    assert rows == 1 or tree.shared_prefix == 0


def test_a_full_batch_without_limits_is_refused(make):
    with pytest.raises(ConfigError, match=r"data\.max_response_length"):
        make(None, max_response_length=None).full_batch(2)
