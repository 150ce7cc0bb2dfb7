"""The model card that goes with an exported policy."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from pl_prefopt.cli.card import Card, escaped, read_card
from pl_prefopt.evaluations import Evaluation
from pl_prefopt.modules.checkpoint_files import ADAPTED
from tests.cli.test_commands import axes
from tests.runs import metrics_of, scored_rows, write_rows

NASTY = "a|b <script>alert(1)</script> [x](y) `c` *d* ![](z)\n---\n# e &amp; ```"


def html(card):
    return MarkdownIt("commonmark").enable("table").render(card.text)


@pytest.fixture
def config():
    return {
        "seed_everything": 0,
        "trainer": {"precision": "32-true", "max_epochs": 1},
        "model": {
            "class_path": "pl_prefopt.modules.DPOModule",
            "init_args": {
                "policy": {"name": "owner/base", "dtype": "float32", "lora": {"r": 4}},
                "objective": {"class_path": "pl_prefopt.objectives.DPO", "init_args": {"beta": 0.1}},
            },
        },
        "references": {"members": [{"class_path": "pl_prefopt.references.AdapterOff"}]},
        "data": {"train": {"path": "owner/rows"}, "val": None, "batch_size": 2},
    }


def make(config, folder, **settings):
    measured = [Evaluation(metrics={"val/accuracy": 0.75})]
    given = {"evaluations": measured, "data": {}, "steps": 3, "kind": "adapter", **settings}
    Card(config=config, **given).write(folder)
    return ModelCard.load(folder / "README.md")


def test_the_header_is_what_the_hub_reads(config, tmp_path):
    card = make(config, tmp_path)
    assert card.data.base_model == "owner/base"
    assert card.data.datasets == ["owner/rows"]
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert {"dpo", "preference-optimisation"} <= set(card.data.tags)


KINDS = {
    "adapter": (
        "peft",
        "text-generation",
        "# DPO adapter for owner",
        "from_pretrained('owner/base'), \"me/it\")",
    ),
    "policy": (
        "transformers",
        "text-generation",
        "# DPO model",
        'AutoModelForCausalLM.from_pretrained("me/it")',
    ),
    "classifier": (
        "transformers",
        "text-classification",
        "# DPO reward model",
        'AutoModelForSequenceClassification.from_pretrained("me/it")',
    ),
    "reward": (
        "pl-prefopt",
        "text-classification",
        "# DPO reward model",
        'RewardScorer.load(snapshot_download("me/it"))',
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_is_of_its_kind_of_model(config, tmp_path, kind):
    library, task, title, example = KINDS[kind]
    config["model"]["init_args"]["policy"]["four_bit"] = {"kind": "nf4"}
    card = make(config, tmp_path, kind=kind, hub_name="me/it")
    assert (card.data.library_name, card.data.pipeline_tag) == (library, task)
    assert title in card.text
    assert example in card.text
    assert ("base in full precision" in card.text) == (kind != "adapter")
    del config["model"]["init_args"]["policy"]["four_bit"]
    assert "full precision" not in make(config, tmp_path, kind=kind).text


def test_places_on_this_machine_are_left_out(config, tmp_path):
    (tmp_path / "secret" / "base").mkdir(parents=True)
    config["model"]["init_args"]["policy"]["name"] = str(tmp_path / "secret" / "base")
    config["data"]["train"] = str(tmp_path / "secret" / "rows.jsonl")
    table = {"class_path": "x.PrecomputedTable", "init_args": {"folder": str(tmp_path / "secret" / "base-1")}}
    config["references"]["members"] = [table]
    rows = {"train": {"rows": 6, "skipped": 1, "fingerprint": "plain:abc"}}
    card = make(config, tmp_path, data=rows)
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert "secret" not in card.content
    assert "<td>rows.jsonl</td>" in html(card)
    assert "folder: base-1" in card.text


def test_what_comes_from_data_shows_as_it_is_and_nothing_else(config, tmp_path):
    config["model"]["init_args"]["objective"]["init_args"]["text"] = NASTY
    config["model"]["init_args"]["policy"]["name"] = NASTY
    config["data"]["train"] = NASTY
    rows = {"train": {"rows": 6, "skipped": 0, "fingerprint": NASTY}}
    words = dict.fromkeys(("data", "part", "fingerprint", "checkpoint", "method", "date"), NASTY)
    nasty = Evaluation(metrics={NASTY: 1.0}, held_out=True, rows=1, step=3, **words)
    card = make(config, tmp_path, data=rows, evaluations=[nasty])
    shown = html(card)
    for tag in ("<script", "<img", "<a ", "<em", "<hr"):
        assert tag not in shown
    assert shown.count("<h1>") == 1
    assert shown.count("<table>") == 3
    assert shown.count("<td>1</td>") == 1
    assert yaml.safe_load(card.data.to_yaml())["base_model"] == NASTY


def test_escaping_keeps_the_words():
    shown = MarkdownIt("commonmark").renderInline(escaped(NASTY))
    assert shown.startswith(
        "a|b &lt;script&gt;alert(1)&lt;/script&gt; [x](y) `c` *d* ![](z) --- # e &amp;amp;"
    )


def test_a_checkpoint_without_rows_says_so(config, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    card = read_card(tmp_path / "config.yaml", tmp_path / "last.ckpt", {"global_step": 7}, kind="adapter")
    assert (card.steps, card.evaluations, card.data) == (7, [], {})
    card.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "does not say what rows" in text
    assert "has no metrics" in text


def test_an_adapted_head_has_its_own_metrics_alone(config, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    plain, adapted = ({"global_step": 7}, {"global_step": 7, ADAPTED: True})
    for name, rest in {"last.ckpt": plain, "context.ckpt": adapted, "other.ckpt": adapted}.items():
        torch.save({**rest, "state_dict": {}}, tmp_path / name)
    written = [
        {"metrics": {"val/accuracy": value}, "checkpoint": name, "step": 7}
        for name, value in {"last.ckpt": 0.5, "context.ckpt": 0.75, "other.ckpt": 1.0, None: 0.25}.items()
    ]
    (tmp_path / "metrics.json").write_text(json.dumps({"format": 1, "evaluations": written}))
    found = {
        name: [
            one.metrics["val/accuracy"]
            for one in read_card(tmp_path / "config.yaml", tmp_path / name, rest, kind="reward").evaluations
        ]
        for name, rest in {"last.ckpt": plain, "context.ckpt": adapted}.items()
    }
    assert found == {"last.ckpt": [0.5, 0.25], "context.ckpt": [0.75]}


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_an_export_has_a_card_of_its_run(prefopt, tiny_model, tmp_path, merge):
    rows = write_rows(tmp_path / "rows.jsonl", scored_rows(8))
    settings = ["--data.train", rows, "--data.held_out", "3", "--model.init_args.policy.name", tiny_model]
    prefopt("fit", *axes(), *settings, "--run_dir", "run")
    prefopt("export", "run/checkpoints/last.ckpt", "--out", "exported", "--merge", str(merge).lower())
    card = ModelCard.load("exported/README.md")
    assert card.data.library_name == ("transformers" if merge else "peft")
    assert "beta: 0.1" in card.text
    assert "lr: 5.0e-05" in card.text
    shown = html(card)
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["PreferenceDataModule"]
    for split, kept in (("train", 5), ("val", 3)):
        assert state["splits"][split]["rows"] == kept
        assert state["splits"][split]["fingerprint"] in shown
    for name, value in metrics_of("run").items():
        assert f"<td>{name}</td>\n<td>{value:.4g}</td>" in shown
    assert f"<td>{version('torch')}</td>" in shown
    assert str(tmp_path) not in card.content
