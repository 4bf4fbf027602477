"""Atomic writing of files, save_pretrained and push_to_hub of models and processors, and checks of the files of a
checkpoint and of the settings in them. Importing this module needs neither PyTorch nor transformers.

Classes name their auto class (`_auto_class`), so transformers saves the remote code with them. `HubMixin` adds a model
card, and uploads the whole folder at once.
"""

import contextlib
import ctypes
import functools
import json
import math
import mmap
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args, get_origin

# --- weights in files

MAPPED_WEIGHTS = re.compile(  # entries of /proc/self/smaps: weights that were not written to since they were mapped
    r"^(\w+)-(\w+) ...p .*\.safetensors\n(?:\w+: .*\n)*?Anonymous: +0 kB", re.MULTILINE
)


class MappedWeights:
    """The weights of this process that are still mapped from their safetensors file.

    Their memory can be released: it is read from the file again when it is needed. A snapshot, which is empty on
    systems other than Linux.
    """

    def __init__(self):
        smaps = Path("/proc/self/smaps")
        text = smaps.read_text() if smaps.is_file() else ""
        self.ranges = [tuple(int(x, 16) for x in found.groups()) for found in MAPPED_WEIGHTS.finditer(text)]

    def give_back(self, tensor: Any) -> None:
        """Releases the memory of a tensor if it is one of them. Nothing may write to it at the same time."""
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if any(first <= start and end <= last for first, last in self.ranges):
            start -= start % mmap.PAGESIZE
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


# --- files

LEFTOVER = re.compile(r"\.(?P<name>.*)\.(?P<host>[^.]*)\.(?P<process>\d+)\.[0-9a-f]+\.(?P<kind>partial|replaced)")
HOST = platform.node().partition(".")[0]


def check_file_name(name: Any, what: str) -> None:
    """Raises ValueError unless `name` is a plain name of a file or folder. `what` describes it in the error."""
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise ValueError(f"{what} is {name!r}: expected a plain name, without a slash, and not '..'.")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


