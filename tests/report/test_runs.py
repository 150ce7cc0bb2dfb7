"""What a run's folder tells, and what is said about a folder that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pl_prefopt.errors import ConfigError, DataError
from pl_prefopt.evaluations import Evaluation, add_evaluation
from pl_prefopt.metric_info import MetricInfo
from pl_prefopt.metrics import METRIC_HELP, REGISTRY
from pl_prefopt.report.curves import read_curves
from pl_prefopt.report.predictions import read_predictions
from pl_prefopt.report.runs import common_stage, read_runs
from pl_prefopt.report.tables import Column, all_settings, column_of, differing, metric_tables
from tests.report.folders import pair_rows, ranked_rows, write_curves, write_run


def test_a_run_is_read_whole(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "run", ranked_rows())])
    assert (run.name, run.method) == ("run", "DPO")
    assert run.metrics["test/accuracy_low"] == 0.6
    assert run.settings["model.init_args.objective.init_args.beta"] == "0.1"
    assert run.settings["references.members.0.class_path"] == "pl_prefopt.references.AdapterOff"
    assert "run_dir" not in run.settings
    assert run.curves["val/accuracy"].steps.tolist() == [10, 20, 30, 40]
    assert "lr-AdamW" not in run.curves
    assert set(run.predictions) == {"test"}


def test_a_resumed_run_has_one_curve(tmp_path):
    # The first part went on to step 20 after the checkpoint at step 15, where the second part began.
    write_curves(tmp_path / "metrics.1.csv", range(1, 21))
    write_curves(tmp_path / "metrics.2.csv", range(16, 18))
    write_curves(tmp_path / "metrics.csv", range(18, 31))
    curves = read_curves(tmp_path)
    assert curves["train/loss"].steps.tolist() == list(range(1, 31))
    np.testing.assert_allclose(curves["train/loss"].values, 1 / np.arange(1, 31))
    assert curves["val/accuracy"].steps.tolist() == [10, 20, 30]


def test_names_are_the_shortest_that_differ(tmp_path):
    folders = [write_run(tmp_path / part / "run") for part in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]


def test_a_folder_with_nothing_but_an_evaluation_is_a_run(tmp_path):
    folder = write_run(tmp_path / "before", ranked_rows(), trained=False)
    (folder / "config.yaml").rename(folder / "test" / "config.yaml")
    (run,) = read_runs([folder])
    assert run.method == "DPO"
    assert run.curves == {}


def test_only_settings_that_differ_are_differences(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed_everything=1, extra={"x": [1, 2]})]
    rows = all_settings(read_runs(folders))
    assert [(row.key, row.values) for row in differing(rows)] == [
        ("extra.x", [None, "[1, 2]"]),
        ("seed_everything", ["0", "1"]),
    ]


def test_the_stage_that_most_runs_have_is_compared(tmp_path):
    tested = write_run(tmp_path / "tested", pair_rows())
    validated = [write_run(tmp_path / f"v{n}", pair_rows(), stage="validate") for n in range(2)]
    assert common_stage(read_runs([tested, *validated])) == "validate"
    assert common_stage(read_runs([tested, validated[0]])) == "test"
    assert common_stage(read_runs([write_run(tmp_path / "none")])) is None


def test_the_command_that_is_missing_can_be_typed(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "a run")])
    command = f"prefopt test -c '{tmp_path}/a run/config.yaml' --data.test val.jsonl"
    assert run.test_command == command


def test_the_tables_show_what_was_measured(tmp_path):
    runs = read_runs([write_run(tmp_path / "a", ranked_rows()), write_run(tmp_path / "b")])
    test, validation = metric_tables(runs)
    assert [column.name for column in test.columns] == ["accuracy", "margin", "pearson"]
    assert [cell.text for cell in test.rows[0]] == ["75.0 %", "0.500", "0.400"]
    assert test.rows[0][0].interval == "60.0 to 85.0"
    assert [cell.text for cell in test.rows[1]] == ["–"] * 3
    assert [cell.text for cell in validation.rows[1]] == ["70.0 %", "0.400"]
    assert [column.name for column in metric_tables(runs, everything=True)[0].columns][-1] == "own_number"


@pytest.mark.parametrize(
    ("name", "unit", "word"),
    [("log_ratio_1", "nats", "reference k"), ("accuracy_quality", "%", "second view"), ("ndcg", "", "gain")],
)
def test_metrics_have_units_and_meanings(name, unit, word):
    column = column_of(name, REGISTRY)
    assert column.unit == unit
    assert word in column.help


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val/loss\n1,0.5\n2,0.2")  # 0.25, perhaps
    assert read_curves(tmp_path)["val/loss"].values.tolist() == [0.5]


def test_numbers_of_an_objective_have_the_meanings_that_the_run_noted_and_old_names_are_read(tmp_path):
    folder = write_run(tmp_path / "a", ranked_rows())
    (folder / "metrics.json").write_text(
        '{"val/accuracy": 0.7, "val/marginal_0": 1.5, "val/a-b/kl_0": -2.5, "val/loss": Infinity}'
    )
    told = MetricInfo(name="alpha_{k}", help="The weight.", unit="%", better="lower")
    metrics = {"test/alpha_1": 0.25, "test/alpha_1_low": 0.2, "test/own": 2.0}
    add_evaluation(folder / "metrics.json", Evaluation(metrics=metrics, described=(told,)))
    (folder / "metrics.csv").write_text("step,val/marginal_1,val/kl_0\n1,0.5,-3\n")
    (run,) = read_runs([folder])
    assert run.metrics["val/log_ratio_margin_0"] == 1.5
    assert run.metrics["val/a-b/log_ratio_0"] == -2.5
    assert run.curves["val/log_ratio_0"].values.tolist() == [-3.0]
    assert run.curves["val/log_ratio_margin_1"].values.tolist() == [0.5]
    test, validation = metric_tables([run], everything=True)
    assert test.columns == [
        Column("alpha_1", "%", "The weight. Lower is better."),
        Column("own", "", ""),
    ]
    assert test.rows[0][0].text == "25.0 %"
    assert validation.rows[0][0].text == "inf", "no dash, as if it had not been measured"
    assert validation.columns[3].help == METRIC_HELP["log_ratio_margin_k"] + " Higher is better."


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    write_run(tmp_path / "runs" / "dpo-1")
    with pytest.raises(ConfigError, match=r"has no config.yaml; it holds runs, such as .*dpo-1"):
        read_runs([tmp_path / "runs"])
    with pytest.raises(ConfigError, match=r"no folder .*dpo-2; did you mean 'dpo-1'"):
        read_runs([tmp_path / "runs" / "dpo-2"])
    with pytest.raises(ConfigError, match="2 times"):
        read_runs([tmp_path / "runs" / "dpo-1"] * 2)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("metrics.json", "[1]", "expected evaluations"),
        ("config.yaml", "a: [", "is damaged"),
        ("metrics.csv", "epoch,step,train/loss\n0,1,much\n", "line 2"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, reason):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises((ConfigError, DataError), match=reason) as error:
        read_runs([folder])
    assert str(folder / name) in str(error.value)


def test_predictions_of_an_older_version_are_refused(tmp_path):
    rows = pair_rows(prompts=2)
    del rows[1]["graded"]
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"row 2, got: the key 'graded' is missing; write the file anew"):
        read_predictions(Path(path))


def test_predictions_of_a_fit_stand_for_its_last_validation(tmp_path):
    folder = write_run(tmp_path / "a", pair_rows(), stage="validate")
    (folder / "metrics.json").unlink()
    shutil.copytree(folder / "validate", folder / "fit")
    same = {"data": "rows", "fingerprint": "x", "method": "DPO"}

    def measured(command, step):
        evaluation = Evaluation(metrics={"val/accuracy": 0.5}, command=command, step=step, **same)
        add_evaluation(folder / "metrics.json", evaluation)
        (run,) = read_runs([folder])
        return run.predictions["validate"].parent.name, run.predicted("validate") is run.evaluation("val")

    assert measured("fit", 10) == ("fit", True)
    assert measured("validate", 5) == ("validate", True)
    assert measured("validate", 0) == ("fit", False), "the numbers are of step 5, whose predictions are gone"
    assert measured("fit", 20) == ("fit", True)
