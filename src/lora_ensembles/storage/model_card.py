"""The model card of a saved ensemble: what it was trained for, how well it does, and how to load it."""

from __future__ import annotations

import re
from typing import Any

CARD = """---
library_name: peft
{base_line}tags:
- lora
- lora-ensemble
- uncertainty
---
# LoRA ensemble of {members} members on {base}

{members} LoRA adapters on one frozen base, trained from different seeds and data orders; the mean of their \
probabilities is the prediction
([arXiv 2310.00035](https://arxiv.org/abs/2310.00035)). Each `member_*` folder is a plain PEFT adapter.

{task}
## Load

```python
from lora_ensembles import LoraEnsemble

ensemble = LoraEnsemble.from_pretrained("path/to/this/folder")
```

One member alone, with PEFT:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/folder/member_000")
```
"""


def render_model_card(base: str, *, members: int, task: dict[str, Any]) -> str:
    """The text of `README.md`, with the task and the metrics that the ensemble's info holds.

    Example:
        >>> card = render_model_card("gpt2", members=5, task={"name": "obqa", "metrics": {"accuracy": 0.85}})
        >>> "| accuracy | 0.85 |" in card
        True
    """
    lines = [f"Task: {task['name']}.\n"] if task.get("name") else []
    metrics = task.get("metrics") or {}
    if metrics:
        rows = "".join(
            f"| {name} | {value:.4g} |\n" for name, value in metrics.items() if isinstance(value, int | float)
        )
        lines.append(f"Measured on its validation split:\n\n| metric | value |\n|---|---|\n{rows}")
    on_hub = (
        re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", base) is not None
    )  # the hub refuses a card that names a folder as its base
    base_line = f"base_model: {base}\n" if on_hub else ""
    return CARD.format(
        base_line=base_line, base=base or "an unnamed base", members=members, task="\n".join(lines)
    )
