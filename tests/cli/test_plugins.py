"""Metrics of one's own, and what installed packages add by entry points."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys

import pytest
import yaml

from tests.runs import metrics_of, scored_rows, write_rows

METRIC = '''
"""The share of long responses that win."""

import torch

from pl_prefopt.metrics import Mean, MetricInfo


class LongReward(Mean):
    """The mean reward of responses of at least a few tokens.

    Args:
        tokens: how many.
    """

    info = MetricInfo(
        name="NAME", help="Mean reward of long responses.", unit="nats", better="higher", logged="train"
    )

    def __init__(self, tokens: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.tokens = tokens

    def update(self, reward, policy, present):
        self.add(reward, present & (policy.length >= self.tokens))
'''
OBJECTIVE = '''
"""A method of a laboratory."""

from pl_prefopt.objectives import DPO

PAGE = "https://lab.example/tilted"


class TiltedDPO(DPO):
    """DPO of a laboratory, with ``beta``."""
'''


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    """Forget modules of working directories, and these directories, after each test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("mylab", "mymetrics"):
            del sys.modules[name]
    importlib.invalidate_caches()


def fit(prefopt, tiny_model, *settings, objective="pl_prefopt.objectives.DPO"):
    write_rows(prefopt.folder / "rows.jsonl", scored_rows(8))
    return prefopt.run(
        "fit",
        *("--data.train", "rows.jsonl", "--data.held_out", 2, "--run_dir", "run"),
        *("--model.init_args.policy.name", tiny_model, "--trainer.accelerator", "cpu"),
        *("--trainer.log_every_n_steps", 1, "--references.members", "[pl_prefopt.references.FrozenModel]"),
        *("--references.members.model.name", tiny_model, "--default_callbacks", "false"),
        *("--model.objective", objective, *settings),
    )


@pytest.fixture
def laboratory(prefopt, tmp_path, monkeypatch):
    """The command line, beside an installed package that adds an objective and a metric, and broken ones."""
    site = tmp_path / "site"
    (site / "mylab").mkdir(parents=True)
    (site / "mylab" / "__init__.py").write_text("")
    (site / "mylab" / "tilted.py").write_text(OBJECTIVE)
    (site / "mylab" / "long.py").write_text(
        METRIC.replace("NAME", "lab_reward").replace("LongReward", "LabReward")
    )
    (site / "mylab" / "raising.py").write_text(OBJECTIVE.replace("TiltedDPO", "Raising") + "\n1 / 0\n")
    (site / "mylab" / "broken.py").write_text("class Broken(:\n")
    told = site / "mylab-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mylab\nVersion: 1.0\nProject-URL: Documentation, https://lab.example\n"
    )
    (told / "entry_points.txt").write_text(
        "[pl_prefopt.objectives]\ntilted = mylab.tilted:TiltedDPO\nraising = mylab.raising:Raising\n"
        "broken = mylab.broken:Broken\nmissing = mylab.tilted:Missing\nodd = mylab.long:LabReward\n"
        "[pl_prefopt.metrics]\nlong = mylab.long:LabReward\n"
    )
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    prefopt.folder = tmp_path
    return prefopt


def test_a_metric_in_the_working_directory_is_measured_at_every_stage(prefopt, tiny_model, tmp_path):
    prefopt.folder = tmp_path
    (tmp_path / "mymetrics.py").write_text(METRIC.replace("NAME", "long_reward"))
    settings = [{"class_path": "mymetrics.LongReward", "init_args": {"tokens": 1}}]
    (tmp_path / "metrics.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"metrics": settings}}}))
    code, printed = fit(prefopt, tiny_model, "-c", "metrics.yaml")
    assert code == 0, printed
    assert "long_reward" in printed  # in the table at the end
    assert "train/long_reward" in (tmp_path / "run" / "metrics.csv").read_text()
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    (again,) = saved["model"]["init_args"]["metrics"]
    assert (again["class_path"], again["init_args"]["tokens"]) == ("mymetrics.LongReward", 1)
    # The mean reward over all responses, which the predictions of a validation hold too.
    prefopt("validate", "-c", "run/config.yaml", "--ckpt_path", "last")
    lines = (tmp_path / "run" / "validate" / "predictions.jsonl").read_text().splitlines()
    rewards = [response["reward"] for line in lines for response in json.loads(line)["responses"]]
    assert metrics_of(tmp_path / "run")["val/long_reward"] == pytest.approx(sum(rewards) / len(rewards))
    evaluations = json.loads((tmp_path / "run" / "metrics.json").read_text())["evaluations"]
    (told,) = evaluations[-1]["described"]
    assert (told["name"], told["help"]) == ("long_reward", "Mean reward of long responses.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            METRIC.replace("NAME", "log_ratio_0"),
            "the metric LongReward is called 'log_ratio_0', as one of prefopt's own is",
        ),
        (METRIC.replace("NAME", "kl_3"), "called 'kl_3', as 'log_ratio_3' of earlier versions is"),
        (METRIC.replace("NAME", "margin_low"), "the metric LongReward is called 'margin_low'"),
        (METRIC.replace("info =", "other ="), "expected the metric LongReward to have an `info`"),
        (METRIC.replace("policy, present", "lengths"), "LongReward.update asks for 'lengths'"),
        (
            METRIC.replace("(Mean)", "(torch.nn.Module)"),
            "mymetrics.LongReward is not a subclass of PreferenceMetric",
        ),
    ],
)
def test_a_metric_without_a_name_of_its_own_is_refused(prefopt, tiny_model, tmp_path, text, said):
    prefopt.folder = tmp_path
    (tmp_path / "mymetrics.py").write_text(text)
    code, printed = fit(prefopt, tiny_model, "--model.init_args.metrics", "[mymetrics.LongReward]")
    assert code == 2
    assert said in printed
    assert "Traceback" not in printed


