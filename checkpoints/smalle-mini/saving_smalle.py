"""Saving: files written whole or not at all, and the save_pretrained and push_to_hub of models and processors; and
what is wrong with the files of a checkpoint that cannot be loaded.

Classes name their auto class (`_auto_class`), so transformers saves the remote code with them. Added here: a model
card, and one upload of the whole folder.
"""

import contextlib
import ctypes
import functools
import json
import mmap
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# --- weights in files

MAPPED_WEIGHTS = re.compile(  # of /proc/self/smaps: weights that nothing has written to since they were mapped
    r"^(\w+)-(\w+) ...p .*\.safetensors\n(?:\w+: .*\n)*?Anonymous: +0 kB", re.MULTILINE
)


class MappedWeights:
    """The weights of this process that are still where safetensors maps them, in their file: their memory may be given
    back, and comes again from the file when it is needed. A look at the process; on Linux, elsewhere there are none."""

    def __init__(self):
        smaps = Path("/proc/self/smaps")
        text = smaps.read_text() if smaps.is_file() else ""
        self.ranges = [tuple(int(x, 16) for x in found.groups()) for found in MAPPED_WEIGHTS.finditer(text)]

    def give_back(self, tensor: Any) -> None:
        """Gives back the memory of a tensor, if it is among them. Nothing may write to it meanwhile."""
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if any(first <= start and end <= last for first, last in self.ranges):
            start -= start % mmap.PAGESIZE
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


# --- files

LEFTOVER = re.compile(r"\..*\.(?P<host>[^.]*)\.(?P<process>\d+)\.[0-9a-f]+\.partial")
HOST = platform.node().partition(".")[0]


def check_file_name(name: Any, what: str) -> None:
    """Raises ValueError unless `name` is the name of a file or folder, and no path. `what` says whose name it is."""
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


@functools.cache  # one look at a folder is enough
def clear_leftovers(folder: Path) -> None:
    """Deletes the unfinished files that killed processes of this machine left in `folder`."""
    if os.name != "posix":  # elsewhere os.kill(process, 0) would end the process
        return
    for path in folder.glob(".*.partial"):
        name = LEFTOVER.fullmatch(path.name)
        if name and name["host"] == HOST and not _is_running(int(name["process"])):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _temporary_beside(path: Path) -> Path:
    clear_leftovers(path.parent)
    return path.with_name(f".{path.name[:100]}.{HOST}.{os.getpid()}.{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Makes an OSError that names the file of what safetensors and soundfile raise, as on a full disk."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ not in ("SafetensorError", "LibsndfileError"):
            raise
        raise OSError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`, which replaces `path` when the block ends without an exception.

    The file gets the permissions of the one that it replaces; those of a new one follow from the umask. A link stays a
    link. A device or a pipe is written directly. What a killed process left behind is deleted by the next call for a
    file in the same folder.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = _temporary_beside(path)
    try:
        temporary.touch(exist_ok=False)
        mode = (path if path.exists() else temporary).stat().st_mode
        with _os_errors(path):
            yield temporary
        temporary.chmod(stat.S_IMODE(mode))  # some writers, such as safetensors, make files for their owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """As `atomic_write`: gives a new temporary folder beside `path`, which replaces the folder `path`."""
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _temporary_beside(path), _temporary_beside(path)
    try:
        temporary.mkdir()
        with _os_errors(path), readable_weights(temporary):
            yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _modes(folder: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.safetensors")}


@contextlib.contextmanager
def readable_weights(folder: str | os.PathLike) -> Iterator[None]:
    """Gives safetensors files that are written to `folder` the permissions that `atomic_write` gives.

    safetensors itself makes files that their owner alone can read.
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

OBJECTS: dict[str, tuple[str, ...]] = {  # files that hold one JSON object, and what must be in it
    "config.json": (),
    "generation_config.json": (),
    "processor_config.json": (),
    "tokenizer_config.json": (),
    "tokenizer.json": ("added_tokens", "model"),
}


def source_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of a from_pretrained() that say where a file is, as transformers' `cached_file` takes them."""
    names = "revision", "token", "cache_dir", "local_files_only", "subfolder"
    return {name: kwargs[name] for name in names if name in kwargs}


def check_objects(source: str | os.PathLike, **options) -> None:
    """Raises ValueError for a JSON file of a checkpoint that holds something else than it should."""
    from transformers.utils import cached_file

    missing = dict.fromkeys(("missing_entries", "gated_repo", "connection_errors"), False)
    for name, keys in OBJECTS.items():
        path = cached_file(
            source, name, **{f"_raise_exceptions_for_{what}": no for what, no in missing.items()}, **options
        )
        if path is None:
            continue
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON file, {error}: download or save the checkpoint again.") from error
        if not isinstance(value, dict) or not value.keys() >= set(keys):
            wanted = f"with {' and '.join(keys)}" if keys else "of settings"
            raise ValueError(f"{path} holds {str(value)[:40]}: expected a JSON object {wanted}.")


@contextlib.contextmanager
def errors_name_the_file(source: str | os.PathLike, name: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Loads from a checkpoint: the error of a wrong value names the file `name`, one of a damaged file names that file.

    Args:
        source: folder, or name on the Hub. kwargs: of from_pretrained().
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        check_objects(source, **source_options(kwargs))
        if not isinstance(error, (TypeError, ValueError)) or not name or name in str(error):
            raise
        raise ValueError(f"{name} of {source}: {error}") from error


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
    """Takes over the model card of the repository, if it has one, and adds `tags`."""
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
            push_to_hub: also upload; its options are those of `push_to_hub`.
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
