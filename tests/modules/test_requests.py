"""What objectives may ask for: numbers per token without references, and second views with gradient."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.errors import ConfigError
from pl_prefopt.keywords import without_keywords
from pl_prefopt.modules import PreferenceModule, ReferenceFreeModule
from pl_prefopt.objectives import Compose, DegreeClassification, Needs, ReferenceFreeObjective, SumLogProb
from pl_prefopt.requests import LinearHead, TokenRequest
from pl_prefopt.types import Outcome
from pl_prefopt.views import QualityPrompt
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows, scored_rows


class Likelihood(ReferenceFreeObjective):
    """The mean negative log-prob of responses; on a second view, or of single tokens, if told to."""

    def __init__(self, *, view="", trained=True, tokens=False):
        super().__init__()
        self.view, self.trained, self.tokens = view, trained, tokens

    @property
    def needs(self):
        return Needs(
            views={"quality": QualityPrompt(text="Be kind.")} if self.view else {},
            trained_views=frozenset(["quality"] if self.view and self.trained else []),
            tokens=TokenRequest() if self.tokens else None,
        )

    def forward(self, batch):
        sums = batch.views["quality"].policy.sum if self.view else batch.policy.sum
        if self.tokens:
            assert batch.tokens.policy.shape == batch.tokens.counted.shape
            assert batch.tokens.references.shape[0] == 0
            assert not batch.tokens.kl
            sums = batch.tokens.policy.sum(dim=-1)
        if self.view and not self.trained:
            assert not sums.requires_grad
            sums = sums + 0 * batch.policy.sum
        loss = -torch.where(batch.present, sums, 0.0).sum(dim=-1) / batch.present.sum(dim=-1)
        return Outcome(loss=loss, counted=batch.present.any(dim=-1), reward=sums.detach())


def gradients(folder, tiny_model, objective, rows=None, **settings):
    """The losses of one step and the gradient of what is trained."""
    torch.manual_seed(0)
    found = []

    def sgd(weights):
        weights = list(weights)

        class Keep(torch.optim.SGD):
            def step(self, closure=None):
                loss = closure()
                found.append((loss.detach(), torch.cat([w.grad.flatten() for w in weights])))

        return Keep(weights, lr=0.1)

    module = ReferenceFreeModule(lora_spec(tiny_model, **settings), objective, optimizer=sgd)
    trainer = make_trainer(folder, limit_val_batches=0, max_steps=1)
    trainer.fit(module, make_datamodule(folder, rows or scored_rows(4), batch_size=4))
    return found[0]


def test_a_second_view_with_gradient_trains_like_the_rows_themselves(tiny_model, tmp_path):
    rows = scored_rows(4)
    augmented = [{**row, "prompt": f"Be kind. {row['prompt']}"} for row in rows]
    loss, slope = gradients(tmp_path, tiny_model, Likelihood(view="quality"), rows)
    expected, at = gradients(tmp_path, tiny_model, Likelihood(), augmented)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert (slope - at).abs().max() < 1e-4 * at.abs().max()
    _, flat = gradients(tmp_path, tiny_model, Likelihood(view="quality", trained=False), rows)
    assert not flat.any()


def test_log_probs_of_tokens_add_up_with_the_same_gradient(tiny_model, tmp_path):
    loss, slope = gradients(tmp_path, tiny_model, Likelihood(tokens=True))
    expected, at = gradients(tmp_path, tiny_model, Likelihood())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(slope, at)


def test_needs_of_several_are_united_or_contradict_each_other():
    first = Needs(tokens=TokenRequest(kl=("reverse",)), heads={"reward": LinearHead()})
    second = Needs(tokens=TokenRequest(kl=("forward",)), trained_views=frozenset(["why"]))
    both = Needs.of_all(first, second, Needs())
    assert both.tokens == TokenRequest(kl=("forward", "reverse"))
    assert both.heads == {"reward": LinearHead()}
    assert both.trained_views == {"why"}
    assert Needs.of_all(Needs()).tokens is None
    with pytest.raises(ConfigError, match="two ask for a head 'reward', with different settings"):
        Needs.of_all(first, Needs(heads={"reward": LinearHead(outputs=2)}))
    for wrong, said in (
        (lambda: TokenRequest(kl=("both",)), "'forward' or 'reverse', got 'both'"),
        (lambda: LinearHead(outputs=0), "at least 1, got 0"),
        (lambda: LinearHead(at="start"), "'response' or 'prompt', got 'start'"),
    ):
        with pytest.raises(ConfigError, match=said):
            wrong()


def test_two_ensembles_are_refused(tiny_model, tmp_path):
    module = ReferenceFreeModule(lora_spec(tiny_model), Likelihood())
    trainer = make_trainer(tmp_path, ReferenceEnsemble(), ReferenceEnsemble())
    with pytest.raises(ConfigError, match=r"Expected one ReferenceEnsemble .* got 2"):
        trainer.validate(module, make_datamodule(tmp_path), verbose=False)


def test_a_head_reads_second_views_as_it_would_read_them_as_rows(tiny_model, tmp_path):
    """And what it says of them trains it: SPO's degrees."""
    rows = pair_rows(3)
    left = [
        {**row, **{name: without_keywords(row[name], 0.5) for name in ("chosen", "rejected")}} for row in rows
    ]
    objective = Compose(score=SumLogProb(beta=0.0001), terms=[DegreeClassification(1.0, [0.5])])
    module = PreferenceModule(lora_spec(tiny_model), objective)
    data = make_datamodule(tmp_path, rows, batch_size=3)
    make_trainer(tmp_path, limit_val_batches=0, max_steps=1).fit(module, data)
    (tmp_path / "left").mkdir()
    other = make_datamodule(tmp_path / "left", left, batch_size=3, tokenizer=str(tiny_model))
    other.prepare_data()
    other.setup("fit")
    module.eval()
    scored = module.score(data.datasets["train"].batch(range(3)))
    tokens = other.datasets["train"].batch(range(3)).trees["plain"]
    (expected,) = module.scorer.read(module.policy, tokens, list(module.head_readouts().values()))
    found = scored.views["degree_1"].outputs["degree"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - scored.outputs["degree"]).abs().max() > 1e-3
    module.zero_grad()
    objective(scored).loss.sum().backward()
    assert module.heads["degree"].weight.grad.abs().max() > 0
