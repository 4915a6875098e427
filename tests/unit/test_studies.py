"""Records, arms trained in one stack, and claims judged from records."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import scipy.stats as scipy_stats
import torch

from lora_ensembles import load_base
from lora_ensembles.data import Task
from lora_ensembles.errors import CheckpointError, DataError
from lora_ensembles.prediction.prediction import Prediction
from lora_ensembles.studies.arms import Arm, decay_arms, randomness_arms, regulariser_arms, train_arms
from lora_ensembles.studies.claims.contrasts import Contrast
from lora_ensembles.studies.claims.judge import LEAST_TASKS, Part, interval_of_tasks, judge, judge_contrasts
from lora_ensembles.studies.claims.paper import CLAIMS
from lora_ensembles.studies.claims.regularisers import matched
from lora_ensembles.studies.claims.views import View
from lora_ensembles.studies.grid import FULL, PAPER, QUICK, cells, settings_of
from lora_ensembles.studies.measures import by_size, described, measured
from lora_ensembles.studies.setting import Bench
from lora_ensembles.studies.store import by_kind, cell, read_record
from lora_ensembles.training.config import TrainConfig
from tiny_ensembles import adapter, llama, questions, tokenizer

CONFIG = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, snapshot_epochs=[1, 2])
METRICS = (
    "accuracy",
    "nll",
    "ece",
    "brier",
    "coverage_area",
    "total_entropy",
    "mutual_information",
    "disagreement",
    "ood_auroc",
)


def test_a_record_that_exists_is_not_measured_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> dict[str, int]:
        calls.append(1)
        return {"value": len(calls)}

    first = cell(tmp_path, "x", {"seed": 0}, measure)
    assert cell(tmp_path, "x", {"seed": 0}, measure)["result"] == first["result"] == {"value": 1}
    assert cell(tmp_path, "x", {"seed": 1}, measure)["result"] == {"value": 2}


def test_a_study_that_is_killed_leaves_whole_records_only(tmp_path: Path) -> None:
    def die() -> dict[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cell(tmp_path, "x", {"seed": 0}, die)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", '{"settings": {}}', "[]"])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    cell(tmp_path, "x", {"seed": 0}, dict)
    path = next(tmp_path.iterdir())
    path.write_text(text)
    with pytest.raises(CheckpointError, match="no record of a study"):
        cell(tmp_path, "x", {"seed": 0}, dict)


def test_a_record_of_other_settings_is_refused(tmp_path: Path) -> None:
    cell(tmp_path, "x", {"seed": 0}, dict)
    path = next(tmp_path.iterdir())
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"settings": {"seed": 1}}))
    with pytest.raises(CheckpointError, match="record of other settings"):
        cell(tmp_path, "x", {"seed": 0}, dict)
    assert read_record(path)["settings"] == {"seed": 1}


def test_a_folder_without_records_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lora-ensembles study all"):
        by_kind(tmp_path)


def test_an_arm_in_a_sweep_has_the_weights_it_has_alone() -> None:
    arms = [
        Arm("none"),
        Arm("KL", kl_weight=0.1),
        Arm("decay", weight_decay_b=20.0),
        Arm("dropout", dropout=0.2),
        Arm("o", vary=("order",)),
    ]
    together = train_arms(
        (llama(), tokenizer()), arms, questions(), CONFIG, members=2, seed=3, adapter=adapter()
    )
    for index, arm in enumerate(arms):
        alone = train_arms(
            (llama(), tokenizer()), [arm], questions(), CONFIG, members=2, seed=3, adapter=adapter()
        )
        rows = together.rows(index)
        # The same sums in a larger batched product.
        torch.testing.assert_close(
            together.ensemble.stack.b[rows], alone.ensemble.stack.b, atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(
            together.ensemble.stack.a[rows], alone.ensemble.stack.a, atol=1e-6, rtol=1e-5
        )


def test_arms_of_one_source_of_randomness_share_the_other() -> None:
    run = train_arms(
        (llama(), tokenizer()),
        randomness_arms(1e-2, 0.025),
        questions(),
        CONFIG,
        members=2,
        seed=3,
        adapter=adapter(),
    )
    seeds = run.ensemble.info.seeds
    for index, arm in enumerate(run.arms):
        first, second = (seeds[row] for row in run.rows(index))
        assert (first.init != second.init) == ("init" in arm.vary)
        assert (first.order != second.order) == ("order" in arm.vary)


def test_decay_takes_the_share_of_a_step_that_is_asked_for() -> None:
    for arm in (*regulariser_arms(4e-3)[-3:], *decay_arms(4e-3, 0.025)):
        assert 4e-3 * max(arm.weight_decay_a, arm.weight_decay_b) == pytest.approx(
            {"decay of B 0.005": 0.005, "decay of B 0.05": 0.05}.get(arm.name, 0.025)
        )


def random_prediction(members: int = 4, examples: int = 30) -> Prediction:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(members, examples, 4, generator=generator).log_softmax(dim=-1)
    return Prediction(log_probs, torch.randint(0, 4, (examples,), generator=generator))


def test_measured_holds_what_the_metrics_say() -> None:
    prediction, other = random_prediction(), random_prediction(4, 20)
    row = measured(prediction, other)
    assert row["ensemble"]["accuracy"] == pytest.approx(
        (prediction.choices == prediction.targets).float().mean().item(), abs=1e-6
    )
    assert len(row["members"]) == 4
    assert row["members"][2]["accuracy"] == pytest.approx(
        (prediction.member_choices[2] == prediction.targets).float().mean().item(), abs=1e-6
    )
    assert set(row["ensemble"]) == set(METRICS)
    assert "ood_auroc" in row["ensemble"]
    assert row["ood"]["ensemble"]["ood_auroc"] is None


def test_description_counts_every_wrong_answer_once() -> None:
    prediction = random_prediction()
    found = described(prediction)
    wrong = int((prediction.choices != prediction.targets).sum())
    assert sum(found["wrong_confidence"]["ensemble"]["counts"]) == wrong
    assert found["wrong_confidence"]["members"]["of"] == 4 * 30
    assert [row[index] for index, row in enumerate(found["agreement"])] == [1.0] * 4
    right = prediction.member_log_probs.exp()[:, range(30), prediction.targets]
    pairs = [torch.corrcoef(right[[i, j]])[0, 1].item() for i in range(4) for j in range(i)]
    assert found["correlation"] == pytest.approx(statistics.fmean(pairs), abs=1e-5)


def test_sizes_use_every_member_once_and_random_subsets_between() -> None:
    found = by_size(random_prediction(), [1, 2, 4], subsets=3, seed=0)
    assert [len(found[size]) for size in ("1", "2", "4")] == [4, 3, 1]
    assert found["1"][3] == measured(random_prediction())["members"][3]
    assert found["4"][0] == measured(random_prediction())["ensemble"]


def test_a_grid_names_every_cell_once_and_full_holds_the_papers_numbers() -> None:
    found = list(cells(FULL))
    assert len(set(found)) == len(found) == 3 * (6 * 3 + 4 * 2 + 1 * 4)
    assert {json.dumps(settings_of(FULL, *one)) for one in found}.__len__() == len(found)
    assert FULL.shared.members == 5
    assert FULL.paper.pool == 20
    config = Bench(Task("cqa", (), ()), (), load_base(), PAPER.shared).config
    assert (config.batch_size, config.learning_rate, config.epochs) == (32, 5e-5, 20)
    assert len(QUICK.seeds) == 3


# Claims


def row(accuracy: float, nll: float, ece: float, gain: float) -> dict[str, Any]:
    """Metrics of two equal members and of an ensemble that is better by `gain` in everything."""
    member = dict.fromkeys(METRICS, 0.0) | {"accuracy": accuracy, "nll": nll, "ece": ece, "ood_auroc": 0.52}
    ensemble = member | {"accuracy": accuracy + gain, "nll": nll - gain, "ece": ece - gain}
    return {"members": [member, member], "ensemble": ensemble}


def arm(epochs: dict[str, dict[str, Any]], *, sure: int = -1, train_accuracy: float = 0.95) -> dict[str, Any]:
    """An arm with the confidence of its wrong answers in one bin: the members' the last, the ensemble's
    `sure`.
    """
    shown = {name: one | {"ood": one} for name, one in epochs.items()}
    bins = {}
    for who, place in (("members", -1), ("ensemble", sure)):
        counts = [0] * 50
        counts[place] = 10
        bins[who] = {"counts": counts, "of": 50}
    return {"epochs": shown, "wrong_confidence": bins, "train_accuracy": [train_accuracy] * 2}


def sweep(shift: float, gain: float) -> dict[str, Any]:
    """Arms in which every claim of the paper holds, where `gain` is positive; what KL and early stopping
    leave of it is less than what decay does.
    """
    none = {
        "1": row(0.70, 1.0 + shift, 0.22, 0.2 * gain),
        "2": row(0.70, 1.1 + shift, 0.24, 0.5 * gain),
        "3": row(0.70, 1.3 + shift, 0.26, 0.7 * gain),
        "10": row(0.70, 2.0 + shift, 0.30, gain),
    }
    last = {
        "KL 0.05": row(0.70, 1.5 + shift, 0.25, 0.5 * gain),
        "KL 0.1": row(0.75, 1.0 + shift, 0.20, 0.2 * gain),
        "decay of B 0.02": row(0.70, 1.5 + shift, 0.20, 0.9 * gain),
        "decay of B 0.05": row(0.65, 1.0 + shift, 0.10, 0.8 * gain),
        "decay of A": row(0.70, 1.4 + shift, 0.30, gain),
        "decay of A and B": row(0.40, 1.0 + shift, 0.10, gain),
        "dropout": row(0.70, 1.9 + shift, 0.28, gain),
    }
    arms = {"none": arm(none, sure=-5)}
    arms |= {name: arm({"10": one}, sure=10 if "B 0.05" in name else -3) for name, one in last.items()}
    passes = {"accuracy": 0.70 + 0.1 * gain, "nll": 2.0 + shift - 0.1 * gain, "ece": 0.30 - 0.1 * gain}
    return {"arms": arms | {"MC dropout": {"passes": [passes]}}}


def records(*, gain: float = 0.05) -> dict[str, list[dict[str, Any]]]:
    """Four tasks and two seeds in which every claim of the paper holds, where `gain` is positive."""
    found: dict[str, list[dict[str, Any]]] = {
        kind: [] for kind in ("sweep", "randomness", "pool", "few_shot", "last_layer")
    }
    for place, task in enumerate(("one", "two", "three", "four")):
        for seed in range(2):
            own = gain * (1 + 0.02 * place)  # tasks differ a little
            sources = {"init": 0.5, "order": 0.9, "init, decay of B": 0.3, "order, decay of B": 0.8}
            sizes = {
                str(size): [{"accuracy": 0.7 + own * share, "nll": 2 - own * share, "ece": 0.3 - own * share}]
                for size, share in ((1, 0.0), (5, 0.8), (20, 1.0))
            }
            few = {"ensemble": {"ece": 0.05, "accuracy": 0.5}, "members": [{"ece": 0.05, "accuracy": 0.5}]}
            counts = [0] * 50
            counts[20] = 10
            results = {
                "sweep": sweep(0.01 * place, own),
                "randomness": {
                    "arms": {
                        name: arm({"10": row(0.7, 2.0, 0.3, share * own)}) for name, share in sources.items()
                    }
                },
                "pool": {"none": sizes},
                "few_shot": few | {"wrong_confidence": {"members": {"counts": counts, "of": 50}}},
                "last_layer": {
                    "ensemble": {"accuracy": 0.5, "nll": 1.2},
                    "members": [],
                    "train_accuracy": 0.6,
                },
            }
            for kind, result in results.items():
                settings = {"task": task, "seed": seed, "decay": 0.05}
                found[kind].append({"settings": settings, "result": result})
    return found


def test_every_claim_is_supported_by_records_in_which_it_holds() -> None:
    verdicts = {
        claim.id: (
            claim.verdict,
            [part for part in claim.parts if part.verdict not in ("supported", "shown")],
        )
        for claim in judge(records())
    }
    assert verdicts == {f"C{number}": ("supported", []) for number in range(1, 12)}


def test_claims_about_the_gain_are_contradicted_where_the_ensemble_is_worse() -> None:
    verdicts = {claim.id: claim.verdict for claim in judge(records(gain=-0.05))}
    assert {name for name, verdict in verdicts.items() if verdict == "contradicted"} >= {
        "C1",
        "C4",
        "C6",
        "C7",
        "C8",
        "C10",
    }
    assert verdicts["C5"] == "supported"


def test_what_decides_is_the_weakest_clause_of_those_that_hold_and_the_strongest_of_those_against() -> None:
    found = records()
    (first, *_) = judge(found)
    clauses = [part for part in first.parts if part.verdict != "shown"]
    assert len(clauses) == 12  # three metrics, no regulariser and three families
    assert first.deciding is not None
    assert first.deciding.p == max(part.p or 0 for part in clauses)
    for record in found["sweep"]:
        record["result"]["arms"]["none"]["epochs"]["10"]["ensemble"]["ece"] = 0.5
    (first, *_) = judge(found)
    assert first.verdict == "contradicted"
    assert first.deciding is not None
    assert first.deciding.name == "ECE, no regulariser"


def test_a_claim_without_records_is_not_applicable() -> None:
    found = records()
    del found["last_layer"], found["pool"]
    judged = {claim.id: claim for claim in judge(found)}
    assert judged["C5"].verdict == judged["C7"].verdict == "not applicable"
    assert judged["C5"].deciding is None
    assert judged["C5"].reason
    assert judged["C1"].verdict == "supported"


def test_a_claim_with_clauses_that_have_no_record_is_open_and_names_them() -> None:
    found = records()
    del found["few_shot"]
    (judged,) = (claim for claim in judge(found) if claim.id == "C11")
    assert judged.verdict == "inconclusive"
    assert judged.deciding is not None
    assert judged.deciding.verdict == "supported"
    assert "no record holds ECE, few-shot against single member, " in judged.reason


def test_decay_of_a_is_compared_with_decay_of_b_at_the_same_strength() -> None:
    found = records()
    for record in found["sweep"]:
        record["settings"]["decay"] = 0.02
    (judged,) = (claim for claim in judge(found) if claim.id == "C9")
    # NLL of the ensembles: 1.4 - gain with decay of A, 1.5 - 0.9 gain with 0.02 of B
    gain = 0.05 * 1.03  # its mean over tasks
    assert judged.parts[0].difference == pytest.approx(-0.1 - 0.1 * gain, abs=1e-6)
    assert judged.parts[0].verdict == "contradicted"
    assert judged.deciding == judged.parts[0]


def test_gains_are_compared_where_the_single_member_is_equally_good() -> None:
    view = View(records())
    # Half-way from NLL 2 to 1 is 1.5: decay leaves 0.9 of the gain there and KL 0.5; stopping, between 1.3
    # and 2, 0.7 + 0.3 * 2 / 7.
    for other, share in (("KL", 0.5), ("early stopping", 0.7 + 0.3 * 2 / 7)):
        more = matched(view, "nll", "decay of B", other)
        assert more["one", 0] == pytest.approx(-(0.9 - share) * 0.05)
        assert len(more) == 8
    worse = records()
    for record in worse["sweep"]:
        for name in ("KL 0.05", "KL 0.1"):
            for member in record["result"]["arms"][name]["epochs"]["10"]["members"]:
                member["nll"] = 3.0
    assert matched(View(worse), "nll", "decay of B", "KL") == {}


def test_no_claim_is_judged_without_a_sweep() -> None:
    with pytest.raises(DataError, match="study all"):
        judge({"pool": []})


@pytest.mark.parametrize(
    ("values", "sign", "verdict"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.0, 1.0], 1, "supported"),
        ([1.0, 1.1, 0.9, 1.0, 1.0, 1.0], -1, "contradicted"),
        ([1.0, -1.1, 0.9, -1.0, 0.5, -0.5], 1, "inconclusive"),
        ([0.01, -0.02, 0.0, 0.01, 0.0, 0.0], 0, "supported"),
        ([1.0, 1.1, 0.9, 1.0, 1.0, 1.0], 0, "contradicted"),
    ],
)
def test_a_verdict_follows_from_the_interval_alone(values: list[float], sign: int, verdict: str) -> None:
    part = judged_alone(Contrast("x", {(f"task {n}", 0): one for n, one in enumerate(values)}, sign, 0.1))
    assert part.verdict == verdict
    assert part.difference == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert (part.tasks, part.settings) == (6, 6)


def judged_alone(contrast: Contrast) -> Part:
    """A clause of a claim that has no other."""
    (part,) = judge_contrasts([contrast])
    return part


def test_p_is_that_of_the_t_test_and_below_five_percent_where_the_interval_leaves_zero_out() -> None:
    values = [0.3, 0.1, -0.04, 0.2, 0.1, 0.0, 0.2, -0.05]
    differences = {(f"task {n}", 0): value for n, value in enumerate(values)}
    known = scipy_stats.ttest_1samp(values, 0.0).pvalue
    alone, chosen = (judged_alone(Contrast("x", differences, 1, chosen_from=count)) for count in (1, 9))
    assert alone.p == pytest.approx(known, rel=5e-3)  # three digits are kept
    assert chosen.p == pytest.approx(9 * known, rel=5e-3)
    assert alone.interval == chosen.interval == pytest.approx(interval_of_tasks(values), abs=1e-6)
    near = judged_alone(Contrast("x", differences, 0, margin=0.25))
    mean = statistics.fmean(values)
    assert near.p == pytest.approx(scipy_stats.ttest_1samp(values, 0.25).pvalue, rel=5e-3)
    assert mean > 0


def test_the_clauses_of_a_claim_share_one_chance_of_a_wrong_verdict() -> None:
    rng = random.Random(5)
    several = [
        Contrast(str(place), {(f"task {n}", 0): rng.gauss(effect, 1) for n in range(6)}, 1)
        for place, effect in enumerate((3.0, 1.2, 0.0, 5.0))
    ]
    alone = [judged_alone(contrast).p for contrast in several]
    together = [part.p for part in judge_contrasts(several)]
    order = sorted(range(4), key=lambda place: alone[place] or 0.0)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (4 - rank) * (alone[place] or 0.0)))
        assert together[place] == pytest.approx(largest, rel=1e-2)
    shown = [*several, Contrast("beside", several[0].differences, 1, judged=False)]
    assert [part.p for part in judge_contrasts(shown)] == [*together, None]
    assert judge_contrasts(shown)[-1].verdict == "shown"


def test_too_few_tasks_decide_nothing_however_their_seeds_agree() -> None:
    for tasks, verdict in ((LEAST_TASKS - 1, "inconclusive"), (LEAST_TASKS, "supported")):
        differences = {(f"task {n}", seed): 1 + 0.01 * (n + seed) for n in range(tasks) for seed in range(9)}
        part = judged_alone(Contrast("x", differences, 1))
        assert (part.verdict, part.tasks, part.settings) == (verdict, tasks, 9 * tasks)
        assert (part.interval is None) == (part.p is None) == (verdict == "inconclusive")


def test_the_interval_is_that_of_the_tasks_means_and_more_seeds_do_not_narrow_it() -> None:
    values = {"a": [0.0, 1.0], "b": [2.0], "c": [3.0, 3.0, 6.0], "d": [5.0]}  # means 0.5, 2, 4 and 5
    part = judged_alone(
        Contrast("x", {(task, seed): one for task in values for seed, one in enumerate(values[task])}, 1)
    )
    half = 3.182446 * statistics.stdev([0.5, 2.0, 4.0, 5.0]) / 2  # t(0.975, 3 degrees of freedom)
    assert part.interval == pytest.approx((11.5 / 4 - half, 11.5 / 4 + half), abs=2e-6)


@pytest.mark.parametrize("tasks", [4, 6])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 5.0])
def test_the_interval_of_tasks_holds_the_effect_in_19_of_20_studies(tasks: int, ratio: float) -> None:
    """Three seeds a task on its own questions: effects of tasks, of questions within a task, and of seeds."""
    rng, studies, held = random.Random(f"{tasks} {ratio}"), 2000, 0
    for _ in range(studies):
        means = []
        for _ in range(tasks):
            effect = 1 + rng.gauss(0, ratio) + rng.gauss(0, 0.5)  # the task's, and that of its questions
            means.append(statistics.fmean(effect + rng.gauss(0, 1) for _ in range(3)))
        low, high = interval_of_tasks(means) or (0.0, 0.0)
        held += low <= 1 <= high
    assert 0.93 <= held / studies <= 0.97


@pytest.mark.parametrize(("tasks", "clauses"), [(4, 1), (6, 1), (4, 6), (6, 6)])
def test_without_an_effect_a_claim_is_wrong_about_a_clause_in_one_study_of_twenty(
    tasks: int, clauses: int
) -> None:
    rng, studies, wrong = random.Random(tasks), 1500, 0
    for _ in range(studies):
        several = []
        for clause in range(clauses):
            effects = [rng.gauss(0, 1) for _ in range(tasks)]
            differences = {
                (f"task {n}", seed): effect + rng.gauss(0, 0.3)
                for n, effect in enumerate(effects)
                for seed in range(3)
            }
            several.append(Contrast(str(clause), differences, 1))
        wrong += any(part.verdict != "inconclusive" for part in judge_contrasts(several))
    # At most 5 %, and for independent clauses 1 - (1 - 0.05 / n)^n; four standard errors of a share of 1,500.
    share = 1 - (1 - 0.05 / clauses) ** clauses
    assert wrong / studies == pytest.approx(share, abs=4 * (0.05 * 0.95 / studies) ** 0.5)


def test_claims_are_those_of_the_paper_in_order() -> None:
    assert [name for name, _, _ in CLAIMS] == [f"C{number}" for number in range(1, 12)]
    assert json.dumps([claim.to_dict() for claim in judge(records())])


def test_the_papers_grid_has_the_papers_strength_of_decay_on_each_task() -> None:
    # lambda * learning rate: 1e2 * 5e-5 on four tasks, 1e3 * 5e-5 on the two of MMLU (Fig. 3).
    for task in ("cqa", "obqa", "arce", "arcc"):
        assert settings_of(PAPER, "sweep", task, 0)["decay"] == pytest.approx(1e2 * 5e-5)
    for task in ("mmlu-ss", "mmlu-stem"):
        for kind in ("sweep", "pool", "methods"):
            assert settings_of(PAPER, kind, task, 0)["decay"] == pytest.approx(1e3 * 5e-5)
    assert set(settings_of(PAPER, "rank", "mmlu-ss", 0)) == set(settings_of(FULL, "rank", "world-cqa", 0))
    assert settings_of(PAPER.decayed(0.3), "sweep", "mmlu-ss", 0)["decay"] == 0.3
