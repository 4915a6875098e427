"""A LoRA ensemble as a model of EleutherAI's lm-evaluation-harness, and the paper's six data sets as its
tasks. Needs the extra `eval`.

Log-likelihood, rolling log-likelihood and generation are the harness's own code, run on
`ensemble.as_causal_lm()`. The harness looks its models up by name; "lora-ensembles" stands there after
`register()`, through the entry point `lm_eval.models` in versions that read it, and on the command line with
`python -m lora_ensembles.integrations.lm_eval`, which takes the harness's own flags.
"""

from __future__ import annotations

from importlib import import_module

from .local_tasks import TASKS_FOLDER, write_local_tasks

__all__ = ["MODEL_NAME", "TASKS_FOLDER", "register", "write_local_tasks"]

MODEL_NAME = "lora-ensembles"

# Classes on the harness's own, which is an extra: each is made when it is first asked for, by the entry point
# or by a task file.
_MADE_LATE = {"LoraEnsembleLM": "model", "PaperTask": "paper"}


def register() -> None:
    """Make `model="lora-ensembles"` known to the harness of this process; calling it twice does nothing more.

    Raises:
        MissingExtraError: lm_eval is not installed.

    Example:
        >>> register()
        >>> from lm_eval.api.registry import get_model
        >>> get_model("lora-ensembles").__name__
        'LoraEnsembleLM'
    """
    from .model import model_class

    made = model_class()  # first: without the extra this is what says so
    from lm_eval.api.registry import model_registry

    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=made)


def __getattr__(name: str) -> object:
    if name not in _MADE_LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_MADE_LATE[name]}", __name__)
    return module.model_class() if name == "LoraEnsembleLM" else module.task_class()
