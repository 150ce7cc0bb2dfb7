"""Predictions of each command: complete, bounded, and of the last validation within `fit`."""

from __future__ import annotations

import json

import pytest
import torch

from pl_prefopt.callbacks import PredictionWriter, ReferenceEnsemble
from pl_prefopt.callbacks.prediction_writer import _ranks
from pl_prefopt.errors import ContractError
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO, KTO
from pl_prefopt.references import AdapterOff
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows, scored_rows


@pytest.fixture
def run(tiny_model, tmp_path):
    """A module, its rows, and a trainer that writes predictions."""
    rows = [row | {"source": "forum"} for row in scored_rows(5)]
    rows[1]["responses"][0] = "Split\u2028here\x85and\u2029there."  # line ends to Python, but not to JSON
    data = make_datamodule(tmp_path, [*rows, *pair_rows(1)])
    writer = PredictionWriter(str(tmp_path / "run"), most_evaluated=4)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), writer)
    return trainer, DPOModule(lora_spec(tiny_model), DPO()), data


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_each_command_writes_its_own_file(run, tmp_path, capsys):
    trainer, module, data = run
    trainer.fit(module, datamodule=data)
    assert "holds the first" not in capsys.readouterr().out
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    assert "holds the first 4 prompts" in capsys.readouterr().out
    trainer.predict(module, datamodule=data, return_predictions=False)
    trained, validated, tested, predicted = (
        lines_of(tmp_path / "run" / place / "predictions.jsonl") for place in ("fit", "validate", "test", ".")
    )
    assert [line["index"] for line in predicted] == list(range(6))
    assert not list(tmp_path.rglob("*.part"))
    for evaluated in (trained, validated, tested):
        for line, same in zip(evaluated, predicted[:4], strict=True):
            assert line["responses"] == [
                response | {key: pytest.approx(response[key], abs=1e-5) for key in ("log_prob", "reward")}
                for response in same["responses"]
            ]
    assert predicted[1]["responses"][0]["response"] == "Split\u2028here\x85and\u2029there."
    assert [line["source"] for line in predicted] == ["forum"] * 5 + [""]
    assert [line["graded"] for line in predicted] == [True] * 5 + [False]
    assert predicted[5]["origin"] == "rows.jsonl, row 6"


def test_a_reward_that_is_nan_ranks_last():
    reward = torch.tensor([[0.5, torch.nan, 2.0, 0.5]])
    assert _ranks(reward, torch.tensor([[True, True, True, False]])).tolist()[0][:3] == [2, 3, 1]


def test_rewards_per_token_add_up_to_the_reward_where_they_are_asked_for(run, tmp_path):
    """Of DPO, which takes no numbers per token in training; texts are those of the response."""
    trainer, module, data = run
    module.token_rewards = True
    module.make_optimizer = lambda weights: torch.optim.AdamW(weights, lr=0.01)
    trainer.fit(module, datamodule=data)
    assert module.objective.needs.tokens is None
    trainer.predict(module, datamodule=data, return_predictions=False)
    lines = lines_of(tmp_path / "run" / "predictions.jsonl")
    responses = [one for line in lines for one in line["responses"]]
    assert max(abs(one["reward"]) for one in responses) > 1e-3
    for one in responses:
        texts, rewards = zip(*one["tokens"], strict=True)
        assert sum(rewards) == pytest.approx(one["reward"], abs=1e-5)
        assert len(rewards) == one["length"]
        whole = "".join(texts)
        assert whole.startswith(one["response"]) or "�" in whole


def test_rewards_that_are_no_sum_over_tokens_are_refused(tiny_model, tmp_path):
    module = DPOModule(lora_spec(tiny_model), KTO(), token_rewards=True)
    with pytest.raises(ContractError, match="reward of KTO is no sum over tokens"):
        make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()])).validate(module, make_datamodule(tmp_path))
    module = DPOModule(lora_spec(tiny_model), DPO(), token_rewards=True)
    ensemble = ReferenceEnsemble([AdapterOff()], precompute=True)
    with pytest.raises(ContractError, match=r"model.init_args.token_rewards asks for .*precompute to false"):
        make_trainer(tmp_path, ensemble).predict(module, make_datamodule(tmp_path))
