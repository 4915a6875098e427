"""How far something has come: a line now and then where no terminal can draw a bar, and a bar where
one can.
"""

from __future__ import annotations

import io
import logging
import sys

import pytest
import torch

from lora_ensembles import LoraEnsemble, TrainConfig, load_base, train
from lora_ensembles.cli.screen.quiet import KERNELS, hush
from lora_ensembles.embedded import load_embedded_completions
from lora_ensembles.heads.lm.losses import AnswerRows
from lora_ensembles.heads.lm.table import TokenTable
from lora_ensembles.training import progress
from lora_ensembles.training.progress import Progress


class Terminal(io.StringIO):
    """A text stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines_of(total: int, monkeypatch: pytest.MonkeyPatch, *, stream: io.StringIO | None = None) -> list[str]:
    stream = stream or io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = Progress(total=total, unit="step")
    for number in range(total):
        bar.note({"loss": f"{number}"})
        bar.update()
    bar.close()
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("total", [10, 332, 5000])
def test_off_a_terminal_a_line_is_written_for_each_tenth(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(total, monkeypatch)

    assert 9 <= len(lines) <= 11
    assert lines[-1].startswith(f"{total} of {total} steps, loss {total - 1}, 0:00 so far, 0:00 left")


def test_without_an_end_a_line_is_written_now_and_then_and_nothing_of_what_is_over_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = Progress(total=None, unit="row")
        bar.update(3)
        bar.close()
        assert stream.getvalue().strip() == ""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = Progress(total=None, unit="row")
    for _ in range(70):
        now[0] += 1
        bar.update(5)
    assert stream.getvalue() == "150 rows, 0:30 so far\n300 rows, 1:00 so far\n"


def test_off_a_terminal_a_line_is_written_when_none_was_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = Progress(total=10_000, unit="row")
    for _ in range(70):
        now[0] += 1
        bar.update()

    assert [line.partition(",")[0] for line in stream.getvalue().splitlines()] == [
        "30 of 10000 rows",
        "60 of 10000 rows",
    ]
    assert "0:30 so far, 166:10 left" in stream.getvalue()  # a second for each of the 9,970 rows


def test_a_dumb_terminal_gets_lines_and_a_real_one_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert len(lines_of(20, monkeypatch, stream=Terminal())) == 10

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    lines_of(20, monkeypatch, stream=stream)
    assert "\r" in stream.getvalue()
    assert "20/20" in stream.getvalue()


def test_nothing_is_shown_where_none_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(total=3, unit="step", show=False)
    bar.update(3)
    bar.close()
    assert capsys.readouterr().err == ""


def test_one_message_of_one_logger_is_kept_back_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(KERNELS[0])
    for _ in range(2):
        hush()
    try:
        logger.warning(KERNELS[1] + ": %s", "No module named 'kernels'")
        logger.warning("the CPU is on fire")
        logging.getLogger("bitsandbytes").warning(KERNELS[1])
        assert [record.getMessage() for record in caplog.records] == ["the CPU is on fire", KERNELS[1]]
        assert len(logger.filters) == 1
    finally:
        logger.filters.clear()


@pytest.mark.parametrize(("tokens", "name"), [(1, "accuracy"), (3, "exact match")])
def test_answers_of_several_tokens_are_shown_as_exact_matches(tokens, name):
    table = TokenTable(torch.zeros(2, 8, dtype=torch.long), torch.tensor([4, 4]), torch.tensor([1, tokens]))
    assert AnswerRows(None, table, None, None).accuracy_name == name


def test_a_run_over_sentences_does_not_call_its_exact_matches_accuracy(capfd):
    base, tokenizer = load_base()
    train(
        LoraEnsemble(base, tokenizer, num_members=2, seed=0),
        load_embedded_completions().train[:16],
        TrainConfig(epochs=1, log_every=1),
        progress=True,
    )
    shown = capfd.readouterr().err
    assert "exact match" in shown
    assert "accuracy" not in shown
