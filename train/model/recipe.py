"""Recipes: YAML files that are read into dataclasses. Errors name unknown keys, missing keys and wrong types.

`read_recipe` reads all recipes of this package; the dataclasses in this module are those of a model's training.
"""

import dataclasses
import os
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import yaml
from transformers import TrainingArguments

from smalle.saving_smalle import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
RECIPES = pathlib.Path(__file__).parents[1] / "recipes"


def find_recipe(name: str | os.PathLike) -> pathlib.Path:
    """The path of a recipe: a file, or the name of a recipe of this package, such as "smalle-mini".

    Raises ValueError, with the names of the package's recipes, if it is neither.
    """
    path = pathlib.Path(name)
    known = {recipe.stem: recipe for recipe in sorted(RECIPES.glob("*.yaml"))}
    if path.is_file():
        return path
    if str(name) not in known:
        raise ValueError(f"There is no recipe {name}: expected a YAML file, or one of {', '.join(known)}.")
    return known[str(name)]


def read_recipe(kind: type[T], recipe: str | os.PathLike, overrides: Iterable[str] = ()) -> T:
    """Reads a recipe (`find_recipe`), with overrides `key.subkey=value`, as the dataclass `kind`.

    Raises ValueError for malformed overrides, and for everything that `make_dataclass` refuses.
    """
    values = yaml.safe_load(find_recipe(recipe).read_text(encoding="utf-8")) or {}
    for override in overrides:
        key, equals, value = override.partition("=")
        *parents, last = key.split(".")
        part = values
        for parent in parents:
            if part.get(parent) is None:
                part[parent] = {}
            part = part[parent]
            if not isinstance(part, dict):
                raise ValueError(f"{override!r}: {parent} is {part!r}, which cannot have keys.")
        if not equals or not last:
            raise ValueError(f"{override!r}: expected key.subkey=value.")
        part[last] = yaml.safe_load(value)
    return make_dataclass(kind, values)


