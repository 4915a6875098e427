"""What every test shares: no network, a fixed seed, and the real data sets where the machine has them."""

from __future__ import annotations

import gc
import os
import random
import signal
from pathlib import Path

# Before any Hugging Face library is imported: a test that reaches for a hub fails at once instead of waiting
# for a time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy
import pytest
import torch

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # several processes share the cores; threads of each would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    torch.set_num_threads(1)

# Until all is imported and collected, whose objects stay: looking through them takes a fifth of that time.
gc.disable()

# A shell that starts the tests in the background ignores SIGINT for them and for what they start, and nohup
# SIGHUP.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

REPOSITORY = Path(__file__).resolve().parent.parent
DATA_VARIABLE = "LORA_ENSEMBLES_DATA"


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The global generators start every test from the same state; code under test must not depend on them."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the paper's data sets: $LORA_ENSEMBLES_DATA, or shared/datasets beside
    the repository.
    """
    given = os.environ.get(DATA_VARIABLE)
    path = Path(given) if given else REPOSITORY.parent / "shared" / "datasets"
    if path.is_dir():
        return path
    if given:
        pytest.fail(f"{DATA_VARIABLE}={given} is not a folder")
    pytest.skip(f"no data sets at ../shared/datasets; set {DATA_VARIABLE} to the folder that holds them")


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: no collection of garbage has to look at it."""
    gc.collect()
    gc.freeze()
    gc.enable()
