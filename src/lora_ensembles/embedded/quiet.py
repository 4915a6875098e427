"""Loading by transformers, without its bars and reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_report(*, newly_initialised: bool = False) -> Iterator[None]:
    """Context in which transformers draws no bar of its own, and does not list the weights of a
    `newly_initialised` head, which a checkpoint lacks.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if newly_initialised:
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
