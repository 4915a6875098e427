"""Predictors that `evaluate --baseline NAME` measures in place of the ensemble: the paper's baselines,
trained here or taken from a saved ensemble.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any, cast

from ...errors import ConfigError, DataError, unknown_name
from ..common import Arguments, count, load_model, say, whole
from . import settings
from .heads import head_config

if TYPE_CHECKING:
    from ...data import Example
    from ...ensemble import LoraEnsemble
    from ...prediction.prediction import Predictor
    from ...training.config import TrainConfig

POSTERIORS = {
    "swag": "SWAG",
    "multi-swag": "SWAG",
    "ivon": "IVON",
    "snapshot": "SnapshotEnsemble",
    "scalabl": "ScalaBL",
    "blob": "BLoB",
    "rank-mask": "RankMask",
}
"""Classes that train a distribution over adapters, of which --size samples are the members."""
BASELINES = (
    "single",
    "few-shot",
    "last-layer",
    "mc-dropout",
    "batch-ensemble",
    "temperature",
    "temperature-single",
    "tfb",
    "laplace",
    "soup",
    *POSTERIORS,
)
MODES = 3  # of multi-swag
OF_LABEL_TOKENS = ("few-shot", "batch-ensemble", "laplace")
"""Of the questions of a task, these ask causal language models alone."""
OF_AN_ENSEMBLE = (
    "single",
    "mc-dropout",
    "temperature",
    "temperature-single",
    "tfb",
    "laplace",
    "soup",
)  # these ask a trained ensemble in another way
DROPOUT = 0.1
FIT_SHARE = 0.2  # of the validation part, on which a temperature is fitted and which is not scored


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("baseline", "measured in place of the ensemble; see docs/baselines.md")
    group.add_argument("--baseline", metavar="NAME", help=", ".join(BASELINES))
    group.add_argument(
        "--size",
        type=count,
        default=5,
        metavar="N",
        help="members, passes, draws or samples of the baseline (default: 5)",
    )
    group.add_argument("--seed", type=whole, default=0, metavar="N", help="of the baseline (default: 0)")
    group.add_argument(
        "--preset",
        metavar="NAME",
        help="settings of what is trained here (default: embedded for the embedded base)",
    )
    group.add_argument(
        "--epochs", type=count, metavar="N", help="of what is trained here (default: the preset's)"
    )
    group.add_argument("--limit-train", type=count, metavar="N", help="only the first N training questions")


def check(args: Arguments) -> None:
    """Refuse what cannot be measured, before anything is loaded.

    Raises:
        ConfigError: an unknown baseline, or one that has no use for the ensemble or the head given.
    """
    if args.baseline not in BASELINES:
        raise ConfigError(unknown_name("baseline", args.baseline, BASELINES))
    if args.ensemble is not None and args.baseline not in OF_AN_ENSEMBLE:
        raise ConfigError(
            f"--baseline {args.baseline} asks no trained ensemble; leave {args.ensemble} out, "
            "and give --task or --base"
        )
    if args.ensemble is None and args.task is None:
        raise ConfigError(f"--baseline {args.baseline}: give --task NAME, or the folder of an ensemble")
    if args.head == "causal-lm":
        return
    if args.ensemble is not None:
        raise ConfigError(
            f"--head {args.head}: {args.ensemble} was trained with heads of its own kind; leave --head out"
        )
    if args.head != "multiple-choice":
        raise ConfigError(
            f"--head {args.head}: --task {args.task} has questions with options; "
            "use --head multiple-choice, or leave it out"
        )
    if args.baseline in OF_LABEL_TOKENS:
        raise ConfigError(f"--baseline {args.baseline} is one of causal language models; leave --head out")


def predictor(
    args: Arguments,
    *,
    ensemble: LoraEnsemble | None,
    train: tuple[Example, ...],
    validation: tuple[Example, ...],
    task: str | None,
) -> tuple[Predictor, tuple[Example, ...]]:
    """The baseline, and the validation questions that it may be scored on.

    Raises:
        DataError: no training questions, where some are needed.
        ConfigError: a setting that cannot work.
    """
    from ...baselines import FewShot, MCDropout, SingleMember, Soup

    examples = train[: args.limit_train]
    if ensemble is None and not examples:
        raise DataError(f"--baseline {args.baseline} needs training questions, and there are none")
    if args.baseline == "few-shot":
        score = _config(args, task).label_score
        base, tokenizer = _model(args)
        shown = FewShot(
            base, tokenizer, examples, shots=3, draws=args.size, seed=args.seed, label_score=score
        )
        return shown, validation
    if args.baseline in ("last-layer", "batch-ensemble"):
        return _trained(args, examples, task), validation
    if args.baseline in POSTERIORS:
        return _posterior(args, examples, task), validation
    ensemble = ensemble or _ensemble(
        args, examples, task, dropout=DROPOUT if args.baseline == "mc-dropout" else 0.0
    )
    if args.baseline == "mc-dropout":
        dropout = ensemble.adapter.lora_dropout or (DROPOUT if args.ensemble is None else 0.0)
        if not dropout:
            raise ConfigError(
                f"{args.ensemble} was trained without dropout; MC dropout needs one trained "
                "with --lora-dropout"
            )
        return MCDropout(ensemble, passes=args.size, dropout=dropout, seed=args.seed), validation
    if args.baseline == "single":
        return SingleMember(ensemble, 0), validation
    if args.baseline == "soup":
        return Soup(ensemble), validation
    if args.baseline in ("tfb", "laplace"):
        return _around_members(args, ensemble, examples), validation
    return _tempered(args, ensemble, train, validation)


def _around_members(args: Arguments, ensemble: LoraEnsemble, examples: tuple[Example, ...]) -> Predictor:
    """A distribution around trained members, whose size is found on the training questions."""
    from ...baselines import TFB, LastLayerLaplace

    if not examples:
        raise DataError(
            f"--baseline {args.baseline} finds its spread on training questions, and there are none"
        )
    if args.baseline == "laplace":
        laplace = LastLayerLaplace(ensemble, samples=args.size, seed=args.seed)
        laplace.fit(examples, max_rows=args.max_rows)
        taus = ", ".join(f"{tau:.4g}" for tau in laplace.prior_precisions)
        say(f"prior precision {taus}, of the largest evidence on {len(examples)} questions")
        return laplace
    tfb = TFB(ensemble, samples=args.size, seed=args.seed)
    tfb.fit(examples)
    say(f"beta {', '.join(f'{beta:.4f}' for beta in tfb.betas)}, found on {len(examples)} questions")
    return cast("Predictor", tfb)


def _tempered(
    args: Arguments, ensemble: LoraEnsemble, train: tuple[Example, ...], validation: tuple[Example, ...]
) -> tuple[Predictor, tuple[Example, ...]]:
    from ...baselines import SingleMember, TemperatureScaled, held_out_split

    held_out, scored = held_out_split(validation, share=FIT_SHARE, seed=args.seed, trained_on=train)
    wrapped: Predictor = SingleMember(ensemble, 0) if args.baseline == "temperature-single" else ensemble
    scaled = TemperatureScaled.fit(wrapped, held_out, trained_on=train, max_rows=args.max_rows)
    say(
        f"temperature {scaled.temperature:.3f}, fitted on {len(held_out)} validation questions, "
        "which are not scored"
    )
    return scaled, tuple(scored)


def _model(args: Arguments) -> tuple[Any, Any]:
    return load_model(args.base or "embedded", dtype=args.dtype, device=args.device, head=args.head)


def _config(args: Arguments, task: str | None) -> TrainConfig:
    from ...embedded import is_embedded

    default = "embedded" if is_embedded(args.base or "embedded") else "default"
    config = settings.preset_config(args, default=default, task=task)
    return config if args.epochs is None else dataclasses.replace(config, epochs=args.epochs)


def _trained(args: Arguments, examples: tuple[Example, ...], task: str | None) -> Predictor:
    from ...baselines import BatchEnsemble, LastLayerEnsemble, LastLayerHeads

    base, tokenizer = _model(args)
    made: LastLayerEnsemble | LastLayerHeads | BatchEnsemble
    if args.baseline == "last-layer" and args.head != "causal-lm":
        made = LastLayerHeads(base, tokenizer, num_members=args.size, seed=args.seed, head=head_config(args))
    elif args.baseline == "last-layer":
        made = LastLayerEnsemble(base, tokenizer, num_members=args.size, seed=args.seed)
    else:
        made = BatchEnsemble(
            base,
            tokenizer,
            num_members=args.size,
            adapter=settings.adapter_config(args, base),
            seed=args.seed,
        )
    say(f"training {args.size} members of a {args.baseline} ensemble on {len(examples)} questions")
    made.fit(examples, _config(args, task), progress=True)
    return made


def _posterior(args: Arguments, examples: tuple[Example, ...], task: str | None) -> Predictor:
    from ... import baselines
    from ...ensemble import LoraEnsemble

    base, tokenizer = _model(args)
    modes = MODES if args.baseline == "multi-swag" else 1
    adapter = settings.adapter_config(args, base)
    made = LoraEnsemble(
        base, tokenizer, num_members=modes, adapter=adapter, seed=args.seed, head=head_config(args)
    )
    kind: type[baselines.WeightPosterior] = getattr(baselines, POSTERIORS[args.baseline])
    posterior = kind(made, samples=args.size, seed=args.seed)
    say(f"training {args.baseline} on {len(examples)} questions; {args.size} samples of each mode are asked")
    posterior.fit(examples, posterior.adapted(_config(args, task)), progress=True)
    return cast("Predictor", posterior)


def _ensemble(
    args: Arguments, examples: tuple[Example, ...], task: str | None, *, dropout: float
) -> LoraEnsemble:
    from ...ensemble import LoraEnsemble
    from ...training.adapters import train

    base, tokenizer = _model(args)
    adapter = settings.adapter_config(args, base)
    members = (
        1 if args.baseline in ("single", "mc-dropout", "temperature-single", "tfb", "laplace") else args.size
    )
    made = LoraEnsemble(
        base, tokenizer, num_members=members, adapter=adapter, seed=args.seed, head=head_config(args)
    )
    say(f"training {members} members on {len(examples)} questions; a saved ensemble can be given in place")
    train(made, examples, dataclasses.replace(_config(args, task), dropout=dropout))
    return made
