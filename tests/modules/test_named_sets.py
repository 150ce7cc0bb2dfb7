"""Named evaluation sets: each is measured as it would be by itself, and all together as one set."""

from __future__ import annotations

import pytest

from pl_prefopt.callbacks.best_checkpoint import BestCheckpoint
from pl_prefopt.callbacks.metrics_file import MetricsFile
from pl_prefopt.errors import ConfigError
from pl_prefopt.evaluations import read_evaluations
from pl_prefopt.modules import ReferenceFreeModule
from pl_prefopt.objectives import SimPO
from tests.runs import lora_spec, make_datamodule, make_trainer, scored_rows, write_rows


@pytest.fixture
def sets(tmp_path):
    return {
        name: write_rows(tmp_path / f"{name}.jsonl", scored_rows(count, source=name))
        for name, count in (("helpful", 5), ("harmless", 4))
    }


def measured(tiny_model, folder, rows, *callbacks):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO(beta=2.0, gamma=0.5))
    data = make_datamodule(folder, test=rows, eval_batch_size=2)
    (metrics,) = make_trainer(folder, *callbacks).test(module, data, verbose=False)
    return metrics


def test_a_set_is_measured_as_by_itself_and_all_as_one(tiny_model, tmp_path, sets):
    found = measured(tiny_model, tmp_path, sets, MetricsFile(str(tmp_path)))
    whole = measured(tiny_model, tmp_path, list(sets.values()))
    assert {"test/accuracy", "test/loss", "test/margin_low"} <= whole.keys()
    assert {name: value for name, value in found.items() if name.count("/") == 1} == whole
    for name, path in sets.items():
        alone = measured(tiny_model, tmp_path, path)
        of_set = {
            f"test/{key.rpartition('/')[2]}": value for key, value in found.items() if f"/{name}/" in key
        }
        assert of_set == pytest.approx(alone, abs=1e-4)
    (written,) = read_evaluations(tmp_path / "metrics.json")
    assert written.data == "helpful: helpful.jsonl, harmless: harmless.jsonl"
    assert written.several
    assert written.rows == 9
    assert written.metrics["test/helpful/accuracy"] == found["test/helpful/accuracy"]


def test_the_best_checkpoint_can_be_that_of_a_set(tiny_model, tmp_path, sets):
    def fit(monitor, mode="max"):
        best = BestCheckpoint(str(tmp_path / "best"), monitor=monitor, mode=mode)
        trainer = make_trainer(tmp_path, best, enable_checkpointing=True, num_sanity_val_steps=1)
        module = ReferenceFreeModule(lora_spec(tiny_model), SimPO(beta=2.0, gamma=0.5))
        trainer.fit(module, make_datamodule(tmp_path, val=sets))
        return best.best_model_score, trainer.callback_metrics

    score, metrics = fit("val/harmless/accuracy")
    assert score == metrics["val/harmless/accuracy"]
    with pytest.raises(ConfigError, match=r"higher values of val/harmless/accuracy are better"):
        fit("val/harmless/accuracy", mode="min")
    with pytest.raises(ConfigError, match=r"'val/harmles/accuracy', in a validation.*val/harmless/accuracy"):
        fit("val/harmles/accuracy")
