"""transformers' own test classes, out of the sdist of the installed version, as the package `transformers_tests`.

The wheel leaves them out, the sdist carries the common ones. It is fetched once with pip and unpacked into the user's
cache; what its test files import and the sdist lacks is filled in with stand-ins.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import transformers

STAND_INS = {
    "transformers_tests/__init__.py": "",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "transformers_tests/utils/__init__.py": "",
    "transformers_tests/utils/test_configuration_utils.py": """\
config_common_kwargs = {
    "return_dict": False, "output_hidden_states": True, "output_attentions": True, "dtype": "float16",
    "chunk_size_feed_forward": 5, "is_encoder_decoder": True, "architectures": ["Model"], "pad_token_id": 7,
    "bos_token_id": 8, "eos_token_id": 9, "id2label": {0: "label"}, "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, return_url_if_not_found=True):\n    return url\n",
}


class NotAvailable(Exception):
    """The sdist cannot be had here."""


def download(version, folder):
    """The sdist of this version of transformers, fetched with pip into `folder`."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--retries=1",
        "--timeout=15",
        "--no-binary=transformers",
        f"--dest={folder}",
        f"transformers=={version}",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired as error:
        raise NotAvailable(f"pip did not fetch the sdist of transformers {version} within 3 minutes") from error
    sdists = list(pathlib.Path(folder).glob("*.tar.gz"))
    if done.returncode or not sdists:
        raise NotAvailable(f"pip could not fetch the sdist of transformers {version}: {done.stderr.strip()[-300:]}")
    return sdists[0]


def unpack(sdist, folder):
    """tests/ of the sdist as folder/transformers_tests, and the stand-ins around it."""
    with tarfile.open(sdist) as archive:
        (root,) = {name.partition("/")[0] for name in archive.getnames()}
        inside = [member for member in archive.getmembers() if member.name.startswith(f"{root}/tests/")]
        archive.extractall(folder, inside, filter="data")
    (folder / root / "tests").rename(folder / "transformers_tests")
    (folder / root).rmdir()
    for name, text in STAND_INS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(text)


def test_classes_folder():
    """Folder to put on sys.path, from which `transformers_tests` imports; `NotAvailable` where it cannot be had."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "smalle"
    folder = cache / f"transformers-{transformers.__version__}-tests"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            partial = pathlib.Path(scratch) / "unpacked"
            partial.mkdir()
            unpack(download(transformers.__version__, scratch), partial)
            with contextlib.suppress(OSError):  # another process was faster
                partial.rename(folder)
    return folder
