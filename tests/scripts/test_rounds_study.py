"""The study of rounds: its settings, and what it asks of the results."""

from __future__ import annotations

import pytest
import yaml

from pl_prefopt.cli.rounds import read_rounds
from tests.scripts.study_scripts import STUDIES, load_script

CONFIG = yaml.safe_load((STUDIES / "rounds.yaml").read_text(encoding="utf-8"))


def test_all_methods_have_the_same_prompts_samples_and_gradient_steps(tmp_path):
    script = load_script("rounds")
    study = script.Study(CONFIG, tmp_path)
    budgets = {}
    for method in CONFIG["methods"]:
        made = script.settings_of(study, method, 2)
        read = read_rounds(method, {**made, "out": str(tmp_path)})
        trainer = read.fit.settings["trainer"]
        assert (trainer["max_epochs"], read.fit.settings["seed_everything"], read.sampling.seed) == (
            -1,
            2,
            2000,
        )
        steps = read.rounds * trainer["max_steps"]
        budgets[method] = (read.max_prompts, read.split_prompts, read.sampling.n, steps)
    assert set(budgets.values()) == {(48, True, 4, 12)}
    assert script.OFFLINE in budgets


def test_questions_are_answered_by_seed():
    script = load_script("rounds")
    runs = {"offline-DPO": [(0, 5.0, 1.0), (1, 6.0, 2.0)], "SPPO": [(0, 5.5, 1.5), (1, 5.5, 1.5)]}
    results = {
        method: [{"seed": seed, "score": score, "gain": gain} for seed, score, gain in found]
        for method, found in runs.items()
    }
    asked = dict(script.questions(results))
    assert asked["the held-out score rises by SPPO"] == [1.5, 1.5]
    assert asked["SPPO scores higher than one offline run"] == pytest.approx([0.5, -0.5])
    assert len(asked) == 3
