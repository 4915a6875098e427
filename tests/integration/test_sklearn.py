"""`LoraEnsembleClassifier`: it trains what `train` trains,
and does what scikit-learn asks of an estimator.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mapie.classification import SplitConformalClassifier
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import has_fit_parameter

import lora_ensembles
import tiny_heads
from command_line import call
from lora_ensembles import (
    CheckpointError,
    ConfigError,
    DataError,
    Example,
    HeadConfig,
    LoraEnsemble,
    LoraEnsembleClassifier,
    MissingExtraError,
    Prediction,
    TrainConfig,
    calibrate,
    load_base,
    predict,
    train,
)
from lora_ensembles.calibration.held_out import held_out_split
from lora_ensembles.disk.layout import foreign_files
from tiny_ensembles import NAMES, PLACES, adapter, llama, same_state, state, tokenizer

CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=2e-2, loss="labels")
TEXTS = [f"Where does the {name} live {place}" for place in PLACES for name in NAMES]  # 32
LABELS = ["yes" if number % 3 else "no" for number in range(len(TEXTS))]
NEW = [f"{name} the {place}" for name, place in zip(NAMES, PLACES * 2, strict=True)]
MORE = [f"{name} not {place}" for name in NAMES[:6] for place in PLACES]  # 24 others, to calibrate on
MORE_LABELS = ["no" if number % 4 else "yes" for number in range(len(MORE))]
PAIRS = [(text, PLACES[number % 3]) for number, text in enumerate(TEXTS)]


def tiny(**parameters: Any) -> LoraEnsembleClassifier:
    """An untrained classifier whose two members choose among the words of the classes."""
    settings = {"base": (llama(), tokenizer()), "num_members": 2, "adapter": adapter(), "config": CONFIG}
    return LoraEnsembleClassifier(**settings | parameters)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base that is loaded by name."""
    path = str(tmp_path_factory.mktemp("base"))
    llama(name="").save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def fitted() -> LoraEnsembleClassifier:
    return tiny().fit(TEXTS, LABELS)


def examples(texts: list[str], labels: list[str | None]) -> list[Example]:
    """Questions that the words " no" and " yes" answer, made without the classifier's code."""
    return [
        Example(
            str(number),
            f"Q: {text}\nA:",
            (" no", " yes"),
            None if label is None else ["no", "yes"].index(label),
            text,
            ("no", "yes"),
        )
        for number, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


# What it trains


def test_language_model_gives_exactly_the_probabilities_of_train(fitted: LoraEnsembleClassifier) -> None:
    ensemble = LoraEnsemble(llama(), tokenizer(), num_members=2, adapter=adapter(), seed=0)
    train(ensemble, examples(TEXTS, LABELS), CONFIG, progress=False)
    expected = predict(ensemble, examples(NEW, [None] * len(NEW)))
    np.testing.assert_array_equal(fitted.predict_proba(NEW), expected.probs.numpy())
    np.testing.assert_array_equal(fitted.predict_log_proba(NEW), expected.log_probs.numpy())
    np.testing.assert_array_equal(fitted.member_predict_proba(NEW), expected.member_log_probs.exp().numpy())
    assert fitted.predict(NEW).tolist() == [["no", "yes"][choice] for choice in expected.choices]


def test_heads_of_a_base_by_name_give_exactly_the_probabilities_of_train(folder: str) -> None:
    settings = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "weight_decay_b": 0.5}
    classifier = LoraEnsembleClassifier(folder, num_members=3, rank=2, alpha=6, random_state=5, **settings)
    classifier.fit(PAIRS, LABELS)
    base, words = load_base(folder, head="sequence-classification", num_labels=2)
    ensemble = LoraEnsemble(base, words, num_members=3, adapter=_classifier_adapter(), seed=5)
    rows = [
        dataclasses.replace(example, pair=pair)
        for example, (_, pair) in zip(examples(TEXTS, LABELS), PAIRS, strict=True)
    ]
    train(ensemble, rows, dataclasses.replace(TrainConfig.preset("default"), **settings), progress=False)
    np.testing.assert_array_equal(classifier.predict_proba(PAIRS), predict(ensemble, rows).probs.numpy())


def _classifier_adapter() -> Any:
    return dataclasses.replace(adapter(rank=2, alpha=6), task_type=None)


