"""Methods outside the repository: one file and one YAML each, against plain computations."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn.functional import logsigmoid

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.modules import DPOModule, ReferenceFreeModule
from pl_prefopt.objectives import TDPO2
from pl_prefopt.policies import FourBit
from pl_prefopt.references import AdapterOff, PrecomputedTable
from tests.cli import plugins
from tests.cli.test_commands import CONFIGS
from tests.runs import (
    NO_TEXTS,
    lora_spec,
    make_datamodule,
    make_trainer,
    metrics_of,
    pair_rows,
    scored_rows,
    write_rows,
)

METHODS = {
    "my_ranking": (plugins.RANKING, plugins.RANKING_YAML),
    "my_tdpo": (plugins.TDPO2, plugins.TDPO2_YAML),
    "my_reward": (plugins.BRADLEY_TERRY, plugins.BRADLEY_TERRY_YAML),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the methods' files."""
    for name, (code, settings) in METHODS.items():
        (tmp_path / f"{name}.py").write_text(code)
        (tmp_path / f"{name}.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in METHODS:
        sys.modules.pop(name, None)


def load(folder, module, name):
    sys.path.insert(0, str(folder))
    return getattr(importlib.import_module(module), name)


def run_of(name, tiny_model, rows):
    """Settings of a run in a folder of the method's name."""
    files = (CONFIGS / "base.yaml", f"{name}.yaml", CONFIGS / "hardware" / "cpu.yaml")
    settings = [word for file in files for word in ("-c", file)]
    settings += ["--data.train", rows, "--data.held_out", "2", "--model.init_args.policy.name", tiny_model]
    return [*settings, *NO_TEXTS, "--run_dir", name]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_validates_resumes_and_predicts(name, folder, tiny_model, prefopt):
    rows = write_rows(folder / "rows.jsonl", scored_rows(8))
    prefopt("fit", *run_of(name, tiny_model, rows), "--trainer.max_epochs", "1")
    trained = metrics_of(folder / name)
    prefopt(
        "validate",
        "-c",
        f"{name}/config.yaml",
        "--ckpt_path",
        f"{name}/checkpoints/last.ckpt",
        "--run_dir",
        "again",
    )
    assert metrics_of(folder / "again")["val/loss"] == pytest.approx(trained["val/loss"], rel=1e-5)
    prefopt("predict", "-c", f"{name}/config.yaml", "--ckpt_path", "last", "--data.predict", rows)
    prefopt("fit", "-c", f"{name}/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert metrics_of(folder / name)["val/loss"] != trained["val/loss"]


class Keep(Callback):
    """Keeps what the objective was given and what it returned."""

    def __init__(self):
        self.seen = []

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen.append((batch, *outputs))


def randomised(module):
    """Put the policy's adapter far from its base once it is there."""
    configure = module.configure_model

    def configure_model():
        configure()
        torch.manual_seed(3)
        with torch.no_grad():
            for name, weight in module.policy.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)

    module.configure_model = configure_model
    return module


def whole_logits(model, tree, row, number):
    """The logits that predict a response, float64 [T, V], from one unpadded row."""
    size, prompt = tree.response_sizes[row][number], tree.prompt_lengths[row]
    response = tree.response_ids[row, number, :size]
    ids = torch.cat([tree.prompt_ids[row, :prompt], response])
    return model(input_ids=ids[None]).logits[0, prompt - 1 : -1].double().log_softmax(-1), response


@pytest.mark.parametrize(
    "settings",
    [{}, {"four_bit": FourBit(compute="float32")}, {"gradient_checkpointing": True}],
    ids=["plain", "4 bits", "checkpointed"],
)
def test_tdpo2_equals_brute_force_in_float64(folder, tiny_model, settings):
    """Value and gradient, on lists and trees, from the whole vocabularies of single rows."""
    objective = load(folder, "my_tdpo", "TDPO2")(beta=0.3, alpha=0.7)
    module, keep = randomised(DPOModule(lora_spec(tiny_model, **settings), objective)), Keep()
    trainer = make_trainer(folder, ReferenceEnsemble([AdapterOff()]), keep, inference_mode=False)
    trainer.validate(module, make_datamodule(folder, scored_rows(4), batch_size=4), verbose=False)
    ((batch, scored, outcome),) = keep.seen
    del scored
    tree, model = batch.trees["plain"], module.policy
    losses = []
    with torch.enable_grad():
        for row, sizes in enumerate(tree.response_sizes):
            ratios, divergences = [], []
            for number in range(len([size for size in sizes if size])):
                policy, response = whole_logits(model, tree, row, number)
                with torch.no_grad(), model.disable_adapter():
                    reference, _ = whole_logits(model, tree, row, number)
                taken = (policy - reference).gather(-1, response[:, None])
                ratios.append(taken.sum())
                divergences.append((reference.exp() * (reference - policy)).sum())
            scores = batch.scores[row]
            pairs = [
                -logsigmoid(0.3 * (ratios[i] - ratios[j] - 0.7 * (divergences[j] - divergences[i].detach())))
                for i in range(len(ratios))
                for j in range(len(ratios))
                if scores[i] > scores[j]
            ]
            losses.append(sum(pairs) / max(1, len(pairs)))
        expected = torch.stack([torch.as_tensor(loss, dtype=torch.float64) for loss in losses])
        again = module.score(batch)
        found = objective(again).loss
        torch.testing.assert_close(TDPO2(beta=0.3, alpha=0.7)(again).loss, found)  # the package's own
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        ours, theirs = (
            torch.cat([one.double().flatten() for one in torch.autograd.grad(value.sum(), weights)])
            for value in (found, expected)
        )
    assert min(d.item() for d in divergences) > 1e-3, "policy and reference differ"
    torch.testing.assert_close(outcome.loss.double(), expected.detach(), atol=1e-6, rtol=1e-6)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_a_table_can_not_give_a_divergence(folder, tiny_model):
    objective = load(folder, "my_tdpo", "TDPO2")()
    (folder / "table").mkdir()
    for ensemble, said in (
        (
            ReferenceEnsemble([PrecomputedTable(str(folder / "table"))]),
            "PrecomputedTable gives one log-prob per",
        ),
        (ReferenceEnsemble([AdapterOff()], precompute=True), "set references.precompute to false"),
    ):
        module = DPOModule(lora_spec(tiny_model), objective)
        with pytest.raises(Exception, match=said):
            make_trainer(folder, ensemble).validate(module, make_datamodule(folder), verbose=False)
        assert not hasattr(module, "policy"), "refused before a model loads"


def test_a_reward_is_the_heads_output_at_the_last_token_and_is_kept(folder, tiny_model):
    objective = load(folder, "my_reward", "BradleyTerry")()
    module, keep = randomised(ReferenceFreeModule(lora_spec(tiny_model), objective)), Keep()
    trainer = make_trainer(folder, keep, max_epochs=2)
    datamodule = make_datamodule(folder, pair_rows(4), batch_size=4)
    trainer.fit(module, datamodule)
    keep.seen.clear()
    trainer.validate(module, datamodule, verbose=False)
    ((batch, _, outcome),) = keep.seen
    tree, head = batch.trees["plain"], module.heads["reward"]
    with torch.no_grad():
        for row, sizes in enumerate(tree.response_sizes):
            for number, size in enumerate(sizes):
                prompt = tree.prompt_ids[row, : tree.prompt_lengths[row]]
                ids = torch.cat([prompt, tree.response_ids[row, number, :size]])
                states = module.policy.get_base_model().model(input_ids=ids[None]).last_hidden_state
                torch.testing.assert_close(outcome.reward[row, number], head(states[0, -1])[0])
    trainer.save_checkpoint(folder / "run.ckpt")
    kept = torch.load(folder / "run.ckpt", weights_only=True)
    assert torch.equal(kept["state_dict"]["heads.reward.weight"], head.weight)
    momenta = kept["optimizer_states"][0]["state"].values()
    assert head.weight.shape in [state["exp_avg"].shape for state in momenta], "the head is trained"
