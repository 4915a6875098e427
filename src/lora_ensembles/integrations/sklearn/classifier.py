"""LoraEnsembleClassifier: an ensemble behind the methods that scikit-learn calls.

Shapes: M members, N texts, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from ...calibration.calibrated import calibrate
from ...calibration.held_out import fingerprints, held_out_split, refuse_known
from ...calibration.kinds import FEWEST
from ...checks import number_between
from ...data import Example
from ...disk.atomic import written_aside
from ...disk.layout import CLASSIFIER_FILE
from ...embedded import device_named, move
from ...ensemble import LoraEnsemble
from ...errors import DataError
from ...prediction.prediction import Prediction, predict
from ...prediction.uncertainty import disagreement, split_entropy
from ...stack.head_config import HeadConfig, HeadKind
from ...storage.folder import base_name, write_members
from ...storage.hub import ensemble_folder
from ...training.adapters import train
from ...training.config import PerMember, TrainConfig
from .saved import Saved
from .settings import new_ensemble, own_copy, seed_of, train_config
from .texts import Texts, known_targets, label_words, read_labels, read_texts

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ...calibration.scaling import Calibration

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class LoraEnsembleClassifier(ClassifierMixin, BaseEstimator):
    """A LoRA ensemble as a classifier of scikit-learn: texts in, classes and their probabilities out.

    X is a list, a tuple, an array or a Series of N texts, or an array or a DataFrame with one column of texts
    or two, the texts of pairs. y holds N class labels: texts, whole numbers or truth values. Parameters are
    checked in `fit`. With equal parameters, data and an integer `random_state`, `fit` trains exactly the
    ensemble that `train` does.

    Args:
        base: the name of a model, as in `load_base`, or a pair (model, tokenizer). A pair is loaded once and
            its weights, which stay frozen, are shared by all clones.
        num_members: number of members, at least 1.
        rank, alpha: of the adapters; None: those of `adapter`.
        adapter: a `peft.LoraConfig`; None: the paper's (rank 8, alpha 32) on the query and value projections.
        head: "sequence-classification": each member learns a head of its own, on a base of any kind.
            "causal-lm": the language model chooses among the names of the classes. A `HeadConfig`: either
            with its settings. None: a head of their own for a base by name, and what the model is for a pair.
        class_names: words that the language model chooses among, one for each class in sorted order; None:
            the classes as texts.
        max_length: most tokens of a text; None: the base's window. For "sequence-classification".
        epochs, batch_size, learning_rate, weight_decay_b: as in `TrainConfig`; None: those of `config`.
        config: all other settings of training; None: the preset "embedded" for the embedded base, "default"
            for others.
        calibration_share: share of the texts that is held out to calibrate on, from 0 (none) to below 1.
        random_state: seed of the ensemble and of what is held out. A `numpy.random.RandomState`, or None for
            numpy's global one: a seed is drawn from it.
        device: where a base by name runs: "auto" (a GPU if there is one) or a device of torch.
        dtype: "float32", "bfloat16" or "float16" for a base by name; None: as its weights are stored.
        verbose: show a progress bar while training.

    Attributes:
        classes_: (C,) sorted classes.
        ensemble_: the trained `LoraEnsemble`.
        num_columns_: 1 for texts, 2 for pairs of texts. (There is no `n_features_in_`: that is of numbers,
            and MAPIE tries an estimator that has it on some.)
        feature_names_in_: the columns of the DataFrame that it was trained on, if it was one.

    Example:
        >>> clf = LoraEnsembleClassifier(num_members=2, epochs=1)
        >>> clf = clf.fit(
        ...     ["It crashed.", "I paid twice.", "No sound.", "Refund me."], ["bug", "bill", "bug", "bill"]
        ... )
        >>> clf.predict_proba(["It does not start."]).shape
        (1, 2)
    """

    def __init__(  # noqa: PLR0913 - scikit-learn's searches set parameters by their names here
        self,
        base: str | Loaded = "embedded",
        *,
        num_members: int = 5,
        rank: int | None = None,
        alpha: float | None = None,
        adapter: LoraConfig | None = None,
        head: HeadConfig | HeadKind | None = None,
        class_names: Sequence[str] | None = None,
        max_length: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: PerMember | None = None,
        weight_decay_b: PerMember | None = None,
        config: TrainConfig | None = None,
        calibration_share: float = 0.0,
        random_state: int | np.random.RandomState | None = 0,
        device: Any = "auto",
        dtype: str | None = None,
        verbose: bool = False,
    ):
        self.base = base
        self.num_members = num_members
        self.rank = rank
        self.alpha = alpha
        self.adapter = adapter
        self.head = head
        self.class_names = class_names
        self.max_length = max_length
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay_b = weight_decay_b
        self.config = config
        self.calibration_share = calibration_share
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> LoraEnsembleClassifier:
        """Train the members on texts and their classes; what was trained before is forgotten.

        Args:
            X: N texts or pairs of texts.
            y: N class labels, of 2 or more classes.

        Returns:
            The classifier itself.

        Raises:
            DataError: X holds something else than texts, y no classes, or one does not fit the other.
            ConfigError: a parameter cannot work.
            AdapterError, TrainingError: as `LoraEnsemble` and `train`.
        """
        config = train_config(self)
        share = number_between("calibration_share", self.calibration_share, least=0, below=1)
        texts = read_texts(X)
        classes, targets = read_labels(y, len(texts.rows))
        examples: Sequence[Example] = texts.examples(label_words(classes, self.class_names), targets)
        seed = seed_of(self.random_state)
        held_out, examples = _split(examples, share, seed)
        ensemble = new_ensemble(self, num_classes=len(classes), pairs=texts.width == 2, seed=seed)
        train(ensemble, examples, config, progress=bool(self.verbose))
        if held_out:
            calibrate(ensemble, held_out, source=f"{share:g} of the training rows")
        self._trained_on = fingerprints(examples)
        self._keep(ensemble, classes, texts.width, texts.names)
        return self

    def _keep(
        self, ensemble: LoraEnsemble, classes: np.ndarray, width: int, names: tuple[str, ...] | None
    ) -> None:
        self.ensemble_, self.classes_, self.num_columns_ = ensemble, classes, width
        self._words = label_words(classes, self.class_names)
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):  # of the texts that it was fitted on before
            del self.feature_names_in_

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each text (N,)."""
        prediction = self._prediction(X)
        return np.asarray(self.classes_[prediction.choices.numpy()])

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, C) float32 probabilities in the order of `classes_`: the mean of the members', or the
        calibrated ones.
        """
        return self._prediction(X).probs.numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """(N, C) float32 natural logarithms of `predict_proba`."""
        return self._prediction(X).log_probs.numpy()

    def member_predict_proba(self, X: Any) -> np.ndarray:
        """(M, N, C) float32 probabilities of each member, not calibrated."""
        return self._prediction(X).member_log_probs.exp().numpy()

    def predict_uncertainty(self, X: Any) -> dict[str, np.ndarray]:
        """The uncertainty of each text, float32, of the members before any calibration.

        Args:
            X: N texts or pairs of texts.

        Returns:
            (N,) arrays: "predictive_entropy", the entropy of the mean, and its parts "aleatoric" (the
            members' mean entropy) and "epistemic" (mutual information), in nats; "disagreement", the share of
            pairs of members that choose different classes.
        """
        prediction = self._prediction(X)
        names = ("predictive_entropy", "aleatoric", "epistemic")
        parts = (part.float().numpy() for part in split_entropy(prediction.member_log_probs))
        return {**dict(zip(names, parts, strict=True)), "disagreement": disagreement(prediction).numpy()}

    def calibrate(self, X: Any, y: Any) -> Calibration:
        """Calibrate the probabilities on texts that were not trained on; `predict_proba` then gives
        calibrated ones.

        Args:
            X: N texts or pairs of texts.
            y: their class labels, among `classes_`.

        Returns:
            The calibration, which the ensemble keeps and `save` writes.

        Raises:
            DataError: as `calibration.calibrated.calibrate`; a text that was trained on; or a label that is
                no class.
        """
        texts = self._read(X)
        targets = known_targets(y, self.classes_, len(texts.rows))
        examples = texts.examples(self._words, targets)
        refuse_known(examples, self._trained_on, "was trained on", "calibrate on examples that were not")
        return calibrate(self.ensemble_, examples)

    def save(self, path: str | Path) -> None:
        """Write the ensemble's own folder (see `LoraEnsemble.save_pretrained`) with `classifier.json` in it;
        whole or not at all.

        Args:
            path: a folder that does not exist.

        Raises:
            CheckpointError: `path` exists, or cannot be written.
            ConfigError: classes that JSON cannot hold.
        """
        check_is_fitted(self)
        parameters = self.get_params(deep=False) | {"adapter": self.adapter is not None}
        if not isinstance(self.base, str):
            parameters["base"] = None
        if hasattr(self.random_state, "randint"):
            parameters["random_state"] = None
        names = getattr(self, "feature_names_in_", None)
        saved = Saved(
            parameters, self.classes_, self.num_columns_, None if names is None else tuple(names.tolist())
        )
        content = saved.text()
        with written_aside(Path(path)) as folder:
            write_members(self.ensemble_, folder, home=Path(path), kept=self.ensemble_.calibrated)
            (folder / CLASSIFIER_FILE).write_text(content, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, *, base: Loaded | None = None) -> LoraEnsembleClassifier:
        """The classifier that `save` wrote.

        Args:
            path: its folder, or "owner/name" of the hub.
            base: a pair (model, tokenizer) instead of the recorded base, such as one that has no name.

        Returns:
            A fitted classifier with the parameters of the saved one.

        Raises:
            CheckpointError: the folder holds no classifier, or is corrupt or of a newer format.
            AdapterError, DataError: as `LoraEnsemble.from_pretrained`.
        """
        folder = ensemble_folder(path)
        saved = Saved.read(folder, sorted(cls().get_params()))
        parameters = dict(saved.parameters)
        model, tokenizer = (None, None) if base is None else own_copy(base)
        ensemble = LoraEnsemble.from_pretrained(folder, base=model, tokenizer=tokenizer)
        if base is not None:
            parameters |= {"base": base, "device": "auto", "dtype": None}
        else:
            move(ensemble, device_named(parameters["device"]))
        parameters["base"] = parameters["base"] or base_name(ensemble.base)
        parameters["adapter"] = ensemble.adapter if parameters["adapter"] else None
        made = cls(**parameters)
        made._trained_on = {}
        made._keep(ensemble, saved.classes, saved.num_columns, saved.column_names)
        return made

    def _read(self, X: Any) -> Texts:
        check_is_fitted(self)
        texts, trained = read_texts(X), self.num_columns_
        if texts.width != trained:
            raise DataError(
                f"X has {texts.width} columns of texts, and fit was given {trained}; pass as many"
            )
        names = getattr(self, "feature_names_in_", None)
        if names is not None and texts.names is not None and texts.names != tuple(names):
            raise DataError(
                f"X has the columns {', '.join(texts.names)}, and fit was given {', '.join(names)}; "
                "pass these columns in this order"
            )
        return texts

    def _prediction(self, X: Any) -> Prediction:
        texts = self._read(X)  # first: it says where nothing was trained yet
        return predict(self.ensemble_, texts.examples(self._words))

    def __sklearn_clone__(self) -> LoraEnsembleClassifier:
        """An unfitted classifier with the same parameters; the weights of a loaded base are not copied."""
        light = copy.copy(self)
        light.base = "embedded"
        cloned: LoraEnsembleClassifier = BaseEstimator.__sklearn_clone__(light)
        cloned.base = self.base
        return cloned

    def __sklearn_tags__(self) -> Any:
        """The tags of scikit-learn: it takes texts, and no arrays of numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags


def _split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """The examples that are held out to calibrate on, and the rest, to train on.

    Raises:
        DataError: too few would be held out.
    """
    if share == 0:
        return (), examples
    held_out, rest = held_out_split(examples, share=share, seed=seed)
    if len(held_out) < FEWEST:
        raise DataError(
            f"calibration_share={share:g} holds {len(held_out)} of {len(examples)} texts out, too few to "
            f"calibrate on; {FEWEST} or more are needed: raise the share, or call calibrate with other texts"
        )
    return held_out, rest
