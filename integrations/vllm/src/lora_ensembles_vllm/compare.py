"""A check of a running vLLM: its answers beside those of `predict` for the cases of a file.

python -m lora_ensembles_vllm.compare http://127.0.0.1:8000 runs/decisions cases.jsonl
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ensembles import LoraEnsemble, predict
from lora_ensembles.serve.asking import case_examples

Ask = Callable[[dict[str, Any]], Mapping[str, Any]]


def largest_differences(
    ask: Ask, ensemble: LoraEnsemble, cases: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The largest difference between the probabilities that a server gives and those of `predict`.

    Args:
        ask: from the body of a request, without its `model`, to that of the answer.
        ensemble: the same as the server's.
        cases: rows with `state`, `questions` in the layout of OpenAI's Decisions API, and `id`.

    Returns:
        `questions`, their number; `members` and `ensemble`, the largest differences of a probability of a
        member, and of the ensemble after calibration.
    """
    questions, members, whole = 0, 0.0, 0.0
    for number, case in enumerate(cases):
        name = str(case.get("id", number))
        examples = case_examples(ensemble.info, case["state"], case["questions"], case=name)
        expected = predict(ensemble, examples)
        answers = ask({"input": case["state"], "questions": case["questions"], "id": name})["answers"]
        for row, (answer, example) in enumerate(zip(answers, examples, strict=True)):
            width = len(example.labels)
            own = expected.member_log_probs[:, row, :width].exp()
            members = max(members, _difference(answer["members"], own))
            whole = max(whole, _difference(_probs(answer), expected.probs[row, :width]))
            questions += 1
    return {"questions": questions, "members": members, "ensemble": whole}


def _difference(given: list[Any], expected: Tensor) -> float:
    return float((torch.tensor(given) - expected).abs().max())


def _probs(answer: Mapping[str, Any]) -> list[float]:
    if answer["type"] == "predicate":
        return [answer["probability"], 1 - answer["probability"]]
    return [one["probability"] for one in answer["probabilities"]]


def main() -> None:
    """Ask the server, compare, and print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m lora_ensembles_vllm.compare", description=__doc__)
    parser.add_argument("url", help="of vLLM, such as http://127.0.0.1:8000")
    parser.add_argument("folder", type=Path, help="of the ensemble; its name is the model's")
    parser.add_argument("cases", type=Path, help="JSON lines with id, state and questions")
    args = parser.parse_args()

    def ask(body: dict[str, Any]) -> Mapping[str, Any]:
        content = json.dumps({"model": args.folder.resolve().name, **body}).encode()
        request = urllib.request.Request(
            f"{args.url.rstrip('/')}/v1/decisions", content, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            answer: Mapping[str, Any] = json.load(reply)
        return answer

    cases = [json.loads(line) for line in args.cases.read_text(encoding="utf-8").splitlines() if line.strip()]
    print(json.dumps(largest_differences(ask, LoraEnsemble.from_pretrained(args.folder), cases)))


if __name__ == "__main__":
    main()
