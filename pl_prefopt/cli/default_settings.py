"""The settings that every run has unless its configuration says otherwise."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, Any] = {
    "seed_everything": 0,
    "trainer.max_epochs": 1,  # Lightning's own default is 1,000
    "trainer.gradient_clip_val": 1.0,
    "trainer.log_every_n_steps": 10,
    "model": {
        "class_path": "pl_prefopt.modules.DPOModule",
        "init_args": {
            "policy": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5e-6, "weight_decay": 0.0}},
            "schedule": {"name": "cosine", "warmup": 0.1},
            "layout": "auto",
        },
    },
    "data.held_out": 0.1,
    "data.batch_size": 4,
    "data.max_prompt_length": 1024,
    "data.max_response_length": 1024,
}
"""The command line's defaults, as in the configuration ``base``."""

BEST = {"best.monitor": "val/accuracy", "best.mode": "max"}
"""The default criterion of the best checkpoint."""
