"""Frozen products by oneDNN against torch's own, forward and backward, and a whole model with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lora_ensembles.stack.onednn import LEAST_ROWS, frozen_products
from tiny_models import build, random_rows

# Sums of 48 products of size 1, in another order: 48 roundings of 6e-8 of sums up to 10.
TOLERANCE = dict(atol=3e-5, rtol=1e-5)


def operators(run: object) -> set[str]:
    """The names of the operators that a call launches."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()  # type: ignore[operator]
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(LEAST_ROWS, 48), (3, 8, 48)])
def test_frozen_products_and_their_gradients_are_those_of_torch(bias: bool, shape: tuple[int, ...]) -> None:
    layer = nn.Linear(48, 40, bias=bias).requires_grad_(False)
    x, weights = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 40)
    expected = layer(x)
    with frozen_products(always=True):
        found = layer(x)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    gradients = [torch.autograd.grad((result * weights).sum(), x)[0] for result in (found, expected)]
    torch.testing.assert_close(*gradients, **TOLERANCE)


def test_frozen_products_run_by_onednn_and_others_do_not() -> None:
    frozen, x = nn.Linear(48, 40).requires_grad_(False), torch.randn(LEAST_ROWS, 48)
    trained, half, few = (
        nn.Linear(48, 40),
        nn.Linear(48, 40, dtype=torch.bfloat16).requires_grad_(False),
        x[: LEAST_ROWS - 1],
    )
    cases = {
        "frozen": (frozen, x),
        "trained": (trained, x),
        "half": (half, x.bfloat16()),
        "few rows": (frozen, few),
    }
    with frozen_products(always=True):
        seen = {
            name: operators(lambda layer=layer, rows=rows: layer(rows))
            for name, (layer, rows) in cases.items()
        }
    assert {name for name, names in seen.items() if "mkldnn::_linear_pointwise" in names} == {"frozen"}


def test_a_model_with_frozen_products_is_the_same_model() -> None:
    model, ids = build("llama").requires_grad_(False), torch.tensor(random_rows([20, 20]))
    expected = model(input_ids=ids).logits
    with frozen_products(always=True):
        torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
