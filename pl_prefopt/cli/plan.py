"""`prefopt plan`: estimates the device memory of a run before anything is loaded."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn

from pl_prefopt.callbacks import ReferenceEnsemble
from pl_prefopt.cli.app import PrefOptCLI
from pl_prefopt.cli.trainer import PrefOptTrainer
from pl_prefopt.errors import ConfigError
from pl_prefopt.planning import DryRun, Plan, device_of, sharing_of
from pl_prefopt.planning.devices import COMFORTABLE, GIB, Device
from pl_prefopt.policies import PolicySpec, check_splittable
from pl_prefopt.references import Footprint
from pl_prefopt.types import PLAIN, PreferenceBatch

_QUIET = (
    "logger",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
)


class _PlanTrainer(PrefOptTrainer):
    """A trainer that never trains; the arguments of its method are those of the command."""

    def plan(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        gpu: str | None = None,
        memory: str | None = None,
        limits: bool = False,
        responses: int | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Estimate the memory of a training step without loading a model.

        Args:
            model: the module to train.
            datamodule: the rows.
            gpu: the GPU that the run should fit on, such as A100-80G; by default the local CUDA device.
            memory: the memory of the device instead, such as 24GiB.
            limits: plan for the longest rows that data's limits allow, even if data.train is set.
            responses: responses per prompt if rows are not read; by default the minimum of the objective.
            ckpt_path: ignored; a run's config.yaml has it.
            weights_only: ignored for the same reason.
        """


class PlanCLI(PrefOptCLI):
    """``prefopt plan``, with the configuration of ``fit``."""

    trained_by = _PlanTrainer

    @staticmethod
    def stages() -> dict[str, set[str]]:
        """Return the only command."""
        return {"plan": {"model", "datamodule"}}

    def before_instantiate_classes(self) -> None:
        """Write no files."""
        self.save_config_callback = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build a stub trainer, since the configured devices need not exist on this machine."""
        asked = self._get(self.config_init, "trainer")
        quiet: dict[str, Any] = dict.fromkeys(_QUIET, False)
        return self.trainer_class(
            accelerator="cpu",
            devices=1,
            precision=asked.precision,
            accumulate_grad_batches=asked.accumulate_grad_batches,
            callbacks=[self._get(self.config_init, "references")],
            **quiet,
        )

    def plan(
        self,
        model: Any,
        datamodule: Any,
        gpu: str | None,
        memory: str | None,
        limits: bool,
        responses: int | None,
        **_: Any,
    ) -> None:
        """Print the plan; exit with 1 if it does not fit."""
        asked = self._get(self.config_init, "trainer")
        named = gpu is not None or memory is not None
        device = device_of(gpu=gpu, memory=memory) if named or asked.accelerator != "cpu" else None
        references: ReferenceEnsemble = self._get(self.config_init, "references")
        sharing = sharing_of(asked.strategy, devices=_count(asked.devices), nodes=asked.num_nodes)
        if sharing.shards > 1:
            check_splittable(model.policy_spec)
        if responses is not None and responses < 1:
            raise ConfigError(f"Expected --responses to be at least 1, got {responses}.")
        self._connect(model, datamodule, references)
        read = "train" in datamodule.sources and not limits
        batch = _longest_rows(datamodule) if read else datamodule.full_batch(responses or _fewest(model))
        footprints, unknown = _footprints(references, model.policy_spec)
        precision = self.trainer.precision_plugin
        plan = DryRun(
            module=model,
            batch=batch,
            references=[] if references.precompute else footprints,
            precomputed=footprints if references.precompute else [],
            precision=precision,
            compute=torch.bfloat16 if isinstance(precision, MixedPrecision) else None,
            sharing=sharing,
            accumulate=self.trainer.accumulate_grad_batches > 1,
            on_cpu=asked.accelerator == "cpu" or (asked.accelerator == "auto" and device is None),
        ).run()
        print("\n".join([*_describe(model, batch, plan, read), "", *_table(plan), *_remarks(plan, unknown)]))
        if device is not None:
            _judge(plan, device, _advice(model.policy_spec, precomputes=references.precompute))

    def _connect(self, model: Any, datamodule: Any, references: ReferenceEnsemble) -> None:
        """Run the checks that ``fit`` makes before it loads a model."""
        self.trainer.strategy.connect(model)
        self.trainer._data_connector.attach_datamodule(model, datamodule)
        self.trainer.state.fn = TrainerFn.FITTING
        model.trainer = datamodule.trainer = self.trainer
        references.setup(self.trainer, model, "fit")
        model.setup("fit")


def plan() -> None:
    """Run ``prefopt plan`` with the arguments of the command line."""
    PlanCLI()


def _longest_rows(datamodule: Any) -> PreferenceBatch:
    datamodule.prepare_data()
    datamodule.setup("fit")
    batch: PreferenceBatch = datamodule.largest_batch()
    return batch


def _fewest(model: Any) -> int:
    return int(model.objective.needs.min_responses)


def _footprints(references: ReferenceEnsemble, policy: PolicySpec) -> tuple[list[Footprint], list[str]]:
    """Return the members' footprints, and the names of those that don't state theirs."""
    stated = {member: member.footprint(policy) for member in references.members}
    unknown = [type(member).__name__ for member, footprint in stated.items() if footprint is None]
    return [footprint for footprint in stated.values() if footprint is not None], unknown


def _count(devices: Any) -> int:
    """Return the number of devices that Lightning's ``devices`` setting means."""
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count())
    try:
        count = int(devices)
    except ValueError:
        count = 0
    if count < 1:
        raise ConfigError(
            f"Expected trainer.devices to be a number of devices, a list, or auto; got '{devices}'."
        )
    return count


