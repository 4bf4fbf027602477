"""Recipes: YAML files read into dataclasses. Unknown keys, missing keys and wrong types are refused by name.

`read_recipe` serves every recipe of this package; the dataclasses below it are those of a model's training.
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
    """The path of a recipe: a file, or else the recipe of this package with that name, such as "smalle-mini".

    Raises ValueError, with the names of the package's recipes, where it is neither.
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

    Raises ValueError for an override of another form and for everything that `make_dataclass` refuses.
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
                raise ValueError(f"{override!r}: {parent} is {part!r}, which has no keys.")
        if not equals or not last:
            raise ValueError(f"{override!r}: expected key.subkey=value.")
        part[last] = yaml.safe_load(value)
    return make_dataclass(kind, values)


def make_dataclass(kind: type[T], values: Mapping[str, Any], name: str = "") -> T:
    """Makes the dataclass `kind` from a mapping; a field that is a dataclass itself is made from a nested mapping.

    Numbers, strings and truth values are checked; "1e-3", which YAML takes for a string, is a float. Raises ValueError
    with the full name of a key, after `name`, that is unknown, missing or of the wrong type.
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
    """Raises ValueError for a key that is not `known`; `name` is that of the mapping."""
    for key in values:
        if key not in known:
            raise ValueError(f"{name}{'.' if name else ''}{key}: unknown key; expected one of {', '.join(known)}.")


def _convert(value: Any, hint: Any, name: str) -> Any:
    """A value as its annotation wants it: a dataclass, a scalar of the right type, or anything else as it is."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if union else (hint,)
    if value is None and type(None) in choices:
        return None
    nested = [choice for choice in choices if isinstance(choice, type) and dataclasses.is_dataclass(choice)]
    if nested:
        return make_dataclass(nested[0], value, name)
    scalars = tuple(choice for choice in choices if choice in (bool, int, float, str))
    if len(scalars) < len([choice for choice in choices if choice is not type(None)]) or type(value) in scalars:
        return value  # lists, mappings and whatever else a field may hold are for the dataclass to check
    if float in scalars and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    expected = " or ".join("null" if choice is type(None) else choice.__name__ for choice in choices)
    raise ValueError(f"{name}={value!r}: expected {expected}.")


def write_recipe(recipe: Any, path: str | os.PathLike) -> None:
    """Writes a recipe as it was run, overrides and defaults included."""
    write_text(path, yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True))


@dataclass
class DataOptions:
    """The part `data`: what is trained on.

    Attributes:
        tokenizer: Folder or Hub name of the tokenizer.
        train, eval: Prepared codes: a parquet file or the name of its shards (smalle.train.data.prepare), or a list.
        frames_per_batch: Frames of a batch, padding included.
        max_seconds: Length of the longest sample; longer utterances are left out.
        single_utterance_probability: Share of samples that are one utterance; the others join several of one speaker.
        eval_batches: Number of batches of the evaluation data to evaluate on.
        speaker_seconds: Length of the longest reference recording for the speaker encoder.
        home_recording_probability: Share of the utterances in references that are heard as home recordings, where the
            codes have them (`smalle prepare --references`).
        cache_dir: Folder for memory-mapped copies of the codes; None: they are held in memory.
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
    """The part `objective`: the losses, what is changed in the inputs, and the averaging of weights.

    Attributes:
        codebook_weights: Weight of each codebook's cross-entropy; None: equal.
        alignment_weight: Weight of the loss on attention outside of the words' known times (`losses.window_loss`).
        forward_sum_weight: Weight of the forward-sum loss, which needs no times (`losses.forward_sum_loss`).
        forced_alignment_probability: Share of samples that are read by the words' known times in place of the model's
            own alignment.
        text_dropout: Share of samples without text, which classifier-free guidance needs.
        speaker_dropout: Share of samples without reference recording; 0.1 by default in models with a speaker encoder.
        voice_swap_probability: Share of samples whose past frames are those of the same words in another voice, if the
            data have one.
        audio_dropout: Share of past frames that are hidden, in spans.
        span_replacement: Share of past frames that are replaced by earlier ones of the same sample.
        span_replacement_other: Share of past frames that are replaced by those of another sample.
        scheduled_sampling: Share of past frames that are replaced by the model's own predictions, in every second step:
            a number, or a schedule [[from progress, number], ...] with a progress of 0 to 1.
        ema_decay: Decay of the moving average of the weights, which is what is saved in the end; 0: no average.
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
    """The part `samples`: sentences that are synthesized at each evaluation (`audio_samples.AudioSamples`).

    Attributes:
        codec: Folder or Hub name of the codec that decodes them.
        count: Number of sentences.
        scorer: Program that scores them (smalle.train.evaluation.scoring), run by scorer_python.
    """

    codec: str
    count: int = 4
    scorer: str | None = None
    scorer_python: str | None = None


@dataclass
class TrainingOptions(TrainingArguments):
    """The part `training`: TrainingArguments of transformers with other defaults, and a time limit.

    Attributes:
        minutes: Ends training after so many minutes; the learning rate then follows the time (`TimeBudget`).
    """

    output_dir: str = "trainer_output"
    remove_unused_columns: bool = False
    ddp_find_unused_parameters: bool | None = False
    logging_nan_inf_filter: bool = False
    use_cpu: bool = field(default_factory=lambda: not torch.cuda.is_available())
    report_to: str | list[str] | None = "none"
    fsdp: Any = None  # true, or what transformers takes
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
        init: Checkpoint to start from; `model` may then ask for more layers than it has (`initialization.grow`).
    """

    data: DataOptions
    objective: Objective
    training: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    samples: SampleOptions | None = None
