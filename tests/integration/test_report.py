"""The report of a study, from records on disk to a page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from breadth import LONG
from command_line import call
from lora_ensembles.errors import DataError
from lora_ensembles.studies.claims.judge import Claim, Part
from lora_ensembles.studies.report.claim_tables import claims_with_text, finding, parts_table
from lora_ensembles.studies.report.figures import DRAWINGS
from lora_ensembles.studies.report.write import write_report
from study_records import study_records

pytest.importorskip("matplotlib")

# Runs before anything else on the page: what fails to load and what is written as an error ends up in the
# page's own text.
PROBE = """<script>
const failed = [];
console.error = (...words) => failed.push("console: " + words.join(" "));
addEventListener("error", event => failed.push("error: " + (event.message || event.target.outerHTML.slice(0, \
80))), true);
addEventListener("load", () => {
  const images = [...document.images].map(one => [one.alt, one.complete ? one.naturalWidth : 0, \
one.getBoundingClientRect().width]);
  const wide = [...document.querySelectorAll("img, p, figure, .beside")].filter(
    one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length +
    [...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth + 1).length;
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = JSON.stringify({failed, images, wide});
  document.body.append(told);
});
</script>"""


def made(identity: str, verdict: Any, *, reason: str = "") -> Claim:
    part = Part("accuracy", "above 0", 0.01, (-0.005, 0.02), 0.0123, verdict, 4, 8)
    beside = Part("NLL", "-", -0.2, None, None, "shown", 3, 3)
    if verdict == "not applicable":
        part = Part("accuracy", "above 0", None, None, None, verdict, 0, 0)
    deciding = None if verdict == "not applicable" else part
    text, sizes = f"Claim <{identity}> | holds.", (part.tasks, part.settings)
    return Claim(identity, text, *sizes, verdict, deciding, reason, (part, beside))


CLAIMS = (
    made("C1", "supported"),
    made("C2", "contradicted"),
    made("C3", "inconclusive"),
    made("C5", "not applicable", reason="no record of it"),
)


def save(folder: Path, records: dict[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir()
    for found in records.values():
        for record in found:
            (folder / f"{record['name']}-{record['settings']['seed']:012d}.json").write_text(
                json.dumps(record) + "\n"
            )
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records and the report of them."""
    out = tmp_path_factory.mktemp("study")
    write_report(study_records(), CLAIMS, out)
    return out


def test_page_needs_nothing_from_elsewhere(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert page.count("data:image/png;base64,") == len(DRAWINGS)


def test_claims_come_first_and_every_figure_stands_beside_the_papers(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2 id=[^>]*>(.*?)</h2>", page)
    assert headings == [
        "The claims",
        "The figures",
        "The tables",
        "Calibration and diversity",
        "What the paper leaves open",
        "Where the numbers come from",
    ]
    text = (report / "report.md").read_text(encoding="utf-8")
    for drawing in DRAWINGS:
        assert drawing.paper in text
        assert f"{drawing.caption} Seeds: 0, 1." in text
        assert f"](figures/{drawing.name}.png)" in text
        assert (report / "figures" / f"{drawing.name}.png").is_file()


def test_every_link_leads_to_a_heading_and_the_contents_name_all(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    anchors = re.findall(r'<h[23] id="([^"]+)">', page)
    assert len(set(anchors)) == len(anchors) > 30
    links = re.findall(r'href="#([^"]+)"', page)
    assert set(links) <= set(anchors)
    contents = page.partition("<nav>")[2].partition("</nav>")[0]
    assert re.findall(r'href="#([^"]+)"', contents) == anchors
    assert page.count('<a href="#c1">') == 2  # from the contents and from the table
    assert '<a href="#figure_2">The figure</a>' in page


def test_the_page_says_what_the_base_is_and_what_a_figure_shows(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "a transformer of 1.3 million parameters" in text.partition("## ")[0]
    figure_2 = text.partition("### Figure 2")[2].partition("### ")[0]
    said = (
        "C1 supported (clauses: 1 of 1 hold). The least certain clause is \u201caccuracy\u201d: +0.010 (95 % "
    )
    assert f"**Here.** {said}" in figure_2
    rank = text.partition("### The rank of the adapters\n")[2]
    assert "**Here.** Highest accuracy: rank " in rank.partition("### ")[0]


def test_a_smaller_grid_is_said_at_the_top_and_with_the_provenance(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    smaller = (
        "2 of 6 tasks, 2 of 3 seeds, 3 of 5 members, 4 of 10 epochs, 5 of 20 members in the pool, "
        "2 of 10 few-shot draws"
    )
    assert text.partition("## ")[0].count(smaller) == 1
    assert text.rpartition("## ")[2].count(smaller) == 1


def test_provenance_holds_versions_commit_seeds_and_grid(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8").rpartition("## ")[2]
    for row in (
        "| torch | 2.0 |",
        "| commit | 0123456789ab |",
        "| device | cpu |",
        "| learning_rate | 0.002 |",
        "| kl | [0.05] |",
    ):
        assert row in text
    assert "| pool | 2 | world-cqa | 0, 1 |" in text


def test_records_of_another_base_are_made_with_its_command(tmp_path: Path) -> None:
    records = {"sweep": study_records()["sweep"]}
    for one in records["sweep"]:
        one["settings"] |= {"base": "some/encoder", "head": "multiple-choice"}
    write_report(records, CLAIMS, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    asked = "--base some/encoder --head multiple-choice --data DATA"
    assert f"lora-ensembles study all {asked} --out DIR\n" in text


def test_a_finding_says_which_clauses_were_not_judged_and_why() -> None:
    held, missing = made("C4", "supported").parts[0], made("C4", "not applicable").parts[0]
    claim = Claim("C4", "", 4, 8, "inconclusive", held, "no record of it", (held, missing))
    assert finding(claim) == "C4 inconclusive (clauses: 1 of 2 hold, 1 not judged: no record of it)."
    few = replace(held, interval=None, verdict="inconclusive", tasks=1)
    claim = replace(claim, deciding=few, parts=(few, missing))
    said = "clauses: 0 of 2 hold, 1 not judged: no record of it"
    assert finding(claim) == f"C4 inconclusive ({said}): accuracy, +0.010 on 1 task, which is too few."


def test_claims_show_verdict_interval_and_settings() -> None:
    table = claims_with_text(CLAIMS)
    numbers = ("above 0", "+0.010", "\N{MINUS SIGN}0.005 to +0.020", "0.012", "4 (2)")
    assert table.rows[0] == ("C1", "Claim <C1> | holds.", "supported", "1 of 1 hold", "accuracy", *numbers)
    assert table.rows[3][2:] == ("not applicable", *("-",) * 7)
    assert (table.chosen, table.against) == ({(0, 2)}, {(1, 2)})
    assert "Claim &lt;C1&gt; | holds." in table.to_html()
    assert "<td class=against>contradicted</td>" in table.to_html()
    assert "Claim <C1> \\| holds." in table.to_markdown()
    assert parts_table(CLAIMS[0]).rows == (
        ("accuracy", "supported", *numbers),
        ("NLL", "shown", "-", "\N{MINUS SIGN}0.200", "-", "-", "3 (1)"),
    )
    assert finding(CLAIMS[3]) == "C5 not applicable: no record of it."


def test_records_without_a_sweep_or_of_two_grids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record of the kind 'sweep'"):
        write_report(study_records(without=("sweep",)), CLAIMS, tmp_path)
    mixed = study_records()
    mixed["sweep"][0]["settings"]["learning_rate"] = 1.0
    with pytest.raises(DataError, match="different settings"):
        write_report(mixed, CLAIMS, tmp_path)
    assert list(tmp_path.iterdir()) == []


@LONG
def test_the_verb_writes_beside_the_records_or_elsewhere_and_names_what_has_no_records(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kinds = ("randomness", "pool", "few_shot", "last_layer", "methods", "initialisation", "rank", "strength")
    folder, out = save(tmp_path / "records", study_records(without=kinds)), tmp_path / "elsewhere"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "figure_6.png").write_text("of an earlier report")
    done = call(capsys, "report", folder, "--out", out, "--json")
    assert done.code == 0, done.err
    summary = done.summary
    assert Path(summary["report"]) == out / "report.html"
    made = [drawing.name for drawing in DRAWINGS if not set(drawing.needs) & set(kinds)]
    assert len(summary["figures"]) == len(made) > 5
    assert all(Path(path).is_file() for path in [summary["report"], summary["markdown"], *summary["figures"]])
    assert set(summary["left_out"]) == {"Table 1", *(drawing.name for drawing in DRAWINGS)} - set(made)
    assert not (out / "figures" / "figure_6.png").exists()
    text = (out / "report.md").read_text(encoding="utf-8")
    for kind in ("pool", "few_shot", "rank", "strength"):
        assert f"make them with `lora-ensembles study {kind} --out DIR`" in text
    assert "C5 not applicable: no record holds what this claim is about." in text
    assert list(summary["claims"]) == [f"C{number}" for number in range(1, 12)]
    before = sorted(path.name for path in folder.iterdir())
    assert call(capsys, "report", folder).code == 0
    for name in ("report.html", "report.md", "figures/figure_2.png"):  # the same records, the same report
        assert (folder / name).read_bytes() == (out / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*before, "figures", "report.html", "report.md"]
    )


def test_a_folder_without_records_names_the_command_that_makes_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = call(capsys, "report", tmp_path)
    assert done.code == 2
    assert "lora-ensembles study all" in done.err
    assert list(tmp_path.iterdir()) == []


def test_every_picture_is_shown_in_a_browser_and_nothing_errors(report: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine; Debian's package is called chromium")
    page = (report / "report.html").read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("<head>", f"<head>{PROBE}", 1), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --virtual-time-budget=5000 "
        "--enable-logging=stderr --window-size=1200,900"
    )
    command = [
        browser,
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        probed.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    told = json.loads(
        re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)[1]
        .replace("&amp;", "&")
        .replace("&lt;", "<")
    )
    assert told["failed"] == []
    assert "CONSOLE" not in done.stderr
    assert [alt for alt, _, _ in told["images"]] == [
        drawing.title for drawing in DRAWINGS if drawing.name.startswith("figure_")
    ] + [drawing.title for drawing in DRAWINGS if not drawing.name.startswith("figure_")]
    assert all(natural > 1000 and shown > 300 for _, natural, shown in told["images"])
    assert told["wide"] == 0
