"""What arrives on each dashboard, and that asking for it changes nothing."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard import plugin_util
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from pl_prefopt.callbacks import (
    DashboardLayout,
    Generations,
    MarginHistogram,
    PairedTensorBoard,
    ProgressBar,
    ReferenceEnsemble,
    ResultsTable,
    Throughput,
    publishing,
)
from pl_prefopt.callbacks.dashboard_layout import layout_of
from pl_prefopt.callbacks.results_table import results_table
from pl_prefopt.errors import ConfigError, ContractError
from pl_prefopt.metrics import REGISTRY, Margins
from pl_prefopt.modules import DPOModule
from pl_prefopt.objectives import DPO, MRPO
from pl_prefopt.policies import PolicySpec
from pl_prefopt.references import AdapterOff
from pl_prefopt.types import PLAIN, TokenTree
from tests.report.folders import SPITE
from tests.runs import LORA, lora_spec, make_datamodule, make_trainer, pair_rows, scored_rows

PROMPTS = ["Say <b>yes</b>.", "Where is Paris?"]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def dashboards(**settings):
    return (
        DashboardLayout(),
        MarginHistogram(),
        Generations(PROMPTS, **{"max_new_tokens": 4, **settings}),
        Throughput(),
    )


def fit(model, folder, *callbacks, spec=None, rows=None, checkpoint=None, **settings):
    torch.manual_seed(0)
    module = DPOModule(spec or lora_spec(model), DPO(beta=0.5), optimizer=sgd)
    trainer = make_trainer(folder, ReferenceEnsemble([AdapterOff()]), *callbacks, **settings)
    trainer.fit(module, make_datamodule(folder, rows or pair_rows()), ckpt_path=checkpoint)
    return trainer


def test_the_layout_waits_for_training_metrics():
    shown = []
    layout = DashboardLayout()
    layout._publish = lambda trainer, module: shown.append(trainer.global_step)
    for step in (0, 3):  # the first is a validation before training
        state = SimpleNamespace(fn="fit")
        layout.on_validation_end(SimpleNamespace(state=state, sanity_checking=False, global_step=step), None)
    assert shown == [3]


@pytest.fixture(scope="module")
def written(tiny_model, tmp_path_factory):
    """The run of a TensorBoard and a CSV logger: its events, and its folder."""
    folder = tmp_path_factory.mktemp("dashboards")
    loggers = [cls(save_dir=str(folder), name="run", version="") for cls in (PairedTensorBoard, CSVLogger)]
    fit(tiny_model, folder, *dashboards(), logger=loggers, max_epochs=2)
    return events_of(folder / "run"), folder / "run"


def events_of(folder):
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "histograms": 0}).Reload()


def text_of(events, tag):
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]


def test_tensorboard_gets_layout_texts_histograms_and_speed(written):
    events, _ = written
    tables = text_of(events, "generations/text_summary")
    assert len(tables) == 2  # one a validation
    assert "<th>before</th><th>now</th>" in tables[0]
    # A text's own signs are shown and not obeyed.
    assert "Say &lt;b&gt;yes&lt;/b&gt;." in tables[0]
    first, last = (event.histogram_value for event in events.Histograms("val/margins"))
    assert first.num == last.num == 6
    assert last.sum / last.num == pytest.approx(events.Scalars("val/margin")[-1].value, rel=1e-5)
    assert all(event.value > 0 for event in events.Scalars("train/tokens_per_second"))


def test_tensorboard_s_layout_has_no_empty_charts_and_sides_are_runs_of_their_own(written):
    """TensorBoard colours by run, so that two curves of one run look alike."""
    events, folder = written
    layout = layout_pb2.Layout.FromString(
        events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    charts = {chart.title: chart.multiline.tag for page in layout.category for chart in page.chart}
    assert charts["chosen against rejected reward, validation"] == ["val/reward$"]
    assert {"accuracy", "tokens per second"} <= charts.keys()
    sides = [events_of(folder / side) for side in ("chosen", "rejected")]
    tags = {tag for run in (events, *sides) for tag in run.Tags()["scalars"]}
    empty = {title for title, found in charts.items() if not any(re.match(p, t) for p in found for t in tags)}
    assert empty == set(), "the pairs have no grades and no fourth response"
    for run, side in zip(sides, ("chosen", "rejected"), strict=True):
        for shared in ("val/reward", "val/logp", "train/reward"):
            stage, what = shared.split("/")
            whole = events.Scalars(f"{stage}/{side}_{what}")
            assert [(one.step, one.value) for one in run.Scalars(shared)] == [
                (one.step, one.value) for one in whole
            ]


class Shown(HTMLParser):
    """The tags of a page, and its text with a line's end for each ``<br>``."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not attrs
        if tag == "td":
            self.cells.append("")
        if tag == "br":
            self.cells[-1] += "\n"

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_tensorboard_shows_what_prompts_and_answers_hold_as_text(tmp_path):
    """By TensorBoard's own rendering, which takes texts for Markdown with HTML in it."""
    texts = [
        SPITE,
        "**a** [b](javascript:alert(1)) ![c](https://example.com/c.png) <!-- d --> `e` &lt;f&gt;",
        "</td></tr></table>\n\n# a\n\n<iframe src=x></iframe>\n\n```\n<b>\n```",
        "a\n\n\n- b\n- c\n\n    <i>d</i>",
    ]
    logger = TensorBoardLogger(save_dir=str(tmp_path), name="run", version="")
    rows = [(text, text[::-1], text) for text in texts]
    publishing.publish_table(
        logger, "generations", publishing.TextTable(("prompt", "before", "now"), rows), 1
    )
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"tensors": 0}).Reload()
    (table,) = text_of(events, "generations/text_summary")
    shown = Shown(plugin_util.markdown_to_safe_html(table))
    assert set(shown.tags) == {"table", "thead", "tbody", "tr", "th", "td", "br"}
    assert shown.cells == [text for row in rows for text in row]


