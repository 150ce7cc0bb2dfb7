"""Whole runs of a tiny policy: what a step computes, logs, saves and refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.data.formats import to_row
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.modules import DPOModule, PreferenceModule, ReferenceFreeModule, Schedule
from pl_prefopt.modules import base as module_base
from pl_prefopt.objectives import DPO, IPO, KTO, Needs, Objective, PointCE, SimPO, SrDPO
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff
from pl_prefopt.types import Outcome
from pl_prefopt.views import Mismatched
from tests.runs import lora_spec, make_datamodule, make_trainer, pair_rows, scored_rows


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def trained(module):
    return {
        name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad
    }


class Record(Callback):
    """Keeps each training step's loss."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


class Sink(Logger):
    """Keeps what is logged."""

    name = version = "sink"

    def __init__(self):
        super().__init__()
        self.seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_an_untrained_policy_has_no_margin_and_a_loss_of_ln_2(tiny_model, tmp_path):
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]))
    (metrics,) = trainer.validate(
        DPOModule(lora_spec(tiny_model), DPO()), make_datamodule(tmp_path), verbose=False
    )
    assert metrics["val/margin"] == 0
    assert metrics["val/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["val/accuracy"] == 0.5
    assert metrics["val/log_ratio_0"] == 0
    # Margins that are all zero correlate with nothing: no number instead of a made-up one.
    assert "val/pearson" not in metrics
    assert metrics["val/chosen_logp"] < -10


def test_training_learns_the_pairs_and_changes_the_adapter_only(tiny_model, tmp_path):
    torch.manual_seed(0)
    module = DPOModule(lora_spec(tiny_model), DPO(beta=0.5), optimizer=sgd)
    module.configure_model()
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), max_epochs=6)
    trainer.fit(module, make_datamodule(tmp_path, pair_rows()))
    changed = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    assert trainer.callback_metrics["val/margin"] > 0.5
    assert trainer.callback_metrics["val/loss"] < 0.5


def test_validation_does_not_depend_on_the_batch_size(tiny_model, tmp_path):
    module = DPOModule(lora_spec(tiny_model), DPO(beta=0.5), optimizer=sgd)
    ensemble = ReferenceEnsemble([AdapterOff()])
    make_trainer(tmp_path, ensemble, max_epochs=2).fit(module, make_datamodule(tmp_path, scored_rows(7)))
    results = [
        make_trainer(tmp_path, ensemble).validate(
            module, make_datamodule(tmp_path, scored_rows(7), eval_batch_size=size), verbose=False
        )[0]
        for size in (1, 3, 7)
    ]
    assert {"val/pearson", "val/spearman", "val/kendall", "val/length_bias"} <= set(results[0])
    for other in results[1:]:
        assert other == pytest.approx(results[0], abs=2e-4)


def in_order(datamodule):
    """A training loader without a shuffle, so that runs with other batch sizes see the same rows a step."""

    def loader():
        rows, size = datamodule.datasets["train"], datamodule.batch_size
        batches = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
        return DataLoader(rows, batch_size=None, sampler=batches)

    return loader


TIED = {"prompt": "Say maybe.", "responses": ["Maybe.", "Yes or no?"], "scores": [2, 2]}


@pytest.mark.parametrize("rows", [4, 6], ids=["whole batches", "a part of a batch at the end"])
def test_accumulated_steps_equal_one_large_step(tiny_model, tmp_path, rows):
    # A prompt without pairs is among the rows, so that dividing by what a batch counts would show.
    data, weights = [*scored_rows(rows - 1), TIED], []
    for size in (4, 2, 1):
        torch.manual_seed(0)
        module = DPOModule(
            lora_spec(tiny_model), DPO(beta=0.5), optimizer=lambda p: torch.optim.SGD(p, lr=0.05)
        )
        trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), accumulate_grad_batches=4 // size)
        datamodule = make_datamodule(tmp_path, data, batch_size=size)
        datamodule.train_dataloader = in_order(datamodule)
        trainer.fit(module, datamodule)
        assert trainer.global_step == -(-rows // 4)
        weights.append(trained(module))
    for other in weights[1:]:
        for name, weight in weights[0].items():
            torch.testing.assert_close(weight, other[name], atol=1e-6, rtol=1e-4)


def test_training_metrics_are_logged_over_the_steps_since_the_last_time(tiny_model, tmp_path):
    logged = {}
    for every in (1, 2):
        torch.manual_seed(0)
        module = DPOModule(lora_spec(tiny_model), DPO(), optimizer=sgd)
        trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), log_every_n_steps=every)
        sink = trainer.logger = Sink()
        trainer.fit(module, make_datamodule(tmp_path, pair_rows(6), batch_size=1))
        logged[every] = [
            metrics["train/chosen_logp"] for metrics in sink.seen if "train/chosen_logp" in metrics
        ]
    assert len(logged[1]) == 6
    pairs = zip(logged[1][::2], logged[1][1::2], strict=True)
    assert logged[2] == pytest.approx([(first + second) / 2 for first, second in pairs])


