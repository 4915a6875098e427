"""The files of `examples/deploy`: those of the docs, and of the server's own metrics, flags and routes."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lora_ensembles import LoraEnsemble
from lora_ensembles.cli.program import parse
from lora_ensembles.serve.catalogue import Catalogue
from lora_ensembles.serve.completions.engines import CompletionEngines
from lora_ensembles.serve.engine import Engine
from lora_ensembles.serve.http.metrics import PREFIX, Metrics
from tiny_models import build_ensemble

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "examples" / "deploy"
SHOWN = ("Dockerfile", "lora-ensembles.service", "litellm.yaml", "prometheus.yml")


@pytest.mark.parametrize("name", SHOWN)
def test_the_docs_show_the_files_as_they_are(name: str) -> None:
    page = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
    assert (DEPLOY / name).read_text(encoding="utf-8") in page


def test_the_commands_are_ones_that_the_program_takes() -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "lora-ensembles.service")
    started = shlex.split(unit["Service"]["ExecStart"])
    entry = re.search(r"^ENTRYPOINT (.+)$", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert entry is not None
    for words in (started, json.loads(entry[1])):
        assert Path(words[0]).name == "lora-ensembles"
        arguments = parse(words[1:])
        assert [path.name for path in arguments.ensembles] == ["decisions"]


def test_every_metric_that_grafana_and_the_docs_name_is_one_of_the_server() -> None:
    ensemble: LoraEnsemble = build_ensemble(members=2)
    catalogue = Catalogue({"tiny": ensemble})
    metrics = Metrics(Engine(), CompletionEngines(catalogue, most=1), catalogue)
    names = {family.name for family in metrics.registry.collect()}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    asked = {
        found
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for found in re.findall(rf"{PREFIX}:[a-z0-9_]+", target["expr"])
    }
    assert len(asked) >= 10
    assert {re.sub(r"_(total|bucket)$", "", name) for name in asked} <= names
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    page = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
    table = page.partition("| metric | meaning |")[2].partition("\n\n")[0]
    told = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`([a-z0-9_]+)`", row.split("|")[1] if "|" in row else "")
    }
    assert {re.sub(r"_total$", "", name) for name in told} == {
        name.removeprefix(f"{PREFIX}:") for name in names
    }


def test_the_configurations_are_yaml_of_the_right_shape() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert prometheus["scrape_configs"][0]["metrics_path"] == "/metrics"
    litellm = yaml.safe_load((DEPLOY / "litellm.yaml").read_text())
    assert litellm["model_list"][0]["litellm_params"]["model"] == "openai/decisions"