def test_csv_files_hold_the_same(written):
    _, folder = written
    with (folder / "generations.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == PROMPTS * 2
    assert [row["step"] for row in rows] == ["3", "3", "6", "6"]
    # What was written before training stays, and training changed what is written now.
    assert [row["before"] for row in rows[:2]] == [row["before"] for row in rows[2:]]
    assert any(row["before"] != row["now"] for row in rows)
    with (folder / "val-margins.csv").open(encoding="utf-8") as file:
        bins = list(csv.DictReader(file))
    assert sum(int(each["count"]) for each in bins) == 12


def test_the_layout_shows_curves_that_exist_and_names_them_well(written):
    events, _ = written
    logged = [name for name in events.Tags()["scalars"] if name.startswith(("train/", "val/"))]
    infos = (*REGISTRY, *MRPO().stats)
    layout = layout_of(infos, (Throughput(), LearningRateMonitor()))
    patterns = [p for charts in layout.values() for chart in charts.values() for p in chart]
    known = [
        f"{stage}/{info.name.format(k=0, view='quality')}"
        for info in infos
        for stage in ("train", "val")
        if info.is_logged_in(stage)
    ]
    names = {*known, "lr-AdamW", "train/tokens_per_second"}
    assert {name for name in names if not any(re.match(pattern, name) for pattern in patterns)} == set()
    assert [p for p in patterns if not any(re.match(p, name) for name in names)] == []
    assert {name for name in logged if not any(re.match(p, name) for p in patterns)} == set()
    assert layout["Pairs"]["chosen against rejected reward, validation"] == [
        "val/chosen_reward$",
        "val/rejected_reward$",
    ]
    assert layout["Pairs"]["accuracy"] == ["train/accuracy$", "val/accuracy$"]
    assert layout["Of the objective"]["weight of each reference"] == [
        r"train/alpha_\d+$",
        r"val/alpha_\d+$",
    ]


def test_training_is_bitwise_the_same_with_all_dashboards(tiny_model, tmp_path):
    spec = PolicySpec(name=str(tiny_model), lora={**LORA, "lora_dropout": 0.4})  # draws random numbers
    weights, modes = [], []
    for callbacks in ((), (*dashboards(), ResultsTable(), ProgressBar())):
        trainer = fit(
            tiny_model,
            tmp_path,
            *callbacks,
            spec=spec,
            max_epochs=2,
            val_check_interval=1,
            enable_progress_bar=True,
            logger=CSVLogger(tmp_path, name=str(len(callbacks))),
        )
        module = trainer.lightning_module
        weights.append({name: weight for name, weight in module.named_parameters() if weight.requires_grad})
        modes.append([part.training for part in module.policy.modules()])
    assert (tmp_path / "6" / "version_0" / "generations.csv").is_file()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert modes[0] == modes[1]


def test_texts_before_training_survive_a_stop(tiny_model, tmp_path, capsys):
    def run(name, checkpoint=None, epochs=1):
        trainer = fit(
            tiny_model,
            tmp_path,
            Generations(PROMPTS, max_new_tokens=4),
            logger=CSVLogger(tmp_path, name=name, version=""),
            max_epochs=epochs,
            checkpoint=checkpoint,
        )
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        with (tmp_path / name / "generations.csv").open(encoding="utf-8") as file:
            return [row["before"] for row in csv.DictReader(file)][-2:]

    first = run("first")
    assert run("second", tmp_path / "first.ckpt", 2) == first
    assert "no texts from before" not in capsys.readouterr().out
    fit(tiny_model, tmp_path).save_checkpoint(tmp_path / "without.ckpt")
    run("third", tmp_path / "without.ckpt", 2)
    assert "no texts from before training: 'before' is step 3" in capsys.readouterr().out


def test_held_out_prompts_are_the_default_and_answers_are_those_of_plain_transformers(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fit(tiny_model, tmp_path, Generations(held_out=2, max_new_tokens=5), logger=CSVLogger(tmp_path, name=""))
    with (tmp_path / "version_0" / "generations.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in pair_rows(2)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for row in rows:
        asked = [{"role": "user", "content": row["prompt"]}]
        ids = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answer = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert row["before"] == tokenizer.decode(answer, skip_special_tokens=True).strip()


def test_a_logger_of_another_kind_gets_scalars_and_one_sentence(tiny_model, tmp_path, capsys):
    class Other(Logger):
        name = version = "other"
        seen = ()

        def log_metrics(self, metrics, step=None):
            self.seen = {*self.seen, *metrics}

        def log_hyperparams(self, *args, **kwargs):
            pass

    other = Other()
    fit(tiny_model, tmp_path, *dashboards(), logger=other, max_epochs=2)
    assert {"train/loss", "val/accuracy", "train/tokens_per_second"} <= other.seen
    assert capsys.readouterr().out.count("Other gets scalars only") == 1


def test_a_logger_can_be_taught(tiny_model, tmp_path):
    class Taught(CSVLogger):
        pass

    tables = []
    publishing.publish_table.register(Taught)(lambda logger, name, table, step: tables.append(table))
    fit(tiny_model, tmp_path, *dashboards(), logger=Taught(tmp_path))
    assert [row[0] for row in tables[0].rows] == PROMPTS


def test_wandb_offline(tiny_model, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is not installed: pip install 'pl-prefopt[loggers]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="test")
    fit(tiny_model, tmp_path, *dashboards(), logger=logger)
    summary = logger.experiment.summary
    assert {"val/accuracy", "train/loss", "train/tokens_per_second"} <= set(summary.keys())
    assert sum(summary["val/margins"]["values"]) == 6
    (file,) = tmp_path.rglob("generations*.table.json")
    logger.experiment.finish()
    table = json.loads(file.read_text())
    assert table["columns"] == ["prompt", "before", "now"]
    assert [row[0] for row in table["data"]] == PROMPTS


def test_mlflow_in_a_file(tiny_model, tmp_path):
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'pl-prefopt[loggers]'")
    pytest.importorskip("sqlalchemy", reason="MLflow's SQLite store needs sqlalchemy and alembic")
    logger = MLFlowLogger(
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifact_location=str(tmp_path / "artifacts")
    )
    fit(tiny_model, tmp_path, *dashboards(), logger=logger)
    metrics = logger.experiment.get_run(logger.run_id).data.metrics
    assert {"val/accuracy", "train/loss", "train/tokens_per_second"} <= set(metrics)
    (page,) = tmp_path.rglob("generations/*.html")
    assert "Where is Paris?" in page.read_text()
    (file,) = tmp_path.rglob("val-margins/*.json")
    assert sum(json.loads(file.read_text())["counts"]) == 6


def test_the_clock_counts_tokens_and_not_validation(tiny_model, tmp_path, monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("pl_prefopt.callbacks.throughput.time", clock)

    class Pass(MarginHistogram):
        def on_train_batch_start(self, *args):
            clock.now += 2

        def on_validation_batch_start(self, *args):
            clock.now += 100

    trainer = fit(
        tiny_model, tmp_path, Pass(), Throughput(), val_check_interval=1, logger=CSVLogger(tmp_path, name="")
    )
    rows = trainer.datamodule.datasets["train"]
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rates = [
            float(row["train/tokens_per_second"])
            for row in csv.DictReader(file)
            if row["train/tokens_per_second"]
        ]
    assert len(rates) == 3
    assert sum(2 * rate for rate in rates) == sum(rows.lengths)


def test_tokens_are_counted_without_asking_the_device_for_them(monkeypatch):
    clock, logged = SimpleNamespace(perf_counter=iter([0.0, 4.0, 4.0]).__next__), {}
    monkeypatch.setattr("pl_prefopt.callbacks.throughput.time", clock)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    tokens = {"prompt_ids": mask.int(), "prompt_mask": mask, "response_ids": mask[:, None].int()}
    tree = TokenTree(**tokens, response_mask=mask[:, None], counted_mask=mask[:, None])
    batch = SimpleNamespace(trees={PLAIN: tree.to("meta")})  # whose tensors have no numbers
    module = SimpleNamespace(
        device=torch.device("cpu"), log=lambda name, rate, **_: logged.update({name: rate})
    )
    strategy = SimpleNamespace(reduce=lambda tensor, **_: tensor)
    trainer = SimpleNamespace(
        log_every_n_steps=2, global_step=0, strategy=strategy, precision="32-true", world_size=1
    )
    throughput = Throughput()
    throughput.on_train_start(trainer, module)
    for trainer.global_step in (1, 2):
        throughput.on_train_batch_end(trainer, module, None, batch, 0)
    assert logged["train/tokens_per_second"] == 2 * (3 + 3) / 4


def test_tables_show_intervals_beside_their_metric(tiny_model, tmp_path, capsys):
    module = DPOModule(lora_spec(tiny_model), DPO(beta=0.5), optimizer=sgd)
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), ResultsTable())
    (measured,) = trainer.test(module, make_datamodule(tmp_path, scored_rows(12)), verbose=False)
    shown = capsys.readouterr().out
    low, high = (measured[f"test/log_ratio_margin_0_{end}"] for end in ("low", "high"))
    assert f"{low:.4g} to {high:.4g}" in shown
    assert "log_ratio_margin_0_low" not in shown
    assert shown.index("accuracy") < shown.index("ranking_accuracy") < shown.index("log_ratio_0")
    assert "0.5" in shown


def test_a_table_without_intervals_has_two_columns():
    table = results_table("Validation", {"loss": math.log(2), "alpha_0": 0.5})
    assert [column.header for column in table.columns] == ["metric", "value"]
    assert list(table.columns[1].cells) == ["", "0.6931", "", "0.5"]


def test_a_single_pair_has_a_histogram_too(tiny_model, tmp_path):
    fit(tiny_model, tmp_path, MarginHistogram(), rows=pair_rows(1), logger=CSVLogger(tmp_path, name=""))
    with (tmp_path / "version_0" / "val-margins.csv").open() as file:
        assert sum(int(each["count"]) for each in csv.DictReader(file)) == 1


def test_histograms_leave_out_what_is_no_number():
    margins = Margins()
    assert margins.compute().shape == (0,)
    margins.update(
        torch.tensor([[1.0, -1.0], [torch.inf, 0.0], [3.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0], [0.0, 1.0]]),
        torch.ones(4, 2, dtype=torch.bool),
    )
    assert margins.compute().tolist() == [2.0, 1.0]


def test_sharded_weights_are_left_alone_with_one_sentence(tiny_model, tmp_path, capsys):
    trainer = make_trainer(tmp_path, strategy=ModelParallelStrategy(), logger=CSVLogger(tmp_path, name=""))
    trainer._data_connector.attach_datamodule(None, make_datamodule(tmp_path))
    callback = Generations()
    callback.setup(trainer, None, "fit")
    assert "no sample generations: under ModelParallelStrategy" in capsys.readouterr().out
    callback.on_train_start(trainer, None)
    callback.on_validation_end(trainer, None)


def test_what_cannot_work_is_refused_before_a_model_loads(tiny_model, tmp_path, monkeypatch):
    from pl_prefopt.modules import base

    monkeypatch.setattr(base, "build_policy", lambda spec: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=r"held_out to be at least 1, got 0"):
        Generations(held_out=0)
    module = DPOModule(lora_spec(tiny_model), DPO())
    trainer = make_trainer(tmp_path, ReferenceEnsemble([AdapterOff()]), Generations())
    with pytest.raises(ContractError, match="PreferenceDataModule"):
        trainer.fit(module, torch.utils.data.DataLoader([0]))