def test_the_schedule_warms_up_over_a_share_of_the_steps(tiny_model, tmp_path):
    module = DPOModule(
        lora_spec(tiny_model), DPO(), optimizer=sgd, schedule=Schedule(name="linear", warmup=0.5)
    )
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), Watch())
    trainer.fit(module, make_datamodule(tmp_path, pair_rows(8)))
    assert rates == pytest.approx([0, 0.25, 0.5, 0.25])


def test_an_unknown_schedule_lists_the_known_ones(tiny_model, tmp_path):
    module = DPOModule(lora_spec(tiny_model), DPO(), optimizer=sgd, schedule=Schedule(name="cosinus"))
    with pytest.raises(ConfigError, match=r"cosine.*got 'cosinus'"):
        make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()])).fit(module, make_datamodule(tmp_path))


@pytest.mark.parametrize(
    ("objective", "count", "message"),
    [(DPO(), 0, "exactly 1"), (DPO(), 2, "exactly 1"), (KTO(), 0, "exactly 1")],
)
def test_a_wrong_number_of_references_is_refused_before_any_model_loads(
    tiny_model, tmp_path, monkeypatch, objective, count, message
):
    monkeypatch.setattr(module_base, "build_policy", lambda spec: pytest.fail("the model was loaded"))
    module = DPOModule(lora_spec(tiny_model), objective)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()] * count))
    with pytest.raises(ContractError, match=f"{message}.*references.members has {count}"):
        trainer.fit(module, make_datamodule(tmp_path))


def test_without_the_callback_a_missing_reference_is_refused_too(tiny_model, tmp_path):
    with pytest.raises(ContractError, match="DPO needs exactly 1"):
        make_trainer(tmp_path).fit(DPOModule(lora_spec(tiny_model), DPO()), make_datamodule(tmp_path))


def test_pairs_are_missing_in_unpaired_rows(tiny_model, tmp_path):
    rows = [{"prompt": "Say yes.", "completion": f"Yes {n}.", "label": bool(n % 2)} for n in range(4)]
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]))
    with pytest.raises(ContractError, match=r"none of the 4 train rows has two responses"):
        trainer.fit(DPOModule(lora_spec(tiny_model), DPO()), make_datamodule(tmp_path, rows))


GRADES = [{"prompt": f"Say {n}.", "responses": [f"{n}", "No."], "scores": [n % 10 + 1, 1]} for n in range(12)]
LABELS = [{"prompt": f"Say {n}.", "completion": f"{n}", "label": True} for n in range(6)]
UNSCORED = [{"prompt": f"Say {n}.", "responses": [f"{n}", "No."]} for n in range(6)]


@pytest.mark.parametrize(
    ("rows", "objective", "message"),
    [
        (
            GRADES,
            KTO(),
            r"all 12 train rows they are desirable: scores run from 1 to 10, .*desirable_above is 0.5; "
            r"set .*desirable_above between them, such as to 5.5, or set undesirable_weight to 0",
        ),
        (
            GRADES,
            KTO(desirable_above=10.0),
            r"they are undesirable: .*such as to 5.5, or set desirable_weight",
        ),
        (LABELS, KTO(), r"they are desirable: scores run from 1 to 1, .* add rows that are undesirable, or"),
        (UNSCORED, KTO(), r"learns from scores or labels, but none of the 6 train rows has one"),
        (UNSCORED, PointCE(), r"learns from scores or labels, but none of the 6 train rows has one"),
        (
            [{"prompt": "Hi.", "completion": f"{n}", "label": bool(n)} for n in range(2)],
            KTO(),
            "all 2 train rows have the same prompt: add rows with other prompts",
        ),
    ],
)
def test_rows_that_teach_nothing_are_refused_before_a_model_loads(
    tiny_model, tmp_path, monkeypatch, rows, objective, message
):
    monkeypatch.setattr(module_base, "build_policy", lambda spec: pytest.fail("the model was loaded"))
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]))
    with pytest.raises(ContractError, match=message):
        trainer.fit(PreferenceModule(lora_spec(tiny_model), objective), make_datamodule(tmp_path, rows))