def test_head_of_a_loaded_classifier_is_used_and_its_length_limit_is_kept() -> None:
    base = (tiny_heads.build("bert", "sequence-classification"), tiny_heads.tokenizer())
    texts = [example.prompt for example in tiny_heads.class_examples()]
    labels = [example.labels[example.target or 0] for example in tiny_heads.class_examples()]
    classifier = LoraEnsembleClassifier(base, num_members=2, epochs=1, head=HeadConfig(init="base"))
    classifier.fit(texts, labels)
    assert classifier.ensemble_.info.head.kind == "sequence-classification"
    with pytest.raises(DataError, match="the window is 4"):
        clone(classifier).set_params(max_length=4).fit(texts, labels)


def test_embedded_base_works_without_any_setting_but_few_epochs() -> None:
    classifier = LoraEnsembleClassifier(num_members=2, epochs=1).fit(TEXTS, LABELS)
    assert classifier.ensemble_.info.head.kind == "sequence-classification"
    assert classifier.predict_proba(NEW).shape == (len(NEW), 2)


def test_random_state_may_be_a_generator_or_none() -> None:
    def first(random_state: Any) -> float:
        made = tiny(random_state=random_state, num_members=1).set_params(epochs=1).fit(TEXTS, LABELS)
        return float(made.predict_proba(NEW)[0, 0])

    seed = np.random.RandomState(3).randint(2**31 - 1)
    np.random.seed(3)
    assert first(np.random.RandomState(3)) == first(int(seed)) == first(None)


# What it takes


@pytest.mark.parametrize(
    "given",
    [
        tuple(NEW),
        np.array(NEW),
        np.array(NEW, dtype=object),
        np.array(NEW)[:, None],
        [[text] for text in NEW],
        pd.Series(NEW, index=range(5, 13)),
        pd.DataFrame({"anything": NEW}),
    ],
    ids=["tuple", "array", "objects", "column", "lists", "series", "frame"],
)
def test_texts_of_every_kind_give_the_same_probabilities(fitted: LoraEnsembleClassifier, given: Any) -> None:
    np.testing.assert_array_equal(fitted.predict_proba(given), fitted.predict_proba(NEW))


def test_columns_of_a_frame_are_pairs_and_are_remembered(folder: str) -> None:
    frame = pd.DataFrame(PAIRS, columns=["premise", "hypothesis"])
    classifier = LoraEnsembleClassifier(folder, num_members=2, epochs=1).fit(frame, pd.Series(LABELS))
    assert classifier.num_columns_ == 2
    assert classifier.feature_names_in_.tolist() == ["premise", "hypothesis"]
    assert {example.pair for example in classifier._read(frame).examples(("a", "b"))} == set(PLACES[:3])
    with pytest.raises(DataError, match="X has the columns hypothesis, premise, and fit was given premise"):
        classifier.predict(frame[["hypothesis", "premise"]])
    assert not hasattr(classifier.fit(PAIRS, LABELS), "feature_names_in_")


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(32) % 3,
        np.arange(32) % 2 == 0,
        np.array(["b", "a", "c", "a"] * 8, dtype=object),
        pd.Series(["b", "a"] * 16, dtype="category"),
    ],
    ids=["numbers", "truth values", "texts", "categories"],
)
def test_classes_are_those_of_numpy_in_its_order(folder: str, labels: Any, tmp_path: Path) -> None:
    classifier = LoraEnsembleClassifier(folder, num_members=1, epochs=1).fit(TEXTS, labels)
    expected = np.unique(np.asarray(labels))
    assert classifier.classes_.tolist() == expected.tolist()
    assert classifier.classes_.dtype == expected.dtype
    assert classifier.predict(NEW).dtype == expected.dtype
    assert 0 <= classifier.score(TEXTS, labels) <= 1
    classifier.save(tmp_path / "saved")
    loaded = LoraEnsembleClassifier.load(tmp_path / "saved")
    assert loaded.classes_.dtype == expected.dtype
    assert loaded.predict(TEXTS).tolist() == classifier.predict(TEXTS).tolist()


# What it says


