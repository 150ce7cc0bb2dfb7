"""What every method's objective gives on the fixed batches.

`python -m tests.frozen.numbers` writes the file that `test_objectives.py` compares with. A number in it
changes only in a commit that names the fault it corrects and shows the right value independently.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from pl_prefopt.objectives import Objective
from tests.frozen.batches import frozen_batch

FILE = Path(__file__).with_name("objectives.json")
METHODS = Path(__file__).parents[2] / "configs" / "methods"
# Those from before the algebra; closed forms hold the later ones.
NAMES = sorted(json.loads(FILE.read_text(encoding="utf-8")))


def computed(name: str) -> dict[str, list[Any]]:
    """Return losses, rewards and the policy's gradient for ``configs/methods/<name>.yaml``."""
    objective = built(name)
    most = objective.needs.max_references
    batch = frozen_batch(references=3 if most is None else most, views=objective.needs.views)
    outcome = objective(batch)
    (gradient,) = torch.autograd.grad(outcome.loss.sum(), batch.policy.sum)
    tensors = {"loss": outcome.loss.detach(), "reward": outcome.reward, "gradient": gradient}
    tensors |= {f"reward of {view}": reward for view, reward in outcome.view_rewards.items()}
    assert all(tensor.dtype == torch.float64 for tensor in tensors.values()), name
    return {"counted": outcome.counted.tolist(), **{key: value.tolist() for key, value in tensors.items()}}


def built(name: str) -> Objective:
    """Instantiate a method's objective as the command line does, in evaluation mode: nothing is sampled."""
    settings = yaml.safe_load((METHODS / f"{name}.yaml").read_text(encoding="utf-8"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    config = parser.parse_object({"objective": settings["model"]["init_args"]["objective"]})
    return parser.instantiate(config).objective.eval()


def main() -> None:
    """Write the file, one line per tensor."""
    methods = []
    for name in NAMES:
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in computed(name).items()]
        methods.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    FILE.write_text("{\n" + ",\n".join(methods) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
