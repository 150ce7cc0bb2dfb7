"""`prefopt plan` as a user meets it."""

from __future__ import annotations

import re
import shutil

import pytest

from pl_prefopt.cli.plan import _advice
from pl_prefopt.policies import PolicySpec
from tests.cli.test_commands import CONFIGS, axes
from tests.runs import scored_rows, write_rows


@pytest.fixture
def weightless(tiny_model, tmp_path):
    """The tiny model's configuration, without weights or tokeniser."""
    (tmp_path / "weightless").mkdir()
    shutil.copy(tiny_model / "config.json", tmp_path / "weightless")
    return tmp_path / "weightless"


def gib(printed, part):
    found = re.search(rf"^{part} +([\d.]+) GiB", printed, flags=re.MULTILINE)
    assert found, printed
    return float(found[1])


FSDP2 = CONFIGS / "hardware" / "fsdp2.yaml"
FOUR_BIT = ["--model.init_args.policy.four_bit.kind", "nf4", "--model.init_args.policy.lora.r", "4"]
LIMITS = ["--data.max_prompt_length", "128", "--data.max_response_length", "256", "--data.batch_size", "64"]


def command(model, *more):
    return ["plan", *axes(), "--model.init_args.policy.name", model, *LIMITS, *more]


def test_it_plans_without_weights_data_or_the_device(prefopt, weightless, tmp_path):
    several = [
        "--trainer.accelerator",
        "gpu",
        "--trainer.devices",
        "8",
        "--trainer.strategy",
        '{"class_path": "pl_prefopt.modules.FSDP2Strategy", '
        '"init_args": {"data_parallel_size": 8, "tensor_parallel_size": 1}}',
        "--trainer.precision",
        "bf16-mixed",
    ]
    printed = prefopt(*command(weightless, "--gpu", "A100-80G", *several))
    assert "64 prompts of up to 128 tokens, 2 responses each" in printed
    assert "as long as data's limits allow" in printed
    assert re.search(r"Parameters +[\d,]+, of which [\d,]+ are trained", printed)
    assert gib(printed, "together") >= gib(printed, "activations") > 0
    assert "A100-80G has 80.0 GiB" in printed
    assert "It fits." in printed
    assert {path.name for path in tmp_path.iterdir()} == {"weightless"}


def test_a_plan_that_does_not_fit_ends_with_1(prefopt, weightless):
    code, printed = prefopt.run(*command(weightless, "--memory", "0.01GiB"))
    assert code == 1
    assert "It does not fit" in printed


def test_rows_are_read_where_there_are_some(prefopt, tiny_model, tmp_path):
    rows = ["--data.train", write_rows(tmp_path / "rows.jsonl", scored_rows(8)), "--data.held_out", "2"]
    limits = prefopt(*command(tiny_model, *rows, "--limits", "true", "--responses", "4"))
    read = prefopt(*command(tiny_model, *rows))
    assert "64 prompts of up to 128 tokens, 4 responses each" in limits
    assert "6 prompts of up to" in read
    assert "the longest of data.train" in read
    assert gib(read, "together") < gib(limits, "together")


MISTAKES = {
    "gpu": (["--gpu", "A100"], "Expected --gpu to be one of"),
    "memory": (["--memory", "much"], "such as 24GiB"),
    "no limit": (["--data.max_prompt_length", "null"], "for a plan without data"),
    "too long": (["--data.max_prompt_length", "4096"], "takes at most 512 tokens"),
    "references": (["--references.members", "[]"], "DPO needs exactly 1 reference"),
    "responses": (["--responses", "-2"], "--responses to be at least 1"),
    "devices": (["--trainer.devices", "many"], "trainer.devices: expected a whole number"),
    "sizes": (["-c", FSDP2, "--trainer.devices", "4"], "to be the number of processes"),
    "split 4 bits": (["-c", FSDP2, *FOUR_BIT], "four_bit weights can't be sharded"),
    "model": (["--model.init_args.policy.name", "nope/nothing"], "'nope/nothing'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_else(prefopt, weightless, mistake):
    arguments, said = MISTAKES[mistake]
    assert said in prefopt.fails(*command(weightless, *arguments))


@pytest.mark.parametrize("used", [True, False])
def test_a_plan_advises_nothing_that_is_in_use(used):
    lora = {"r": 4} if used else None
    policy = PolicySpec(
        name="any", lora=lora, gradient_checkpointing=used, dtype="bfloat16" if used else "float32"
    )
    advice = _advice(policy, precomputes=used)
    for name in ("references.precompute", "policy.gradient_checkpointing", "policy.dtype", "policy.lora"):
        assert (name in advice) != used
    assert "a smaller data.batch_size" in advice