def test_probabilities_are_the_mean_of_the_members(fitted: LoraEnsembleClassifier) -> None:
    members = fitted.member_predict_proba(NEW)
    assert members.shape == (2, len(NEW), 2)
    # float32, in which probabilities are kept, has 24 bits: 6e-8
    np.testing.assert_allclose(fitted.predict_proba(NEW), members.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(fitted.predict_proba(NEW).sum(axis=1), 1, atol=1e-6)
    assert fitted.predict(NEW).tolist() == fitted.classes_[fitted.predict_proba(NEW).argmax(axis=1)].tolist()


def test_uncertainties_are_those_of_the_formulas(fitted: LoraEnsembleClassifier) -> None:
    members = fitted.member_predict_proba(NEW).astype(float)
    mean = members.mean(axis=0)
    total = -(mean * np.log(mean)).sum(axis=-1)
    expected = -(members * np.log(members)).sum(axis=-1).mean(axis=0)
    differ = (members.argmax(axis=-1)[0] != members.argmax(axis=-1)[1]).astype(float)
    measured = fitted.predict_uncertainty(NEW)
    for name, values in {
        "predictive_entropy": total,
        "aleatoric": expected,
        "epistemic": total - expected,
        "disagreement": differ,
    }.items():
        # the float32 of the probabilities that the formulas are given
        np.testing.assert_allclose(measured.pop(name), values, atol=1e-6)
    assert measured == {}


def test_share_that_is_held_out_calibrates_as_the_library_does() -> None:
    classifier = tiny(calibration_share=0.4).fit(TEXTS, LABELS)
    held_out, rest = held_out_split(examples(TEXTS, LABELS), share=0.4, seed=0)
    ensemble = LoraEnsemble(llama(), tokenizer(), num_members=2, adapter=adapter(), seed=0)
    train(ensemble, rest, CONFIG, progress=False)
    calibrate(ensemble, held_out)
    expected = predict(ensemble, examples(NEW, [None] * len(NEW)))
    assert ensemble.calibrated is not None
    assert classifier.ensemble_.calibrated is not None
    assert classifier.ensemble_.calibrated.calibration == ensemble.calibrated.calibration
    np.testing.assert_array_equal(classifier.predict_proba(NEW), expected.probs.numpy())


def test_calibrate_takes_other_texts_and_refuses_those_that_were_trained_on() -> None:
    classifier = tiny().fit(TEXTS[:16], LABELS[:16])
    before = classifier.predict_proba(NEW)
    with pytest.raises(DataError, match="was trained on"):
        classifier.calibrate(TEXTS[10:], LABELS[10:])
    with pytest.raises(DataError, match="y holds 'maybe', and the classifier was trained on the classes"):
        classifier.calibrate(["otter"], ["maybe"])
    calibration = classifier.calibrate(MORE, MORE_LABELS)
    members = classifier.member_predict_proba(NEW)
    np.testing.assert_allclose(members.mean(axis=0), before, atol=1e-6)  # float32
    expected = calibration(Prediction(torch.from_numpy(members).log()))
    np.testing.assert_allclose(classifier.predict_proba(NEW), expected.probs.numpy(), atol=1e-6)


# What it keeps


def test_saved_classifier_gives_the_same_probabilities_and_is_an_ordinary_ensemble(tmp_path: Path) -> None:
    base = (llama(), tokenizer())
    classifier = tiny(base=base, learning_rate=np.float64(1e-2), head=HeadConfig("causal-lm"))
    classifier.fit(pd.DataFrame({"words": TEXTS}), LABELS)
    classifier.calibrate(MORE, MORE_LABELS)
    classifier.save(tmp_path / "saved")
    loaded = LoraEnsembleClassifier.load(tmp_path / "saved", base=base)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert loaded.feature_names_in_.tolist() == ["words"]
    kept = {"base", "adapter"}
    before, after = classifier.get_params(), loaded.get_params()
    assert {name: after[name] for name in after if name not in kept} == {
        name: before[name] for name in before if name not in kept
    }
    assert (after["adapter"].r, after["adapter"].lora_alpha) == (2, 8)
    again = clone(loaded).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(
        again.predict_proba(NEW), clone(classifier).fit(TEXTS, LABELS).predict_proba(NEW)
    )
    ensemble = LoraEnsemble.from_pretrained(tmp_path / "saved", base=llama(), tokenizer=tokenizer())
    np.testing.assert_array_equal(predict(ensemble, TEXTS).probs.numpy(), classifier.predict_proba(TEXTS))
    assert foreign_files(tmp_path / "saved") == []
    with pytest.raises(CheckpointError, match="exists already"):
        classifier.save(tmp_path / "saved")


def test_saved_classifier_is_found_by_its_base_and_read_by_the_command_line(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = LoraEnsembleClassifier(folder, num_members=2, epochs=1).fit(TEXTS, LABELS)
    classifier.save(tmp_path / "saved")
    loaded = LoraEnsembleClassifier.load(tmp_path / "saved")
    assert loaded.base == folder
    np.testing.assert_array_equal(loaded.predict_proba(NEW), classifier.predict_proba(NEW))
    (tmp_path / "new.csv").write_text("text\n" + "\n".join(NEW) + "\n")
    out = tmp_path / "answers.csv"
    done = call(capsys, "predict", tmp_path / "saved", "--in", tmp_path / "new.csv", "--out", out)
    assert done.code == 0, done.err
    assert pd.read_csv(out)["prediction"].tolist() == classifier.predict(NEW).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2; it has to be 1"),
        ({"classes": {"dtype": "|V8", "values": ["a", "b"]}}, "classes.dtype is '|V8'"),
        ({"classes": {"dtype": "int8", "values": [1, 300]}}, "classes.values do not fit their dtype"),
        ({"classes": {"dtype": "str", "values": ["a"]}}, "a list of at least 2"),
        ({"num_columns": 3}, "num_columns is 3"),
        ({"parameters": {}}, "parameters.adapter is missing"),
    ],
)
def test_corrupt_file_is_refused_by_its_place(
    fitted: LoraEnsembleClassifier, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    fitted.save(tmp_path / "saved")
    path = tmp_path / "saved" / "classifier.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message.replace("|", r"\|")):
        LoraEnsembleClassifier.load(tmp_path / "saved")


def test_ensemble_without_a_classifier_and_classes_that_json_lacks_are_refused(
    fitted: LoraEnsembleClassifier, tmp_path: Path
) -> None:
    fitted.ensemble_.save_pretrained(tmp_path / "ensemble")
    with pytest.raises(CheckpointError, match=r"holds no classifier.json.*LoraEnsemble.from_pretrained"):
        LoraEnsembleClassifier.load(tmp_path / "ensemble")
    odd = clone(fitted).fit(TEXTS, LABELS)
    odd.classes_ = np.array([b"no", b"yes"])
    with pytest.raises(ConfigError, match="of type bytes cannot be saved"):
        odd.save(tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_clones_share_the_weights_of_a_loaded_base_and_leave_it_as_it_was() -> None:
    model = llama()
    before, modules = state(model), [type(module) for module in model.modules()]
    first = tiny(base=(model, tokenizer()))
    second = clone(first).set_params(random_state=1)
    assert second.base is first.base
    first.fit(TEXTS, LABELS)
    kept = first.predict_proba(NEW)
    second.fit(TEXTS, LABELS)
    assert not np.allclose(second.predict_proba(NEW), kept)
    np.testing.assert_array_equal(first.predict_proba(NEW), kept)
    embeddings = (model.get_input_embeddings(), first.ensemble_.base.get_input_embeddings())
    assert embeddings[0].weight is embeddings[1].weight
    assert same_state(model, before)
    assert [type(module) for module in model.modules()] == modules


# What scikit-learn and MAPIE do with it


def test_pipeline_trains_on_what_comes_before_it(fitted: LoraEnsembleClassifier) -> None:
    shout = FunctionTransformer(lambda texts: [f"{text} ." for text in texts])
    pipeline = make_pipeline(shout, tiny()).fit(TEXTS, LABELS)
    assert pipeline.classes_.tolist() == ["no", "yes"]
    expected = (
        tiny().fit([f"{text} ." for text in TEXTS], LABELS).predict_proba([f"{text} ." for text in NEW])
    )
    np.testing.assert_array_equal(pipeline.predict_proba(NEW), expected)


def test_cross_validation_predicts_each_text_by_a_classifier_that_did_not_see_it() -> None:
    first, second = np.split(np.arange(32), 2)
    halves = [(first, second), (second, first)]
    expected = tiny().fit(TEXTS[:16], LABELS[:16])
    labels = cross_val_predict(tiny(), TEXTS, LABELS, cv=halves)
    assert labels[16:].tolist() == expected.predict(TEXTS[16:]).tolist()
    # For probabilities scikit-learn makes numbers of the classes, which are no words.
    named = tiny(class_names=["no", "yes"])
    probs = cross_val_predict(named, np.array(TEXTS), LABELS, cv=halves, method="predict_proba")
    np.testing.assert_array_equal(probs[16:], expected.predict_proba(TEXTS[16:]))
    scores = cross_val_score(tiny(), TEXTS, LABELS, cv=halves, scoring="neg_log_loss")
    right = expected.predict_proba(TEXTS[16:])[range(16), np.searchsorted(["no", "yes"], LABELS[16:])]
    assert scores[0] == pytest.approx(np.log(right).mean(), abs=1e-6)  # float32
    observed, predicted = calibration_curve(np.array(LABELS) == "yes", probs[:, 1], n_bins=3)
    assert len(observed) == len(predicted) >= 1


def test_grid_search_tries_members_and_learning_rates() -> None:
    grid = {"num_members": [1, 2], "learning_rate": [1e-3, 2e-2]}
    search = GridSearchCV(tiny(epochs=1), grid, cv=2, scoring="neg_log_loss", error_score="raise")
    search.fit(TEXTS, LABELS)
    assert search.best_estimator_.ensemble_.num_members == search.best_params_["num_members"]
    assert len(search.cv_results_["params"]) == 4


def test_calibrated_classifier_takes_a_frozen_one(fitted: LoraEnsembleClassifier) -> None:
    calibrated = CalibratedClassifierCV(FrozenEstimator(fitted), method="sigmoid").fit(NEW * 2, LABELS[:16])
    probs = calibrated.predict_proba(NEW)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-12)
    # Platt's sigmoid of the probability of the second class, so in its order or the reverse.
    places = fitted.predict_proba(NEW)[:, 1].argsort()
    assert (np.diff(probs[places, 1]) >= 0).all() or (np.diff(probs[places, 1]) <= 0).all()


def test_mapie_makes_sets_of_a_fitted_classifier(fitted: LoraEnsembleClassifier) -> None:
    conformal = SplitConformalClassifier(estimator=fitted, confidence_level=0.7, prefit=True)
    conformal.conformalize(np.array(TEXTS), np.array(LABELS))
    labels, sets = conformal.predict_set(np.array(NEW))
    assert labels.tolist() == fitted.predict(NEW).tolist()
    # LAC: the score of a calibration text is 1 - p(its class), and a class is in the set where 1 - p is at
    # most the ceil((n + 1) * level)-th smallest of n scores.
    probs = fitted.predict_proba(TEXTS)
    scores = np.sort(1 - probs[range(len(TEXTS)), np.searchsorted(fitted.classes_, LABELS)])
    limit = scores[int(np.ceil((len(TEXTS) + 1) * 0.7)) - 1]
    np.testing.assert_array_equal(sets[:, :, 0], 1 - fitted.predict_proba(NEW) <= limit)


# What it refuses


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ("one text", LABELS, "X is 'one text'; pass a list of texts"),
        (7, LABELS, "X is 7; pass"),
        ([], [], "X holds 0 texts; pass"),
        ([["a", "b", "c"]], ["yes"], r"X\[0\] has 3 columns; pass"),
        (["a", ["b", "c"]], ["yes", "no"], r"X\[1\] has 2 columns and X\[0\] has 1; pass"),
        (["a", 3.5], ["yes", "no"], r"X\[1\] holds 3.5, which is no text; pass"),
        (["a", " "], ["yes", "no"], r"X\[1\] holds ' ', which is no text; pass"),
        (np.zeros((2, 2, 2)), ["yes", "no"], "X has 3 dimensions; pass"),
        (["a", "b"], None, "the target y is None; give a class for each text"),
        (["a", "b"], ["yes"], "y has 1 labels for 2 texts in X; give"),
        (["a", "b"], [0.5, 1.5], "y holds no class labels: Unknown label type: continuous.*; give"),
        (["a", "b"], ["yes", None], "y holds no class labels: .*; give"),
        (["a", "b"], [[0, 1], [1, 0]], "y holds no class labels: .*; give"),
        (["a", "b"], ["yes", "yes"], "y holds the one class 'yes'; 2 or more classes are needed"),
        (["a", "b"], ["yes", "yes "], "label word 'yes' comes twice"),
    ],
)
def test_data_that_cannot_be_used_is_refused(texts: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny().fit(texts, labels)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"base": 3}, r"base is of type int; it is the name of a model.*or a pair \(model, tokenizer\)"),
        ({"base": llama()}, "base is of type LlamaForCausalLM; it is the name"),
        ({"num_members": 0}, "num_members=0"),
        ({"epochs": 0}, "epochs=0; it is a whole number"),
        ({"config": {"epochs": 3}}, "config is of type dict; it is a TrainConfig, or None"),
        ({"head": "multiple-choice"}, "head 'multiple-choice'; a classifier has 'causal-lm' or"),
        ({"head": "causal-lm", "max_length": 8}, "max_length=8: for the head 'sequence-classification'"),
        ({"head": "sequence-classification"}, "head 'sequence-classification' on a LlamaForCausalLM"),
        ({"class_names": ["ham"]}, r"class_names=\['ham'\] for the classes \['no', 'yes'\]; give one text"),
        ({"calibration_share": 1.0}, "calibration_share=1.0; it is a number of at least 0 and below 1"),
        ({"random_state": "x"}, "seed='x'; it is a whole number"),
        ({"device": "cpu"}, "device='cpu', and base is a loaded model.*leave device out"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16', and base is a loaded model.*leave dtype out"),
        ({"base": "embedded", "device": "tpu9"}, "device='tpu9'; it is 'auto', or one that torch knows"),
    ],
)
def test_parameters_that_cannot_work_are_refused_by_fit(parameters: dict[str, Any], message: str) -> None:
    classifier = tiny(**parameters)
    with pytest.raises(ConfigError, match=message):
        classifier.fit(TEXTS, LABELS)


