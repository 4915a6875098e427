"""Every architecture of the installed transformers against PEFT: `make parity`.

The record, results/parity/transformers-VERSION.json, says of each architecture and check whether it is equal,
refused with the library's reason, or failed. What it holds is not tried again, so a stopped run goes on where
it was; `--again` tries some anew.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import os
import queue
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
PACKAGES = ("transformers", "peft", "torch")
SECONDS = 120  # for a check, beyond which it fails
MARK = "outcome: "  # begins the lines by which a process gives outcomes
AT_ONCE = 12  # architectures that a process tries: some leave memory behind


def prepare() -> None:
    """Set up a process: one thread, no warnings of models that are random, no network."""
    sys.path.insert(0, str(TESTS))
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()


def attempt(kind: str, name: str) -> dict[str, Any]:
    """All checks of one architecture, by name; or why it could not be built."""
    from architectures.builds import CannotBuild
    from architectures.cases import Case
    from architectures.checks import CHECKS, run

    signal.signal(signal.SIGALRM, _too_long)
    outcomes: dict[str, Any] = {}
    try:
        signal.alarm(SECONDS)
        case = Case(kind, name)
        for check in CHECKS[kind]:
            signal.alarm(SECONDS)  # which makes the check fail, and leaves the others their time
            outcomes[check] = run(case, check).to_json()
    except CannotBuild as error:
        return {"not built": " ".join(str(error).split())[:300]}
    finally:
        signal.alarm(0)
    return {"class": type(case.plain).__name__, "targets": case.targets, "checks": outcomes}


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not done after {SECONDS} seconds")


def attempts(jobs: list[tuple[str, str]], processes: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The outcomes of all architectures, each as it is done; a process tries `AT_ONCE` of them and ends."""
    results: queue.Queue[tuple[str, str, dict[str, Any]]] = queue.Queue()
    parts = [jobs[start : start + AT_ONCE] for start in range(0, len(jobs), AT_ONCE)]
    with ThreadPoolExecutor(processes) as pool:
        for part in parts:
            pool.submit(_try_part, part, results)
        for _ in jobs:
            yield results.get()


def _try_part(jobs: list[tuple[str, str]], results: queue.Queue[tuple[str, str, dict[str, Any]]]) -> None:
    """Try some architectures in a process; one that ends it has failed, and another goes on behind it."""
    while jobs:
        command = [sys.executable, __file__, "--worker", json.dumps(jobs)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    results.put((*jobs.pop(0), json.loads(line.removeprefix(MARK))))
        if jobs:
            reason = f"the process ended with exit code {process.returncode}"
            results.put((*jobs.pop(0), {"checks": {"forward": {"status": "failed", "reason": reason}}}))


def work(jobs: list[tuple[str, str]]) -> int:
    """Try architectures in this process, and print a line for each."""
    for kind, name in jobs:
        outcome = attempt(kind, name)
        print(f"\n{MARK}{json.dumps(outcome)}", flush=True)  # models may have printed a part of a line
    return 0


def write(path: Path, record: dict[str, Any]) -> None:
    """Put the record in its place, whole: a line for each check."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    aside.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="the record (default: one a version of transformers, in results/parity)"
    )
    parser.add_argument("--kinds", default="causal,vision-language,classifier", help="with commas")
    parser.add_argument("--only", default="*", help="model types, as a pattern of file names")
    parser.add_argument("--again", default="", help="try these once more: a pattern, or 'failed'")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    prepare()
    if arguments.worker:
        return work(json.loads(arguments.worker))
    from architectures.builds import architectures
    from architectures.page import FOLDER, counted

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    path = arguments.out or FOLDER / f"transformers-{versions['transformers']}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"architectures": {}}
    record["versions"] = versions
    jobs = []
    for kind in arguments.kinds.split(","):
        known = record["architectures"].setdefault(kind, {})
        for name in architectures(kind):
            if fnmatch.fnmatch(name, arguments.only) and (
                name not in known or _again(known[name], name, arguments.again)
            ):
                jobs.append((kind, name))
    for number, (kind, name, outcome) in enumerate(attempts(jobs, arguments.processes), 1):
        record["architectures"][kind][name] = outcome
        write(path, record)
        print(f"{number} of {len(jobs)}: {kind} {name}: {_said(outcome)}", flush=True)
    counts = {kind: counted(record, kind) for kind in record["architectures"]}
    print(json.dumps(counts))
    return int(any(count["failed"] for count in counts.values()))


def _again(outcome: dict[str, Any], name: str, pattern: str) -> bool:
    if pattern == "failed":
        statuses = {check["status"] for check in outcome.get("checks", {}).values()}
        return "failed" in statuses or "not built" in outcome
    return bool(pattern) and fnmatch.fnmatch(name, pattern)


def _said(outcome: dict[str, Any]) -> str:
    if "not built" in outcome:
        return f"not built: {outcome['not built']}"
    failures = {
        name: check["reason"] for name, check in outcome["checks"].items() if check["status"] == "failed"
    }
    statuses = Counter(check["status"] for check in outcome["checks"].values())
    return ", ".join(f"{count} {status}" for status, count in statuses.items()) + "".join(
        f"\n    {name}: {reason}" for name, reason in failures.items()
    )


if __name__ == "__main__":
    sys.exit(main())