@pytest.mark.parametrize(
    ("rows", "objective"), [(LABELS, KTO(undesirable_weight=0.0)), (GRADES, KTO(desirable_above=5.0))]
)
def test_rows_of_one_kind_are_fine_where_the_other_has_no_weight(rows, objective):
    made = [to_row(fields) for fields in rows]
    objective.check_training_rows(made)


def test_unpaired_rows_train_kto(tiny_model, tmp_path):
    rows = [{"prompt": f"Say yes {n}.", "completion": f"Yes {n}.", "label": bool(n % 2)} for n in range(4)]
    record, module = Record(), DPOModule(lora_spec(tiny_model), KTO(), optimizer=sgd)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), record, max_epochs=3)
    trainer.fit(module, make_datamodule(tmp_path, rows))
    assert record.losses[0] == pytest.approx(0.5, abs=1e-6)
    assert trainer.callback_metrics["val/loss"] < 0.499
    assert trainer.callback_metrics["val/kl"] >= 0


def test_reference_free_objectives_run_without_and_with_references_to_watch(tiny_model, tmp_path):
    module = ReferenceFreeModule(lora_spec(tiny_model), SimPO(), optimizer=sgd)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, make_datamodule(tmp_path))
    assert "val/log_ratio_0" not in trainer.callback_metrics
    watched = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]))
    (metrics,) = watched.validate(module, make_datamodule(tmp_path), verbose=False)
    assert metrics["val/log_ratio_0"] != 0


class TwoReferencesAndAView(Objective):
    """Asks for everything that the contract can carry."""

    def __init__(self):
        super().__init__()
        self.seen = []

    @property
    def needs(self):
        return Needs(min_references=2, max_references=2, views={"next": Mismatched()})

    def forward(self, batch):
        self.seen.append(batch)
        counted = batch.present.any(-1)
        return Outcome(loss=-batch.policy.mean.sum(-1), counted=counted, reward=batch.policy.sum.detach())


def test_two_references_and_a_second_view_arrive(tiny_model, tmp_path):
    objective = TwoReferencesAndAView()
    module = PreferenceModule(lora_spec(tiny_model), objective, optimizer=sgd)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff(), AdapterOff()]), limit_train_batches=1)
    trainer.fit(module, make_datamodule(tmp_path, scored_rows(4)))
    first = objective.seen[0]
    assert first.references.shape == (2, *first.present.shape)
    torch.testing.assert_close(first.references[0], first.policy.sum.detach(), atol=1e-5, rtol=0)
    view = first.views["next"]
    assert view.references.shape == (2, *view.present.shape)
    assert not view.policy.sum.requires_grad
    assert first.policy.sum.requires_grad


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_references_and_scores_stay_float32_in_half_precision(tiny_model, tmp_path, precision):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(
                (batch.references["plain"].dtype, batch.scores.dtype, batch.scores.nan_to_num().max().item())
            )

    rows = [{**row, "scores": [score + 0.31 for score in row["scores"]]} for row in scored_rows()]
    module = DPOModule(lora_spec(tiny_model), DPO(), optimizer=sgd)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), Watch(), precision=precision)
    trainer.fit(module, make_datamodule(tmp_path, rows))
    assert {kinds[:2] for kinds in seen} == {(torch.float32, torch.float32)}
    assert all(round(score % 1, 4) == 0.31 for *_, score in seen)
    totals = [metric.total for metric in module.suites["val_stage"].values() if hasattr(metric, "total")]
    assert totals
    assert {total.dtype for total in totals} == {torch.float32}


def test_a_checkpoint_holds_the_adapter_only_and_continues_a_run(tiny_model, tmp_path):
    def fit(epochs, checkpoint=None):
        torch.manual_seed(0)
        module = DPOModule(lora_spec(tiny_model), DPO(beta=0.5), optimizer=sgd)
        trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), max_epochs=epochs)
        trainer.fit(module, make_datamodule(tmp_path), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        return trained(module)

    whole = fit(2)
    fit(1)
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert all("lora_" in name for name in saved["state_dict"])
    assert len(saved["state_dict"]) == len(whole)
    for name, weight in fit(2, tmp_path / "run.ckpt").items():
        assert torch.equal(weight, whole[name])


@pytest.mark.parametrize(
    ("spec", "objective", "message"),
    [
        ({}, IPO(), "made with method 'DPO', but this run has 'IPO'"),
        ({"lora": {"r": 2, "target_modules": "all-linear"}}, DPO(), "made with policy.lora"),
        ({"lora": {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}}, DPO(), "made with policy.lora"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tiny_model, tmp_path, spec, objective, message):
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), limit_train_batches=1)
    trainer.fit(DPOModule(lora_spec(tiny_model), DPO()), make_datamodule(tmp_path))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    other = PolicySpec(**{"name": str(tiny_model), "lora": lora_spec(tiny_model).lora, **spec})
    again = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]))
    with pytest.raises(ConfigError, match=message):
        again.fit(DPOModule(other, objective), make_datamodule(tmp_path), ckpt_path=tmp_path / "run.ckpt")


