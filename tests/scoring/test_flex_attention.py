"""FlexAttention on prefix trees: values on a CPU, where torch runs no gradient of it, and compilations."""

from __future__ import annotations

import random

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pl_prefopt import attention
from pl_prefopt.compiling import for_any_length
from pl_prefopt.scoring import Scorer, masks
from pl_prefopt.scoring.layouts import Places, TreeLayout
from tests.scoring.architectures import build
from tests.scoring.test_scorer import beginning_alike, one_by_one, ragged_tree


@pytest.fixture
def compilations(monkeypatch):
    """Counts those of the mask and of the attention, by a backend that runs plain torch."""
    torch._dynamo.reset()
    counters = CompileCounterWithBackend("eager"), CompileCounterWithBackend("eager")
    create, attend = (
        torch.compile(function, backend=counter, **for_any_length())
        for function, counter in zip((create_block_mask, flex_attention), counters, strict=True)
    )
    monkeypatch.setattr(masks, "create_block_mask", create)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: attend)
    yield counters
    torch._dynamo.reset()


def test_any_lengths_and_windows_need_few_compilations(compilations):
    """One for whole rows, one for rows behind a prefix cache, and others where a side has a single block."""
    draw, model = random.Random(0), build("gemma3_window_4")
    layout, rows = TreeLayout("both", "flex_attention"), []
    for number in range(12):
        sizes = [draw.randint(1, 150) for _ in range(draw.randint(1, 4))]
        responses = [[draw.randint(1, 60) for _ in range(draw.randint(1, 4))] for _ in sizes]
        tree = ragged_tree(sizes, responses, seed=number)
        (full, sliding) = layout.lay_out(model, tree).inputs["attention_mask"].values()
        rows.append(sum(tree.prompt_lengths + tree.response_lengths))
        branches = Places.of(tree, most_rows=1).branches(tree)
        for mask, window in ((full, None), (sliding, 4)):
            attends_as_masked(mask, masks.dense(branches, window))
    assert min(rows) < 128 < max(rows), "a block is 128 tokens"
    assert [counter.frame_count for counter in compilations] == [2, 2]
    plain, scorer = ragged_tree([60, 4, 90], seed=1), Scorer()
    model = build("gemma3_window_4", "sdpa").requires_grad_(False)
    attention.want(model, "flex_attention")
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            view = beginning_alike(plain, [41, 0, 20], seed=1)
            cache = scorer.prefix_cache(model, torch.device("cpu"))
            scorer(model, plain, cache)
            found = scorer(model, view, cache).sum
    torch.testing.assert_close(found, one_by_one(build("gemma3_window_4"), view), atol=2e-4, rtol=1e-5)
    assert max(counter.frame_count for counter in compilations) <= 12


def attends_as_masked(mask, dense):
    assert isinstance(mask, BlockMask)
    width = dense.shape[-1]
    query, key, value = torch.randn(3, 1, 2, width, 16, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.no_grad():
        found = attention._by_blocks(query, key, value, mask, {})
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, dense)
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=1e-5, rtol=1e-5)