def make_dataclass(kind: type[T], values: Mapping[str, Any], name: str = "") -> T:
    """Makes the dataclass `kind` from a mapping, and its dataclass fields from nested mappings.

    Checks the types of numbers, strings and booleans. "1e-3", which YAML reads as a string, is accepted as a float.
    Raises ValueError for keys that are unknown, missing or of the wrong type, with their full names after `name`.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name or kind.__name__}: expected keys and values, got {values!r}.")
    hints, prefix = typing.get_type_hints(kind), f"{name}." if name else ""
    fields = {entry.name: entry for entry in dataclasses.fields(kind) if entry.init}
    check_keys(values, fields, name)
    for key, entry in fields.items():
        if key not in values and entry.default is entry.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{key}: missing; this key has no default.")
    return kind(**{key: _convert(value, hints[key], prefix + key) for key, value in values.items()})


def check_keys(values: Iterable[str], known: Iterable[str], name: str = "") -> None:
    """Raises ValueError for a key that is not `known`; name: of the mapping, for the error."""
    for key in values:
        if key not in known:
            raise ValueError(f"{name}{'.' if name else ''}{key}: unknown key; expected one of {', '.join(known)}.")


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Converts a value to its annotated type if that is a dataclass or a scalar; returns other values unchanged."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if union else (hint,)
    if value is None and type(None) in choices:
        return None
    nested = [choice for choice in choices if isinstance(choice, type) and dataclasses.is_dataclass(choice)]
    if nested:
        return make_dataclass(nested[0], value, name)
    scalars = tuple(choice for choice in choices if choice in (bool, int, float, str))
    if len(scalars) < len([choice for choice in choices if choice is not type(None)]) or type(value) in scalars:
        return value  # lists, mappings and other types are checked by the dataclass itself
    if float in scalars and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    expected = " or ".join("null" if choice is type(None) else choice.__name__ for choice in choices)
    raise ValueError(f"{name}={value!r}: expected {expected}.")


def write_recipe(recipe: Any, path: str | os.PathLike) -> None:
    """Writes a recipe including overrides and defaults."""
    write_text(path, yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True))


@dataclass
class DataOptions:
    """The section `data`: training and evaluation data.

    Attributes:
        tokenizer: Folder or Hub name of the tokenizer.
        train, eval: Prepared codes: a parquet file or the name of its shards (smalle.train.data.prepare), or a list.
        frames_per_batch: Number of frames in a batch, including padding.
        max_seconds: Length of the longest sample; longer utterances are left out.
        single_utterance_probability: Share of samples with a single utterance; others join several of one speaker.
        eval_batches: Number of batches for evaluation.
        speaker_seconds: Length of the longest reference recording for the speaker encoder.
        home_recording_probability: Share of the utterances in references that are replaced by simulated home
            recordings, if the data contain them (`smalle prepare --references`).
        cache_dir: Folder for memory-mapped copies of the codes; None: keep them in memory.
    """

    tokenizer: str
    train: str | list[str]
    eval: str | list[str]
    frames_per_batch: int
    max_seconds: float
    single_utterance_probability: float
    eval_batches: int
    speaker_seconds: float = 5.0
    home_recording_probability: float = 0.0
    cache_dir: str | None = None


@dataclass
class Objective:
    """The section `objective`: losses, augmentation of the inputs, and averaging of the weights.

    Attributes:
        codebook_weights: Weight of each codebook's cross-entropy; None: equal.
        alignment_weight: Weight of the loss on attention outside of the words' known times (`losses.window_loss`).
        forward_sum_weight: Weight of the forward-sum loss, which needs no word times (`losses.forward_sum_loss`).
        forced_alignment_probability: Share of samples for which an alignment from known word times replaces the
            model's own.
        text_dropout: Share of samples without text, for classifier-free guidance.
        speaker_dropout: Share of samples without reference recording; 0.1 by default in models with a speaker encoder.
        voice_swap_probability: Share of samples whose past frames are the same words in another voice, if the data
            contain them.
        audio_dropout: Share of past frames that are masked, in spans.
        span_replacement: Share of past frames that are replaced by earlier ones of the same sample.
        span_replacement_other: Share of past frames that are replaced by those of another sample.
        scheduled_sampling: Share of past frames that are replaced by the model's own predictions, in every second step:
            a number, or a schedule [[from progress, number], ...] with a progress of 0 to 1.
        ema_decay: Decay of the moving average of the weights, which is the final result; 0: no average.
    """

    codebook_weights: list[float] | None = None
    alignment_weight: float = 0.0
    forward_sum_weight: float = 0.0
    forced_alignment_probability: float = 0.0
    text_dropout: float = 0.0
    speaker_dropout: float | None = None
    voice_swap_probability: float = 0.0
    audio_dropout: float = 0.0
    span_replacement: float = 0.0
    span_replacement_other: float = 0.0
    scheduled_sampling: float | list[list[float]] = 0.0
    ema_decay: float = 0.0


@dataclass
class SampleOptions:
    """The section `samples`: sentences to synthesize at each evaluation (`audio_samples.AudioSamples`).

    Attributes:
        codec: Folder or Hub name of the codec for decoding.
        count: Number of sentences.
        scorer: Program that scores them (smalle.train.evaluation.scoring), run by scorer_python.
    """

    codec: str
    count: int = 4
    scorer: str | None = None
    scorer_python: str | None = None


@dataclass
class TrainingOptions(TrainingArguments):
    """The section `training`: TrainingArguments of transformers with other defaults, and a time limit.

    Attributes:
        minutes: Training time in minutes; the learning rate then depends on the time (`TimeBudget`).
    """

    output_dir: str = "trainer_output"
    remove_unused_columns: bool = False
    ddp_find_unused_parameters: bool | None = False
    logging_nan_inf_filter: bool = False
    use_cpu: bool = field(default_factory=lambda: not torch.cuda.is_available())
    report_to: str | list[str] | None = "none"
    fsdp: Any = None  # true, or a value for transformers
    disable_tqdm: bool | None = True
    minutes: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.save_total_limit == 1:
            raise ValueError(
                "training.save_total_limit=1: expected 2 or more: the only checkpoint would be deleted before the next "
                "one is complete."
            )


@dataclass
class Recipe:
    """The recipe of a model.

    Attributes:
        training: Fields of `TrainingOptions`.
        model: Fields of SmallEConfig.
        init: Checkpoint to start from; `model` may then specify more layers (`initialization.grow`).
    """

    data: DataOptions
    objective: Objective
    training: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    samples: SampleOptions | None = None
