"""The gallery of figures: `python docs/build/gallery.py FOLDER` trains one small ensemble on the embedded
base, draws every public figure of it, light and dark, into FOLDER/gallery, and writes the page
FOLDER/gallery.md.

The code on the page is the code that is run, so that what a reader copies gives the picture above it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ensembles.prediction.plots.style import save_figure

SETUP = """\
from transformers import GenerationConfig

from lora_ensembles import FewShot, LoraEnsemble, MCDropout, TrainConfig
from lora_ensembles import generate_text, load_base, load_task, plots, predict, train

task = load_task("world-arcc")
few_shot = predict(FewShot(*load_base(), task.train, draws=5), task.validation)
ensemble = LoraEnsemble(*load_base(), num_members=5, seed=0)
train(ensemble, task.train, TrainConfig(epochs=4, batch_size=16, learning_rate=2e-3), progress=False)
prediction = predict(ensemble, task.validation)
dropout = predict(MCDropout(ensemble, passes=5, dropout=0.1), task.validation)
writing = GenerationConfig(max_new_tokens=60, repetition_penalty=1.2)
"""
INTRO = """\
# Gallery

Every figure of `lora_ensembles.plots`, drawn when this page was built. They need the extra `plots`
(`pip install "lora-ensembles[plots]"`). A single member is a solid line and an ensemble is dashed; with
`dark=True` each has a dark background. All show one small ensemble on the embedded base, trained on a few
hundred questions in less than a minute, so that they say what the figures look like, and little about
ensembles:
"""


@dataclass(frozen=True)
class Shown:
    """One figure of the page.

    Attributes:
        name: of the function.
        answers: in one sentence, what it answers.
        seen: what is drawn, for those who do not see it.
        given: the line before the call.
        arguments: of the call.
    """

    name: str
    answers: str
    seen: str
    given: str
    arguments: str

    def call(self, *, dark: bool = False) -> str:
        """The line that draws it."""
        return f"figure = plots.{self.name}({self.arguments}{', dark=True' if dark else ''})"

    def code(self) -> str:
        """The three lines that draw and write it."""
        return "\n".join([self.given, self.call(), f'figure.savefig("{self.name}.png")'])


ARMS = (
    'arms = {"few-shot": few_shot.member(0), "single member": prediction.member(0), "ensemble": prediction}'
)
FIGURES = (
    Shown(
        "reliability",
        "Is a model right as often as it is confident?",
        "Accuracy against confidence, a line for each arm, with the diagonal on which a model is calibrated",
        ARMS,
        "arms",
    ),
    Shown(
        "wrong_confidence",
        "How sure is a model of the answers that it gets wrong?",
        "Density of the confidence of wrong answers, a line for each arm",
        ARMS,
        "arms",
    ),
    Shown(
        "risk_coverage",
        "How many errors remain when the questions it is least sure of are left unanswered?",
        "Error rate of the questions answered against the share answered, a line for each arm",
        ARMS,
        "arms",
    ),
    Shown(
        "agreement",
        "Are the members right more often when more of them agree?",
        "Bars of the accuracy, and of the share of questions, by the number of members that agree",
        "from lora_ensembles import plots",
        "prediction",
    ),
    Shown(
        "diversity_gain",
        "What is it worth that the members differ?",
        "Gain of the ensemble in NLL against the disagreement of its members, a point for each arm",
        'arms = {"few-shot": few_shot, "MC dropout": dropout, "LoRA ensemble": prediction}',
        "arms",
    ),
    Shown(
        "size_curve",
        "Would one more member help?",
        "NLL and ECE against the number of members, with a band from the best to the worst choice of them",
        "from lora_ensembles import plots",
        'prediction, metrics=("nll", "ece")',
    ),
    Shown(
        "token_uncertainty",
        "Which words of a text do the members contradict each other about?",
        "A generated text, each of its tokens shaded by its mutual information",
        'text = generate_text(ensemble, "The", writing)[0]',
        "text",
    ),
)


def write_gallery(folder: Path) -> None:
    """Write the page `gallery.md`, and the figures into `gallery/`, below `folder`, over earlier ones."""
    names: dict[str, Any] = {}
    exec(SETUP, names)
    parts = [INTRO, f"```python\n{SETUP}```\n"]
    for shown in FIGURES:
        exec(shown.given, names)
        for mode in ("dark", "light"):
            exec(shown.call(dark=mode == "dark"), names)
            save_figure(names["figure"], folder / "gallery" / f"{shown.name}.{mode}.png")
        parts.append(section(shown, alternative_text(shown, names["figure"])))
    (folder / "gallery.md").write_text("\n".join(parts), encoding="utf-8")


def section(shown: Shown, alternative: str) -> str:
    """The part of the page about one figure."""
    images = "\n".join(
        f"![{alternative}](gallery/{shown.name}.{mode}.png#only-{mode})" for mode in ("light", "dark")
    )
    return f"## {shown.name}\n\n{shown.answers}\n\n{images}\n\n```python\n{shown.code()}\n```\n"


def alternative_text(shown: Shown, figure: Any) -> str:
    """What is drawn, and in words the numbers that the legend gives of it, or the text that it shows."""
    entries = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    said = [" ".join(one.split("\n")) for one in entries if any(map(str.isdigit, one)) and "%" not in one]
    if shown.name == "token_uncertainty":
        said = ["".join(text.get_text() for text in figure.axes[0].texts).strip()]
    return ": ".join(filter(None, [shown.seen, "; ".join(said)]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where gallery.md and gallery/ are written")
    write_gallery(parser.parse_args().folder)


if __name__ == "__main__":
    main()