def test_plugins_are_known_by_their_short_names(laboratory, tiny_model):
    code, printed = fit(
        laboratory, tiny_model, "--model.init_args.metrics", "[LabReward]", objective="TiltedDPO"
    )
    assert code == 0, printed
    saved = yaml.safe_load((laboratory.folder / "run" / "config.yaml").read_text())["model"]["init_args"]
    assert saved["objective"]["class_path"] == "mylab.tilted.TiltedDPO"
    assert saved["metrics"][0]["class_path"] == "mylab.long.LabReward"
    assert "val/lab_reward" in metrics_of(laboratory.folder / "run")


def test_plugins_that_are_misspelt_or_broken_are_told_in_a_sentence(laboratory, tiny_model):
    code, printed = fit(laboratory, tiny_model, objective="TiltdDPO")
    assert code == 2
    assert "there is no class 'TiltdDPO'; did you mean 'TiltedDPO'?" in printed
    code, printed = fit(laboratory, tiny_model, objective="Raising")
    assert code == 2
    assert (
        "Raising, a plug-in of the package mylab, can't be imported (ZeroDivisionError: division by zero)"
        in printed
    )


def test_list_shows_ours_and_those_of_plugins_without_importing_them(laboratory):
    code, printed = laboratory.run("list", "objectives")
    assert code == 0
    assert re.search(
        r"^  DPO +Direct preference optimisation: .* docs/methods/dpo.md$", printed, re.MULTILINE
    )
    assert re.search(
        r"^  TiltedDPO +DPO of a laboratory, with `beta`\. +https://lab.example/tilted$",
        printed,
        re.MULTILINE,
    )
    for sentence in (
        "mylab.broken.Broken, a plug-in of the package mylab, is left out: its module is not valid Python (",
        "mylab.tilted.Missing, a plug-in of the package mylab, is left out: there is no such class.",
        "mylab.long.LabReward, a plug-in of the package mylab, is left out: it is not a subclass of "
        "Objective.",
    ):
        assert sentence in printed
    assert "mylab.tilted" not in sys.modules
    code, printed = laboratory.run("list", "metrics")
    assert re.search(
        r"^  lab_reward +Mean reward of long responses\. +https://lab.example$", printed, re.MULTILINE
    )
    assert re.search(r"^  log_ratio_k +Mean log-ratio over .* docs/metrics.md$", printed, re.MULTILINE)
    assert re.search(r"^  alpha_k +Mean over pairs .* docs/methods/mrpo.md$", printed, re.MULTILINE)


def test_list_names_everything_that_python_offers_and_pages_that_exist(prefopt):
    import pl_prefopt.objectives
    import pl_prefopt.references
    from tests.docs.pages import ROOT

    for kind, base in (
        ("objectives", pl_prefopt.objectives.Objective),
        ("references", pl_prefopt.references.Reference),
    ):
        offered = vars(sys.modules[f"pl_prefopt.{kind}"]).values()
        classes = {one.__name__ for one in offered if isinstance(one, type) and issubclass(one, base)}
        listed = [line.split() for line in prefopt("list", kind).splitlines() if line.startswith("  ")]
        names = {words[0] for words in listed}
        assert names <= classes
        assert all(getattr(pl_prefopt.objectives, name, base).__abstractmethods__ for name in classes - names)
        assert all((ROOT / words[-1]).is_file() for words in listed)
    for line in prefopt("list", "metrics").splitlines()[1:]:
        name, page = line.split()[0], line.split()[-1]
        assert re.search(rf"[`/]{name}`", (ROOT / page).read_text(encoding="utf-8")) or name == "part_loss"
    names = [line.split()[0] for line in prefopt("list", "objectives", "--data", "unpaired").splitlines()[1:]]
    assert {"KTO", "PointCE"} <= set(names)
    assert not {"DPO", "PairMNM"} & set(names)
    for references, names in (("0", {"SimPO"}), ("1", {"SimPO", "MRPO", "DPO"}), ("3", {"SimPO", "MRPO"})):
        lines = prefopt("list", "objectives", "--references", references).splitlines()[1:]
        assert {line.split()[0] for line in lines} & {"SimPO", "MRPO", "DPO"} == names
    assert "`prefopt list objectives`" in prefopt.fails("list", "metrics", "--data", "pairs")
    said = prefopt.fails("list", "objective")
    assert "expected one of objectives, metrics, references, sources, judges, got 'objective'" in said
    assert "did you mean 'objectives'?" in said


def test_list_imports_no_torch():
    code = "import sys; from pl_prefopt.cli.main import main; sys.argv[1:] = ['list']; main(); "
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