@functools.cache  # each folder is checked once
def clear_leftovers(folder: Path) -> None:
    """Deletes the unfinished files that killed processes of this machine left in `folder`.

    Restores the name of a folder that was being replaced.
    """
    if os.name != "posix":  # on Windows, os.kill(process, 0) ends the process
        return
    for path in folder.glob(".*.*"):
        left = LEFTOVER.fullmatch(path.name)
        if not left or left["host"] != HOST or _is_running(int(left["process"])):
            continue
        with contextlib.suppress(OSError):  # another process may clear the folder at the same time
            if left["kind"] == "replaced" and not (folder / left["name"]).exists():
                path.rename(folder / left["name"])
            else:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _temporary_beside(path: Path) -> Path:
    clear_leftovers(path.parent)
    start = os.fsencode(path.name)[:100].decode("utf-8", "ignore")  # a name has at most 255 bytes
    return path.with_name(f".{start}.{HOST}.{os.getpid()}.{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turns the errors that safetensors, soundfile and torch.save raise on a full disk into an OSError that names the
    file."""
    try:
        yield
    except Exception as error:
        writers = "SafetensorError", "LibsndfileError"
        if type(error).__name__ not in writers and not re.search("PytorchStreamWriter|inline_container", str(error)):
            raise
        raise OSError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`, which replaces `path` when the block ends without an exception.

    The file gets the permissions of the file that it replaces, or those of the umask. A link stays a link. A device or
    a pipe is written directly. The next call for a file in the same folder deletes what a killed process left behind.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = _temporary_beside(path)
    try:
        temporary.touch(exist_ok=False)
        mode = (path if path.exists() else temporary).stat().st_mode
        with os_errors(path):
            yield temporary
        temporary.chmod(stat.S_IMODE(mode))  # some writers, such as safetensors, make files for their owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges the names of two folders atomically. False if the system or the file system does not support that."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    try:
        return ctypes.CDLL(None).renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
    except (AttributeError, OSError, TypeError):  # no renameat2, or on Windows no CDLL(None)
        return False


def _replace_folder(new: Path, path: Path) -> None:
    """Renames the folder `new` to `path`. An existing folder gets the name `new`, or is deleted."""
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        old = new.with_suffix(".replaced")  # if the process dies here, `clear_leftovers` restores its name
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """As `atomic_write`: gives a new temporary folder beside `path`, which replaces the folder `path`."""
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(path)
    try:
        temporary.mkdir()
        with os_errors(path), readable_weights(temporary):
            yield temporary
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def delete_folder(path: str | os.PathLike) -> None:
    """Deletes a folder atomically: renames it to an unfinished one first. Raises FileNotFoundError."""
    path = Path(path)
    temporary = _temporary_beside(path)
    path.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _modes(folder: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.safetensors")}


@contextlib.contextmanager
def readable_weights(folder: str | os.PathLike) -> Iterator[None]:
    """Gives the safetensors files that the block writes to `folder` the permissions that `atomic_write` would give.

    safetensors itself makes files that only their owner can read.
    """
    folder = Path(folder)
    before = _modes(folder)
    yield
    with tempfile.TemporaryDirectory(dir=folder) as probe:
        Path(probe, "new").touch()
        new = stat.S_IMODE(Path(probe, "new").stat().st_mode)
    for path, mode in _modes(folder).items():
        if mode != before.get(path, new):
            path.chmod(before.get(path, new))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as an indented JSON file."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: str | os.PathLike, values: Iterable[Any]) -> None:
    """Writes values as a JSON Lines file, one value a line."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


# --- files of a checkpoint

OBJECTS: dict[str, tuple[str, ...]] = {  # files that hold one JSON object, and the keys that it must have
    "config.json": (),
    "generation_config.json": (),
    "processor_config.json": (),
    "tokenizer_config.json": (),
    "tokenizer.json": ("added_tokens", "model"),
}


def source_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of from_pretrained() that `cached_file` of transformers takes as well."""
    names = "revision", "token", "cache_dir", "local_files_only", "subfolder"
    return {name: kwargs[name] for name in names if name in kwargs}


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint. Raises ValueError if the file is damaged or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "cannot be read" if isinstance(error, OSError) else "is not a JSON file"
        raise ValueError(f"{path} {what} ({error}): download or save the checkpoint again.") from error
    keys = OBJECTS.get(path.name, ())
    if not isinstance(value, dict) or not value.keys() >= set(keys):
        wanted = f"with {' and '.join(keys)}" if keys else "of settings"
        raise ValueError(f"{path} holds {str(value)[:40]}: expected a JSON object {wanted}.")
    return value


def check_objects(source: str | os.PathLike, **options) -> None:
    """Raises ValueError for a JSON file of a checkpoint that `read_object` refuses."""
    from transformers.utils import cached_file

    missing = dict.fromkeys(("missing_entries", "gated_repo", "connection_errors"), False)
    for name in OBJECTS:
        path = cached_file(
            source, name, **{f"_raise_exceptions_for_{what}": no for what, no in missing.items()}, **options
        )
        if path is not None:
            read_object(Path(path))


@contextlib.contextmanager
def errors_name_the_file(source: str | os.PathLike, name: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Makes errors that occur while a checkpoint is loaded name the file: a damaged file, or else `name`.

    Args:
        source: folder, or name on the Hub.
        kwargs: arguments of from_pretrained().
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        check_objects(source, **source_options(kwargs))
        if not isinstance(error, (TypeError, ValueError)) or not name or name in str(error):
            raise
        raise ValueError(f"{name} of {source}: {error}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"{name or 'config.json'} of {source} does not match the shapes of the weights: download or save the "
            "checkpoint again."
        ) from error


# --- fields of a configuration

MAX_LAYERS = 256


def check_kinds(config: Any, fields: Mapping[str, Any]):
    """ValueError for a field whose value does not have the annotated type; integers are accepted as floats."""
    for name, annotation in fields.items():
        value, kinds = getattr(config, name), get_args(annotation) or (annotation,)
        kinds = tuple(get_origin(kind) or kind for kind in (*kinds, *((int,) if float in kinds else ())))
        wrong = not isinstance(value, kinds) or isinstance(value, bool) and bool not in kinds
        if wrong or isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value!r}: expected {getattr(annotation, '__name__', annotation)}.")


def check_positive(config: Any, names: Iterable[str]):
    """ValueError for a field that is not positive."""
    for name in names:
        if getattr(config, name) <= 0:
            raise ValueError(f"{name}={getattr(config, name)}: expected a positive number.")


def check_layers(config: Any, names: Iterable[str]) -> None:
    """ValueError for a number of layers out of range; huge ones would take hours to build."""
    check_expected(
        config, {name: (0 <= getattr(config, name) <= MAX_LAYERS, f"0 to {MAX_LAYERS} layers") for name in names}
    )


def check_sizes(config: Any) -> None:
    """ValueError for sizes in the configuration of a Small-E that do not fit together."""
    sizes = "hidden_size intermediate_size num_attention_heads mixer_heads position_size position_layers position_heads"
    check_positive(config, [*sizes.split(), "num_codebooks", "codebook_size", "frame_rate", "max_text_tokens"])
    share, center, limits = config.partial_rotary_factor, config.speaker_center, config.speaker_limits
    rotary, pair = int(config.hidden_size // config.num_attention_heads * share), 2 * config.num_attention_heads
    numbers = all(isinstance(x, (int, float)) for x in [*(center or ()), *(limits or ())])
    check_layers(config, ("text_layers", "audio_encoder_layers", "audio_decoder_layers", "speaker_layers"))
    expected = {  # by field
        "hidden_size": (
            config.hidden_size % pair == 0,
            f"a multiple of 2 * num_attention_heads={pair}, for rotary positions",
        ),
        "partial_rotary_factor": (
            0 < share <= 1 and rotary % 2 == 0,
            f"above 0, at most 1, and an even number of channels, not {rotary}",
        ),
        "position_size": (config.position_size % 2 == 0, "an even number: half sines, half cosines"),
        "speaker_center": (numbers and (center is None or len(center) == config.hidden_size), "hidden_size numbers"),
        "speaker_limits": (
            limits is None or numbers and center is not None and len(limits) == 2 and limits[0] >= limits[1] > 0,
            "two distances, the larger one first, together with speaker_center",
        ),
    }
    for name in ("expand_k", "expand_v"):
        fits = config.hidden_size * getattr(config, name) % config.mixer_heads == 0
        expected[name] = fits, f"hidden_size * {name} to be a multiple of mixer_heads={config.mixer_heads}"
    check_expected(config, expected)


def check_expected(config: Any, expected: Mapping[str, tuple[bool, str]]) -> None:
    """ValueError for the first wrong field. expected: for each field, whether it is right and what it should be."""
    for name, (right, wanted) in expected.items():
        if not right:
            raise ValueError(f"{name}={getattr(config, name)!r}: expected {wanted}.")


# --- settings of a processor


def check_default_voice(name: Any, voices: Sequence[str]) -> None:
    """ValueError unless it is None or one of the voices."""
    if name is not None and name not in voices:
        raise ValueError(f"default_voice={name!r} is not one of the voices {voices}.")


def check_processor_settings(
    codec: Any,
    voices: Any,
    default_voice: Any,
    sampling_rate: Any,
    codec_id: Any,
    clones_by_reference: Any,
    converter: Any,
) -> None:
    """ValueError for a value that `SmallEProcessor` does not accept."""
    if converter is not None:
        check_file_name(converter, f"converter={converter!r}")
    for part in codec.split("/", 1) if isinstance(codec, str) else [codec]:
        check_file_name(part, f"A part of codec={codec!r}")
    if not isinstance(voices, (list, tuple, type(None))):
        raise ValueError(f"voices={voices!r}: expected a list of names.")
    for name in voices or ():
        check_file_name(name, "A name in voices")
    if not isinstance(sampling_rate, int) or sampling_rate < 1:
        raise ValueError(f"sampling_rate={sampling_rate!r}: expected samples per second.")
    if not isinstance(codec_id, (str, type(None))):
        raise ValueError(f"codec_id={codec_id!r}: expected the identity of a codec, a string, or None.")
    if not isinstance(clones_by_reference, bool):
        raise ValueError(f"clones_by_reference={clones_by_reference!r}: expected true or false.")
    check_default_voice(default_voice, list(voices or ()))


# --- settings of generate(), of a checkpoint or of one call

PER_CODEBOOK = "temperature", "top_k", "top_p", "min_p", "repetition_penalty"  # a number, or a list
MAX_CANDIDATES = 256  # rows that one call may generate for a text
SETTINGS: dict[str, tuple[Any, ...]] = {  # type, minimum, maximum, and the expectation in words
    "do_sample": (bool, False, True, "True or False"),
    "temperature": (Real, 1e-3, 1e3, "a number of 0.001..1000 (do_sample=False is greedy)"),
    "top_k": (Integral, 0, math.inf, "an integer of 0 or more (0: no limit)"),
    "top_p": (Real, 1e-6, 1, "a number above 0, up to 1"),
    "min_p": (Real, 0, 1, "a number of 0..1"),
    "repetition_penalty": (Real, 1e-2, 1e2, "a number of 0.01..100 (1: none)"),
    "guidance_scale": (Real, 0, 100, "a number of 0..100 (1: no guidance)"),
    "max_new_tokens": (Integral, 1, math.inf, "at least one frame"),
    "min_new_tokens": (Integral, 0, math.inf, "an integer of 0 or more, in frames"),
    "max_time": (Real, 0, math.inf, "seconds"),
    "num_return_sequences": (Integral, 1, MAX_CANDIDATES, f"an integer of 1 to {MAX_CANDIDATES}"),
    "max_retries": (Integral, 0, math.inf, "an integer of 0 or more"),
    "best_of": (Integral, 1, MAX_CANDIDATES, f"an integer of 1 to {MAX_CANDIDATES} (1: off)"),
    "output_scores": (bool, False, True, "True or False"),
    "return_dict_in_generate": (bool, False, True, "True or False"),
}
REPLACED = {  # settings of other models -> what to use here
    "max_length": "max_new_tokens, which counts new frames",
    "min_length": "min_new_tokens, which counts new frames",
    "output_attentions": "output_alignments",
    "streamer": "stream()",
}
UNSUPPORTED = {  # settings of other decoding modes -> the value, besides None, that turns them off
    **dict.fromkeys(("num_beams", "num_beam_groups", "typical_p", "encoder_repetition_penalty"), 1),
    **dict.fromkeys(("constraints", "force_words_ids", "penalty_alpha", "dola_layers", "prompt_lookup_num_tokens"), 0),
    **dict.fromkeys(("assistant_early_exit", "use_mtp", "top_h", "epsilon_cutoff", "eta_cutoff", "stop_strings"), 0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias"), 0),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "watermarking_config", "renormalize_logits"), 0),
    **dict.fromkeys(("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id"), 0),
    **dict.fromkeys(("cache_implementation", "output_logits", "output_hidden_states"), 0),
}


def check_settings(config: Any):
    """ValueError for settings of a wrong type or out of range, and for unsupported ones, which must not be ignored."""
    values = {name: getattr(config, name, None) for name in UNSUPPORTED}
    asked = [f"{name}={value!r}" for name, value in values.items() if value not in (None, UNSUPPORTED[name])]
    if asked:
        raise ValueError(
            f"{', '.join(asked)}: generate() is greedy (do_sample=False) or samples ({', '.join(PER_CODEBOOK)}), with "
            "guidance_scale, num_return_sequences and best_of; for anything else, pass logits_processor= or "
            "stopping_criteria= of transformers."
        )
    for name, (kind, least, greatest, expected) in SETTINGS.items():
        value = getattr(config, name, None)
        several = name in PER_CODEBOOK and isinstance(value, (list, tuple))
        if value is None or name == "temperature" and not getattr(config, "do_sample", None):
            continue
        for x in value if several else [value]:
            if not isinstance(x, kind) or isinstance(x, bool) != (kind is bool) or not least <= x <= greatest:
                lists = ", or a list of them, one for each codebook" if name in PER_CODEBOOK else ""
                raise ValueError(f"{name}={value!r}: expected {expected}{lists}.")
    best_of, returned = getattr(config, "best_of", None) or 1, getattr(config, "num_return_sequences", None) or 1
    if 1 < best_of < returned:
        raise ValueError(f"best_of={best_of}: expected num_return_sequences={returned} or more.")


@dataclass(frozen=True)
class SamplingSettings:
    """How one codebook is sampled.

    top_k: number of most likely tokens to keep, 0: all, 1: greedy; temperature; top_p: keep the most likely tokens
    until their probabilities add up to it; min_p: keep tokens that have at least this share of the highest probability;
    repetition_penalty: divides positive scores of the last 50 frames' tokens and multiplies negative ones.
    """

    top_k: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


GREEDY = SamplingSettings()


def sampling_settings(config: Any, num_codebooks: int) -> list[SamplingSettings]:
    """Settings of each codebook, from a GenerationConfig; all are greedy with do_sample=False.

    A number sets the first codebook and leaves the others greedy; a list sets each. Raises ValueError for a list of
    another length.
    """
    names = PER_CODEBOOK if config.do_sample else ("repetition_penalty",)
    values = {name: getattr(config, name) for name in names}
    if any(isinstance(values.get(name), (list, tuple)) for name in ("temperature", "top_p", "min_p")):
        top_k = values["top_k"]  # with one of these lists, every codebook is sampled, even if top_k is one number
        values["top_k"] = top_k if isinstance(top_k, (list, tuple)) else [top_k] * num_codebooks
    for name, value in values.items():
        if not isinstance(value, (list, tuple)):
            values[name] = [value] + [getattr(GREEDY, name)] * (num_codebooks - 1)
        elif len(value) != num_codebooks:
            raise ValueError(
                f"{name}={value!r}: expected a number, or a list of {num_codebooks}, one for each codebook."
            )
    return [SamplingSettings(**dict(zip(values, row))) for row in zip(*values.values())]


# --- model cards and uploads

UPLOAD_OPTIONS = (
    "repo_id",
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "create_pr",
    "tags",
)
CARD = """\
---
library_name: transformers
pipeline_tag: text-to-speech
tags: [text-to-speech, smalle, codec-language-model, linear-attention]
---

# {name}

A text-to-speech model of the Small-E family ([arXiv 2406.04467](https://arxiv.org/abs/2406.04467)). Its code is in this
repository.

```python
from transformers import pipeline

speech = pipeline("text-to-speech", model="{name}", trust_remote_code=True)("Hello.")  # audio, sampling_rate
```

Describe here the training data, the measured quality and the licence. Clone a person's voice only with that person's
consent, and label speech as synthetic where it could be taken for a recording.
"""


def write_card(folder: str | os.PathLike, name: str) -> None:
    """Writes a model card (README.md) unless the folder has one."""
    path = Path(folder, "README.md")
    if not path.exists():
        write_text(path, CARD.format(name=name))


def _merge_card(api: Any, repo_id: str, folder: str, tags: list[str] | None, revision: str | None) -> None:
    """Replaces the model card in `folder` by that of the repository, if it has one, and adds `tags`."""
    from huggingface_hub import ModelCard

    path = Path(folder, "README.md")
    exists = api.file_exists(repo_id, path.name, revision=revision)
    card = ModelCard.load(api.hf_hub_download(repo_id, path.name, revision=revision) if exists else path)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(tags or [])]))
    card.save(path)


class HubMixin:
    """save_pretrained and push_to_hub of a model or a processor."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args, push_to_hub: bool = False, **kwargs):
        """As in transformers; also writes a model card unless the folder has one.

        Args:
            push_to_hub: also upload. The options are those of `push_to_hub`.
        """
        upload = {name: kwargs.pop(name) for name in UPLOAD_OPTIONS if name in kwargs}
        name = os.path.basename(os.path.abspath(save_directory))
        main = kwargs.get("is_main_process", True)
        with readable_weights(save_directory) if main else contextlib.nullcontext():
            saved = super().save_pretrained(save_directory, *args, **kwargs)
        if main:
            write_card(save_directory, name)
            if push_to_hub:
                self.push_to_hub(**{"repo_id": name, **upload})
        return saved

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | None = None,
        **saving,
    ):
        """Uploads what `save_pretrained(**saving)` writes as one commit. The model card of the repository is kept.

        Arguments as in transformers. Push the model and the processor of a checkpoint to the same repository.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            write_card(folder, repo_id)
            _merge_card(api, repo_id, folder, tags, revision)
            self.save_pretrained(folder, **saving)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
            )