def test_the_checkpoint_of_a_fully_trained_model_is_whole(tiny_model, tmp_path):
    module = ReferenceFreeModule(PolicySpec(name=str(tiny_model)), SimPO(), optimizer=sgd)
    trainer = make_trainer(tmp_path, limit_train_batches=1)
    trainer.fit(module, make_datamodule(tmp_path))
    assert set(module.state_dict()) == set(trained(module))
    assert isinstance(module.policy, nn.Module)


@pytest.mark.parametrize("objective", [KTO, SrDPO])
def test_second_views_read_what_the_first_pass_left_and_change_nothing(objective, tiny_model, tmp_path):
    rows: list = pair_rows(6)
    for number, row in enumerate(rows):
        texts = [f"{number} times hello!", "Good day to you.", row["prompt"]]
        roles = ["user", "assistant", "user"]
        row["prompt"] = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    datamodule = make_datamodule(tmp_path, rows)
    module = PreferenceModule(lora_spec(tiny_model), objective(), optimizer=sgd)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), limit_train_batches=1)
    trainer.fit(module, datamodule=datamodule)
    batch, computed, scored = datamodule.datasets["train"].batch([0, 2, 4]), [], []
    with torch.no_grad():
        module.score(batch)  # which keeps what the reference answers
    module.policy.get_input_embeddings().register_forward_hook(lambda *seen: computed.append(seen[1][0]))
    for module.scorer._remembers in (True, False):
        with torch.no_grad():
            scored.append(module.score(batch))
    (name,) = module.views
    _, after_history, _, from_the_start = (ids.numel() for ids in computed)
    assert after_history < from_the_start
    torch.testing.assert_close(scored[0].views[name].policy.sum, scored[1].views[name].policy.sum)
    torch.testing.assert_close(scored[0].policy.sum, scored[1].policy.sum)


def test_a_weight_counts_as_that_many_rows_however_the_step_is_divided(tiny_model, tmp_path):
    first, second = pair_rows(2)

    def weights_after(name, rows, lr, **options):
        batches = {"batch_size": options.pop("batch_size")}
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        module = DPOModule(
            lora_spec(tiny_model), DPO(beta=0.5), optimizer=lambda held: torch.optim.SGD(held, lr=lr)
        )
        trainer = make_trainer(tmp_path / name, ReferenceEnsemble([AdapterOff()]), max_steps=1, **options)
        trainer.fit(module, make_datamodule(tmp_path / name, rows, **batches))
        return trained(module)

    # The mean of 3 l1 + l2 over two prompts is twice the mean over l1, l1, l1, l2.
    weighted = [first | {"weight": 3}, second]
    repeated = weights_after("repeated", [first] * 3 + [second], 1.0, batch_size=4)
    for name, options in (
        ("one batch", {"batch_size": 2}),
        ("two batches", {"batch_size": 1, "accumulate_grad_batches": 2}),
    ):
        found = weights_after(name, weighted, 0.5, **options)
        for key, held in repeated.items():
            torch.testing.assert_close(found[key], held, atol=1e-6, rtol=1e-5)
        assert any(held.abs().max() > 0 for key, held in found.items() if "lora_B" in key)


def test_a_token_without_an_embedding_is_named_before_a_model_loads(tiny_model, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [row | {"chosen": "It is <new>."} for row in pair_rows(2)]
    data = make_datamodule(tmp_path, rows, tokenizer=str(tmp_path / "tokenizer"))
    monkeypatch.setattr(module_base, "build_policy", None)
    new = len(tokenizer) - 1
    with pytest.raises(
        ConfigError, match=rf"token {new} \('<new>'\), but .* for only {new} tokens: .*resize_"
    ):
        make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()])).fit(
            DPOModule(lora_spec(tiny_model), DPO()), data
        )


def test_an_evaluation_that_raised_leaves_no_step(tiny_model):
    loop = SimpleNamespace(_batches_that_stepped=7)
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="validate"), ckpt_path="a.ckpt", fit_loop=SimpleNamespace(epoch_loop=loop)
    )
    module = DPOModule(lora_spec(tiny_model), DPO())
    module._logged_step.begin(trainer, 3)
    assert loop._batches_that_stepped == 3
    with pytest.raises(RuntimeError, match="not attached"):
        module.setup("fit")
    assert loop._batches_that_stepped == 7
