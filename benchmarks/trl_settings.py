"""What every run of a TRL trainer has here: fp32 on a CPU, a constant rate, nothing saved or shown."""

from __future__ import annotations

from typing import Any

ON_A_CPU: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "activation_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
