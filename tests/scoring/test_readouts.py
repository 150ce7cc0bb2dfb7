"""Numbers per token and outputs of heads, against whole logits and hidden states of single unpadded rows."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from pl_prefopt.errors import ContractError
from pl_prefopt.scoring import (
    Collisions,
    DivergingLogProbs,
    HiddenStates,
    LogProbs,
    Outputs,
    Scorer,
    divergence,
    output_layers,
)
from pl_prefopt.scoring.heads import WholeLogits
from pl_prefopt.scoring.layouts import SingleLayout
from pl_prefopt.scoring.lengths import GroupedLayout
from tests.scoring.architectures import VOCABULARY, build
from tests.scoring.test_scorer import bent, ragged_tree

DIRECTIONS = ("forward", "reverse")
LAYOUTS = ("tree", "plain", "single", "grouped", "whole")


def adapted(model: nn.Module, *, train_head: bool = False) -> nn.Module:
    """A model with an adapter that is far from its base; perhaps on its output embeddings, too."""
    torch.manual_seed(2)
    where = ["q_proj", "v_proj", "lm_head"] if train_head else ["q_proj", "v_proj"]
    settings = LoraConfig(target_modules=where, init_lora_weights=False, r=4, task_type="CAUSAL_LM")
    return get_peft_model(model, settings).eval()


def scorer_with(layout: str, model: nn.Module) -> Scorer:
    """A scorer that has decided for ``layout``, whatever its probe finds."""
    scorer = Scorer("tree" if layout == "tree" else "plain")
    with torch.no_grad():
        scorer(model, ragged_tree())
    if layout == "single":
        scorer._plain = SingleLayout()
    if layout == "grouped":
        scorer._grouped = GroupedLayout(scorer._plain, [6])
    if layout == "whole":
        scorer._head = WholeLogits()
    return scorer


def logits_singly(model: nn.Module, tree) -> torch.Tensor:
    """float32 [B, R, T, V], the logits that predict each response token, from unpadded rows; 0 at padding."""
    found = torch.zeros(*tree.response_ids.shape, VOCABULARY)
    rows = []
    for row, number in tree.response_mask.any(dim=2).nonzero().tolist():
        size, prompt = tree.response_sizes[row][number], tree.prompt_lengths[row]
        ids = torch.cat([tree.prompt_ids[row, :prompt], tree.response_ids[row, number, :size]])
        logits = model(input_ids=ids[None]).logits[0, prompt - 1 : -1]
        place = torch.zeros(*tree.response_ids.shape[:2], 1, 1)
        place[row, number] = 1
        rows.append(place * nn.functional.pad(logits, (0, 0, 0, found.shape[2] - size)))
    return found + sum(rows)


def brute_force(model: nn.Module, tree) -> tuple[torch.Tensor, ...]:
    """Log-probs of tokens and divergences to the base, [B, R, T] each, from whole vocabularies."""
    with torch.no_grad(), model.disable_adapter():
        reference = logits_singly(model, tree).double().log_softmax(-1)
    policy = logits_singly(model, tree).double().log_softmax(-1)
    tokens = policy.gather(-1, tree.response_ids.unsqueeze(-1)).squeeze(-1)
    forward = (reference.exp() * (reference - policy)).sum(-1)
    reverse = (policy.exp() * (policy - reference)).sum(-1)
    return tuple(torch.where(tree.response_mask, value, 0.0) for value in (tokens, forward, reverse))


def read_through(scorer: Scorer, model: nn.Module, tree) -> tuple[torch.Tensor, ...]:
    """The same by readouts."""
    with torch.no_grad(), model.disable_adapter():
        (states,) = scorer.read(model, tree, [HiddenStates()])
    vocabulary = scorer.vocabulary(model, states, model.disable_adapter)
    (values,) = scorer.read(model, tree, [DivergingLogProbs((vocabulary,), DIRECTIONS)])
    return values.unbind(dim=-1)


def gradient(model: nn.Module, value: torch.Tensor) -> torch.Tensor:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.cat([found.flatten() for found in torch.autograd.grad(value, weights, retain_graph=True)])


@pytest.mark.parametrize("train_head", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_divergences_equal_those_of_whole_vocabularies(layout, train_head, monkeypatch):
    monkeypatch.setattr(output_layers, "CHUNK_ELEMENTS", 12 * VOCABULARY)  # three positions at a time
    model, tree = adapted(build("llama"), train_head=train_head), ragged_tree(common=1)
    found = read_through(scorer_with(layout, model), model, tree)
    expected = brute_force(model, tree)
    assert expected[1].max() > 0.05, "the adapter matters"
    weights = torch.rand(tree.response_ids.shape, generator=torch.Generator().manual_seed(0))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-5, rtol=1e-5)
        ours, theirs = (gradient(model, (weights * value).sum()) for value in (one, other))
        assert (ours - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max())
    # Their sum in one backward pass, since each has a gradient of its own in store.
    ours, theirs = (gradient(model, sum((weights * v).sum() for v in values)) for values in (found, expected))
    assert (ours - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_collisions_equal_those_of_whole_vocabularies_and_have_no_gradient(layout, monkeypatch):
    monkeypatch.setattr(output_layers, "CHUNK_ELEMENTS", 12 * VOCABULARY)  # three positions at a time
    model, tree = adapted(build("llama"), train_head=layout == "tree"), ragged_tree(common=1)
    log_probs, found = scorer_with(layout, model).read(model, tree, [LogProbs(), Collisions()])
    expected = logits_singly(model, tree).double().softmax(-1).square().sum(-1).log()
    expected = torch.where(tree.response_mask, expected, 0.0)
    torch.testing.assert_close(found, expected.detach().float(), atol=1e-5, rtol=1e-5)
    assert log_probs.requires_grad
    assert not found.requires_grad


@pytest.mark.parametrize("kind", ["capped", "scaled", "gemma3_window_4"])
def test_divergences_of_other_families(kind):
    """Capped and scaled logits, tied embeddings, windows."""
    settings = {"capped": {"final_logit_softcapping": 2.0}, "scaled": {"logits_scaling": 3.0}}
    model = adapted(bent(settings[kind]) if kind in settings else build(kind))
    tree = ragged_tree()
    with torch.no_grad():
        for one, other in zip(read_through(Scorer(), model, tree), brute_force(model, tree), strict=True):
            torch.testing.assert_close(one, other.float(), atol=2e-5, rtol=1e-5)


def test_nothing_as_large_as_all_logits_is_held(monkeypatch):
    """Neither of the policy nor of the reference: no saved or returned tensor is as large as two chunks."""
    monkeypatch.setattr(output_layers, "CHUNK_ELEMENTS", 8 * VOCABULARY)
    model, tree = adapted(build("llama")), ragged_tree([4] * 4, [[9, 9]] * 4)
    scorer = scorer_with("tree", model)
    largest, logits = [], output_layers.ChunkedLayer.logits

    def measured(self, hidden):
        largest.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(output_layers.ChunkedLayer, "logits", measured)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda held: kept.append(held.shape) or held, lambda h: h):
        read_through(scorer, model, tree)[1].sum()
    assert max(largest) == 2
    weights = model.get_output_embeddings().weight.numel()
    assert max(shape.numel() for shape in kept if VOCABULARY in shape) <= weights < 72 * VOCABULARY


def test_a_divergence_needs_one_vocabulary():
    model, tree = adapted(build("llama")), ragged_tree()
    scorer = scorer_with("tree", model)
    with torch.no_grad():
        (states,) = scorer.read(model, tree, [HiddenStates()])
        other = output_layers.ChunkedLayer(nn.Linear(states.shape[-1], 7), output_layers.LogitTransform())
        vocabulary = scorer.vocabulary(model, states, nullcontext)
        object.__setattr__(vocabulary, "layer", other)
        with pytest.raises(ContractError, match=r"policy's vocabulary of \d+ tokens, but one has 7"):
            scorer.read(model, tree, [DivergingLogProbs((vocabulary,), DIRECTIONS)])


def test_divergences_where_a_token_is_impossible():
    policy = torch.tensor([0.5, 0.5, 0.0]).log().requires_grad_()
    reference = torch.tensor([0.25, 0.75, 0.0]).log()
    for direction in DIRECTIONS:
        value = divergence(policy, reference, direction)
        (slope,) = torch.autograd.grad(value, policy)
        assert value.isfinite()
        assert slope.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_read_the_last_token_of_responses_and_prompts(layout):
    model, tree = adapted(build("llama")), ragged_tree(common=1)
    head = nn.Linear(model.config.hidden_size, 2, bias=False)
    scorer = scorer_with(layout, model)
    responses, prompts, tokens = scorer.read(
        model, tree, [Outputs(head, "response"), Outputs(head, "prompt"), LogProbs()]
    )
    assert responses.shape == (*tree.response_ids.shape[:2], 2)
    torch.testing.assert_close(tokens, scorer.read(model, tree, [LogProbs()])[0])
    expected, at_prompts = torch.zeros_like(responses), torch.zeros_like(prompts)
    pieces = []
    for row, number in tree.response_mask.any(dim=2).nonzero().tolist():
        prompt = tree.prompt_ids[row, : tree.prompt_lengths[row]]
        ids = torch.cat([prompt, tree.response_ids[row, number, : tree.response_sizes[row][number]]])
        states = model.get_base_model().model(input_ids=ids[None]).last_hidden_state[0]
        expected[row, number] = head(states[-1]).detach()
        at_prompts[row] = head(states[len(prompt) - 1]).detach()
        pieces.append(head(states[-1]))
    torch.testing.assert_close(responses, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prompts, at_prompts, atol=1e-5, rtol=1e-5)
    ours, theirs = gradient(model, responses.sum()), gradient(model, sum(piece.sum() for piece in pieces))
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
