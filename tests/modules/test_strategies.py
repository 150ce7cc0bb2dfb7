"""Two processes on a CPU, with the model copied or split between them, do what one does alone."""

from __future__ import annotations

import json
import socket

import pytest
import torch
import torch.multiprocessing as mp
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pl_prefopt.cli.export import export_policy
from pl_prefopt.data.formats import to_row
from pl_prefopt.modules import RewardScorer
from pl_prefopt.modules.checkpoint_files import read_head, read_weights
from tests.cli.test_commands import log_prob
from tests.modules.faults import SAVED, contents
from tests.modules.strategy_runs import CASES, PEERS, ROWS, run, work
from tests.runs import scored_rows

UNTOLD = "RunError: Rank 0 could not load the model: "


@pytest.fixture(scope="module")
def together(tmp_path_factory, tiny_model):
    """The folder of both processes, and what each has seen of each case."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(mp.ProcessExitedException, match="SIGKILL"):  # the last thing that happens
        mp.spawn(work, args=(port, folder, str(tiny_model)), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(together, tiny_model, tmp_path, name):
    _, ranks = together
    alone = run(name, tmp_path, str(tiny_model), processes=1)
    ranks = [rank[name] for rank in ranks]
    assert all(rank["split"] == (CASES[name].strategy != "ddp") for rank in ranks)
    close = 1e-3 if CASES[name].exact else 0.05
    losses = [sum(pair) / 2 for pair in zip(*(rank["losses"] for rank in ranks), strict=True)]
    assert losses == pytest.approx(alone["losses"], rel=close)
    assert max(losses) - min(losses) > 0.01
    for rank in ranks:
        assert rank["metrics"] == pytest.approx(alone["metrics"], rel=close, abs=close)
    for kept in ("references", "policy"):
        assert {**ranks[0][kept], **ranks[1][kept]}.keys() == alone[kept].keys()
        for rank in ranks:
            assert 0 < len(rank[kept]) < ROWS
            for index, values in rank[kept].items():
                expected = torch.tensor(alone[kept][index])
                torch.testing.assert_close(torch.tensor(values), expected, rtol=close / 10, atol=10 * close)


def exported(together, tiny_model, tmp_path, name):
    """The folder of an exported checkpoint, and each row's log-probs or rewards."""
    folder, ranks = together
    spec = {"name": str(tiny_model), **CASES[name].policy}
    objective = {"class_path": type(CASES[name].objective()).__qualname__}
    described = {"model": {"init_args": {"policy": spec, "objective": objective}}, "data": {}, "trainer": {}}
    (tmp_path / "config.yaml").write_text(json.dumps(described))
    checkpoint, out = folder / f"{name}.ckpt", tmp_path / "exported"
    assert checkpoint.is_dir() == (CASES[name].strategy == "shards")
    export_policy(checkpoint, out, merge=False, config=str(tmp_path / "config.yaml"))
    return out, {**ranks[0][name]["policy"], **ranks[1][name]["policy"]}


@pytest.mark.parametrize("name", [name for name in CASES if name != PEERS])
def test_every_checkpoint_is_exported_for_plain_transformers(together, tiny_model, tmp_path, name):
    out, trained = exported(together, tiny_model, tmp_path, name)
    if "lora" in CASES[name].policy:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), out)
    else:
        model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer, rows = AutoTokenizer.from_pretrained(out), scored_rows(ROWS)
    for index in (0, 5):
        row = rows[index]
        found = [log_prob(model.eval(), tokenizer, row["prompt"], text) for text in row["responses"]]
        # Plain transformers computes in float32, which bfloat16 is off from by a few parts in a thousand.
        assert found == pytest.approx(trained[index], abs=2e-3 if CASES[name].exact else 0.3)


def test_the_first_of_two_reward_models_is_exported(together, tiny_model, tmp_path, capsys):
    out, trained = exported(together, tiny_model, tmp_path, PEERS)
    assert "this is the first, whose metrics it logged; its peer is left out." in capsys.readouterr().out
    found = RewardScorer.load(out).rewards([to_row(row) for row in scored_rows(ROWS)])
    for index, rewards in enumerate(found):
        assert rewards == pytest.approx(trained[index], abs=1e-5)


def test_an_adapters_checkpoint_is_small_unless_all_is_asked_for(together):
    folder, _ = together
    for name, case in CASES.items():
        names = read_weights(folder / f"{name}.ckpt")
        only_adapter = all("lora_" in weight or "heads." in weight for weight in names)
        assert only_adapter == ("lora" in case.policy and "full_checkpoints" not in case.policy)


def test_one_process_loads_a_model_for_both(together):
    _, ranks = together
    for rank, seen in enumerate(ranks):
        found = seen["loaded"]
        assert found.pop("failed") == ("ConfigError: " if rank == 0 else UNTOLD) + "No weights here."
        whole = found["not what it looks like"]
        for name, one in found.items():
            assert one["differ"] == [], name
            assert one["split"]
            assert one["tied"] == (name != "all weights"), name
            assert one["logits"] < 1e-5, name
            assert rank or one["warned"] == (one is whole), name
            assert one["built"] == (1 if rank == 0 or one is whole else 0), name


def test_a_file_of_another_strategy_goes_on_with_the_model_split(together):
    _, ranks = together
    for rank in ranks:
        assert rank["moved"]["file"] == pytest.approx(rank["moved"]["ddp"], rel=1e-4)


def test_a_step_of_two_processes_is_the_mean_over_the_prompts_of_both(together):
    _, ranks = together
    for rank in ranks:
        for name, (prompts, worst) in rank["step means"].items():
            assert sum(len(numbers) for step in prompts for numbers in step) == 2 * ROWS, name
            assert any(len(first) != len(second) for first, second in prompts), name
            assert max(worst) < 1e-5, (name, prompts, worst)


def test_rows_on_both_sides_of_a_threshold_are_scored_as_single_ones_by_a_sharded_model(together):
    _, ranks = together
    for rank in ranks:
        for name, (found, expected, worst) in rank["long rows"].items():
            torch.testing.assert_close(found, expected, atol=5e-4, rtol=1e-5, msg=name)
            assert worst < 1e-4, (name, worst)


def test_a_loss_that_is_no_number_in_one_process_stops_both(together):
    folder, ranks = together
    assert "non-finite loss at step 0 on another rank" in ranks[0]["faults"]["loss"]
    assert "non-finite loss (NaN or inf) at step 0 for rows.jsonl, row" in ranks[1]["faults"]["loss"]
    assert (folder / "bad_batch.1.jsonl").is_file()
    assert not (folder / "bad_batch.jsonl").exists()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("weight", "is not finite at step 1"),
        ("shard", r"faults.ckpt can't be written (No space left on device)"),
        ("rename", r"faults.ckpt can't be written (No space left on device)"),
    ],
)
def test_shards_that_one_process_cannot_save_are_told_by_both(together, fault, sentence):
    _, ranks = together
    for rank in ranks:
        assert sentence in rank["faults"][fault]
        assert rank["faults"]["after"] == rank["faults"]["saved"]


def test_a_kill_while_shards_are_saved_leaves_those_before(together):
    folder, ranks = together
    saved = ranks[0]["faults"]["saved"]
    names = {f"{SAVED}/{name}" for name in ("__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt")}
    assert saved.keys() == names  # nothing of the draft that an earlier run left
    left = contents(folder)
    assert {name: left[name] for name in names} == saved
    assert f".{SAVED}.tmp/__1_0.distcp" in left
    assert read_head(folder / SAVED).rest["global_step"] == 1