def _describe(model: Any, batch: PreferenceBatch, plan: Plan, read: bool) -> list[str]:
    tree = batch.trees[PLAIN]
    rows, responses, _ = tree.response_ids.shape
    source = "the longest of data.train" if read else "as long as data's limits allow"
    return [
        f"Policy      {model.policy_spec.name}",
        f"Parameters  {plan.parameters:,}, of which {plan.trained:,} are trained",
        f"Batch       {rows} prompts of up to {tree.prompt_ids.shape[1]} tokens, {responses} responses each",
        f"            with up to {max(tree.response_lengths)} tokens together: {source}",
    ]


def _table(plan: Plan) -> list[str]:
    width = max(len(part) for part in plan.parts)
    lines = [f"{part:<{width}}  {_gib(size)}" for part, size in plan.parts.items()]
    return [*lines, f"{'together':<{width}}  {_gib(plan.peak)}, in the {plan.fullest}"]


def _remarks(plan: Plan, unknown: list[str]) -> list[str]:
    remarks = [f"Not counted, since it doesn't say what it holds: {name}." for name in unknown]
    if plan.paged:
        remarks.append(f"Optimiser states that may move to main memory: {_gib(plan.paged).strip()}.")
    return remarks


def _advice(policy: PolicySpec, *, precomputes: bool) -> str:
    """Return the settings that reduce memory, without those already in use."""
    used = {
        "references.precompute": precomputes,
        "policy.gradient_checkpointing": policy.gradient_checkpointing,
        "a smaller data.batch_size": False,
        "policy.dtype: bfloat16": policy.dtype == "bfloat16",
        "policy.lora": policy.has_adapter,
        "policy.four_bit": policy.four_bit is not None,
    }
    left = [name for name, is_used in used.items() if not is_used]
    return f"{', '.join(left[:-1])} or {left[-1]}" if len(left) > 1 else left[0]


def _judge(plan: Plan, device: Device, advice: str) -> None:
    share = plan.peak / device.memory
    has = f"{device.name} has {device.memory / GIB:.1f} GiB: the plan takes {share:.0%} of it"
    if share <= COMFORTABLE:
        print(f"{has}. It fits.")
        return
    if share <= 1:
        print(f"{has}. It may fit: CUDA and gaps between tensors take some as well.")
        return
    print(f"{has}. It does not fit: try {advice}.")
    sys.exit(1)


def _gib(size: int) -> str:
    return f"{size / GIB:7.2f} GiB"