def test_reward_model_pairs_for_a_language_model_and_few_held_out_texts_are_refused() -> None:
    rewards = LoraEnsembleClassifier((tiny_heads.build("bert", "reward"), tiny_heads.tokenizer()))
    with pytest.raises(
        ConfigError, match="whose head is 'reward'; a classifier needs a causal language model"
    ):
        rewards.fit(TEXTS, LABELS)
    with pytest.raises(ConfigError, match="X has 2 columns, and members with the head 'causal-lm' read one"):
        tiny().fit(PAIRS, LABELS)
    with pytest.raises(DataError, match=r"calibration_share=0\.1 holds 3 of 32 texts out, too few"):
        tiny(calibration_share=0.1).fit(TEXTS, LABELS)


def test_untrained_classifier_says_so(tmp_path: Path) -> None:
    for method in (
        lambda: tiny().predict(NEW),
        lambda: tiny().predict_uncertainty(NEW),
        lambda: tiny().calibrate(NEW, LABELS[:8]),
        lambda: tiny().save(tmp_path / "saved"),
    ):
        with pytest.raises(NotFittedError, match="This LoraEnsembleClassifier instance is not fitted yet"):
            method()


def test_number_of_columns_must_be_that_of_training(fitted: LoraEnsembleClassifier) -> None:
    with pytest.raises(DataError, match="X has 2 columns of texts, and fit was given 1; pass as many"):
        fitted.predict(PAIRS)


def test_weights_of_texts_are_refused_and_scikit_learn_knows_it(fitted: LoraEnsembleClassifier) -> None:
    assert not has_fit_parameter(fitted, "sample_weight")
    with pytest.raises(TypeError, match="unexpected keyword argument 'sample_weight'"):
        tiny().fit(TEXTS, LABELS, sample_weight=np.ones(len(TEXTS)))  # type: ignore[call-arg]
    assert fitted.score(TEXTS, LABELS, sample_weight=np.ones(len(TEXTS))) == fitted.score(TEXTS, LABELS)


def test_missing_scikit_learn_is_an_error_that_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("lora_ensembles.integrations.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(vars(lora_ensembles), "LoraEnsembleClassifier")
    with pytest.raises(MissingExtraError, match=r'run: pip install "lora-ensembles\[sklearn\]"'):
        lora_ensembles.LoraEnsembleClassifier  # noqa: B018
    assert lora_ensembles.LoraEnsemble is LoraEnsemble


def test_star_import_leaves_the_classifier_out_without_scikit_learn() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import lora_ensembles; print(*lora_ensembles.__all__)"
    names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(lora_ensembles.__all__) - set(names) == {"LoraEnsembleClassifier"}
