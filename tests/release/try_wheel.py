"""A wheel, installed into an environment of its own without any extra, and used as a newcomer would:
`python tests/release/try_wheel.py dist/lora_ensembles-VERSION-py3-none-any.whl`.

What it brings is listed, the command line trains and answers on the embedded base, and mypy checks a user's
script against the installed package's types.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
MOST_MEGABYTES = 10
QUESTIONS = [
    {"question": f"Is {n} even?", "options": ["yes", "no"], "answer": "no" if n % 2 else "yes"}
    for n in range(40)
]
SCRIPT = """
from lora_ensembles import LoraEnsemble, Prediction, TrainConfig, evaluate, \
load_base, load_task, predict, train

base, tokenizer = load_base()
ensemble: LoraEnsemble = LoraEnsemble(base, tokenizer, num_members=2, seed=0)
task = load_task("world-arcc")
train(ensemble, task.train[:8], TrainConfig(epochs=1))
prediction: Prediction = predict(ensemble, task.validation[:8])
accuracy: float = evaluate(prediction).accuracy
print(accuracy)
"""
WRONG = 'from lora_ensembles import TrainConfig\n\nTrainConfig(epochs="three")\n'


def main(wheel: Path) -> None:
    """Install and try the wheel; an error ends the program with what was seen."""
    describe(wheel)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = install(wheel, folder / "venv")
        use(python, folder)
        check_types(python, folder)
    print("the wheel installs, works without extras, and is typed")


def describe(wheel: Path) -> None:
    """Print the files of a wheel by folder, and refuse a heavy one,
    or one with files that are not the package's.
    """
    with zipfile.ZipFile(wheel) as archive:
        files = archive.infolist()
    megabytes = wheel.stat().st_size / 1e6
    print(f"{wheel.name}: {len(files)} files, {megabytes:.1f} MB")
    for part, number in sorted(Counter("/".join(file.filename.split("/")[:2]) for file in files).items()):
        print(f"  {number:4d}  {part}")
    names = {file.filename for file in files}
    roots = {name.split("/")[0] for name in names}
    if megabytes > MOST_MEGABYTES or not all(root.startswith("lora_ensembles") for root in roots):
        sys.exit(f"the wheel is too large or holds foreign folders: {sorted(roots)}")
    if not {"lora_ensembles/py.typed", "lora_ensembles/__init__.pyi"} <= names:
        sys.exit("the wheel lacks the marks of a typed package")


def install(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment with the wheel and what it requires, in the tested versions."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    constraints = REPOSITORY / "constraints.txt"
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    for requirement in (torch, str(wheel.resolve())):
        run(python, "-m", "pip", "install", "--quiet", "-c", str(constraints), requirement)
    return python


def use(python: Path, folder: Path) -> None:
    """Train, evaluate and predict by the command line, in a folder that holds nothing of the repository."""
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    cli = python.parent / "lora-ensembles"
    print(run(cli, "--version", folder=folder).strip())
    run(cli, "train", str(questions), "--members", "2", "--epochs", "1", "--out", "run", folder=folder)
    run(cli, "evaluate", "run", folder=folder)
    answered = run(cli, "predict", "run", "--in", str(questions), folder=folder)
    if len(answered.splitlines()) != len(QUESTIONS):
        sys.exit(f"predict answered {len(answered.splitlines())} of {len(QUESTIONS)} rows")
    (folder / "script.py").write_text(SCRIPT)
    run(python, "script.py", folder=folder)


def check_types(python: Path, folder: Path) -> None:
    """A user's script passes mypy against the installed package, and one with a wrong argument does not."""
    (folder / "wrong.py").write_text(WRONG)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)]
    run(*mypy, "script.py", folder=folder)
    done = subprocess.run([*mypy, "wrong.py"], cwd=folder, capture_output=True, text=True)
    if done.returncode == 0 or "TrainConfig" not in done.stdout:
        sys.exit(f"mypy did not see a wrong argument:\n{done.stdout}{done.stderr}")


def run(*command: str | Path, folder: Path | None = None) -> str:
    """A command's standard output; a failure ends the program with what the command wrote."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=clean, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
