"""MFU: what is counted against what torch counts, and what is logged."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import mm_flop

from pl_prefopt.callbacks import ReferenceEnsemble, Throughput
from pl_prefopt.callbacks.model_flops import ModelFlops, peak_of, unique_tokens
from pl_prefopt.evaluations import read_evaluations
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import KTO
from pl_prefopt.policies import PolicySpec, build_policy
from pl_prefopt.references import AdapterOff
from pl_prefopt.scoring import Scorer
from pl_prefopt.types import TokenTree
from tests.runs import LORA, lora_spec, make_datamodule, make_trainer, pair_rows
from tests.scoring.architectures import build


def tree_of(prompts, responses, vocabulary=100):
    """Random tokens; no two prompts begin alike."""
    width, longest = max(prompts), max(map(max, responses))
    mask = torch.arange(width) < torch.tensor(prompts)[:, None]
    sizes = torch.tensor(responses)
    answers = torch.arange(longest) < sizes[..., None]
    ids = torch.randint(5, vocabulary, mask.shape)
    ids[:, 0] = torch.arange(5, 5 + len(prompts))
    return TokenTree(
        prompt_ids=ids,
        prompt_mask=mask,
        response_ids=torch.randint(5, vocabulary, answers.shape),
        response_mask=answers,
        counted_mask=answers,
    )


class Products(TorchDispatchMode):
    """Counts the operations of matrix products, by torch's own formula."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.flops += mm_flop(args[0].shape, args[1].shape)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("lora", "head"), [(None, 3), (LORA, 2)], ids=["all weights", "LoRA"])
def test_matrix_products_are_those_that_torch_counts(tiny_model, lora, head):
    model = build_policy(PolicySpec(name=str(tiny_model), lora=lora))
    tree, scorer = tree_of([7], [[5, 4]]), Scorer()
    scorer.presume(model, torch.device("cpu"))
    with Products() as counted:
        scorer(model, tree).sum.sum().backward()
    flops = ModelFlops.of(model)
    assert flops is not None
    without_attention = ModelFlops(
        frozen=flops.frozen, trained=flops.trained, head=flops.head, head_trained=flops.head_trained
    )
    # Torch counts a trained head's recomputed logits, and no gradient of a frozen first layer's input.
    assert without_attention.training(tree) == pytest.approx(counted.flops, rel=0.1)
    by_hand = 2 * 16 * (3 * flops.trained + 2 * flops.frozen) + 2 * 9 * head * flops.head
    assert without_attention.training(tree) == by_hand


def test_attention_counts_the_pairs_of_the_tree_mask():
    model = build("gemma3_window_4")
    flops = ModelFlops.of(model)
    assert flops is not None
    assert (flops.attention, flops.windows) == (4 * 8, (4.0, math.inf))
    tree, pairs = tree_of([3, 9], [[2, 0], [6, 1]]), 0
    for prompt, sizes in ((3, (2, 0)), (9, (6, 1))):
        for window in (4, 10**9):
            for size in sizes:
                pairs += sum(min(place + 1, window) for place in range(prompt, prompt + size))
            pairs += sum(min(place + 1, window) for place in range(prompt))
    weights = 2 * (3 + 9 + 9) * (flops.frozen + flops.trained) + 2 * 9 * flops.head
    assert flops.forward(tree) == weights + 4 * 32 * pairs
    assert flops.forward(tree, logits=False) == weights - 2 * 9 * flops.head + 4 * 32 * pairs
    assert ModelFlops.of(build("mixtral")) is None


def test_shared_beginnings_count_once():
    tree = tree_of([5, 6], [[2], [3]])
    assert unique_tokens(tree) == 16
    tree.shared_prefix = 4
    assert unique_tokens(tree) == 12
    tree.shared_with_plain = (3, 5)
    assert unique_tokens(tree) == 8


def test_cards_are_known_by_their_whole_name():
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA L4", "NVIDIA A100 80GB PCIe", "NVIDIA H200")
    assert [peak_of(name) for name in names] == [989e12, 756e12, 121e12, 312e12, 989e12]
    for name in (
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "AMD Radeon",
        "NVIDIA A100X.1",
    ):
        assert peak_of(name) is None


def test_mfu_is_logged_and_recorded(tiny_model, tmp_path, monkeypatch):
    from pl_prefopt.callbacks import MetricsFile

    clock = iter(range(1000))
    stub = SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("pl_prefopt.callbacks.throughput.time", stub)
    ensemble = ReferenceEnsemble([AdapterOff()])
    module = DPOModule(lora_spec(tiny_model), KTO())
    trainer = make_trainer(
        tmp_path, ensemble, Throughput(peak_tflops=1e-6), MetricsFile(str(tmp_path)), limit_train_batches=1
    )
    trainer.fit(module, make_datamodule(tmp_path, pair_rows(2), held_out=None))
    flops, batch = ModelFlops.of(module.policy), trainer.datamodule.datasets["train"].batch([0, 1])
    expected = flops.training(batch.trees["plain"]) + flops.forward(batch.trees["mismatched"])
    bare = ModelFlops(
        frozen=flops.frozen, trained=0, head=flops.head, attention=flops.attention, windows=flops.windows
    )
    expected += sum(bare.forward(tree) for tree in batch.trees.values())
    (evaluation,) = read_evaluations(tmp_path / "metrics.json")
    assert evaluation.throughput.keys() == {"tokens_per_second", "mfu"}
    assert evaluation.throughput["mfu"] == pytest.approx(expected / 1e6)
    assert evaluation.throughput["tokens_per_second"] == 20 + 22 + 26 + 19
