"""Lists the licences of what a user of smalle runs: its dependencies, theirs and so on, as they are installed here.

python -m tests.reliability.licences [EXTRA ...]
"""

import contextlib
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

GNU = re.compile(r"(?<![A-Z])A?GPL|GNU (Affero )?General Public", re.IGNORECASE)  # and not the LGPL


def requirements(name: str, extras: tuple[str, ...] = ()) -> list[Requirement]:
    """What a distribution needs on this machine."""
    needed = [Requirement(text) for text in distribution(name).requires or []]
    wanted = [{"extra": extra} for extra in ("", *extras)]
    return [one for one in needed if one.marker is None or any(one.marker.evaluate(extra) for extra in wanted)]


def licence(name: str) -> str:
    """The licence that a distribution names: its expression, else its classifiers, else the first line of its text."""
    metadata = distribution(name).metadata
    classifiers = [x.rpartition(":: ")[2] for x in metadata.get_all("Classifier") or [] if x.startswith("License ::")]
    text = (metadata.get("License") or "").strip().splitlines()
    named = [*classifiers, *text[:1]] if classifiers != ["OSI Approved"] else text[:1]
    return metadata.get("License-Expression") or "; ".join(dict.fromkeys(named)) or "not named"


def licences(*extras: str) -> dict[str, str]:
    """Licences by distribution: of smalle with these extras and of all that it needs, where that is installed."""
    found, seen, waiting = {}, set(), [Requirement(f"smalle[{','.join(extras)}]")]
    while waiting:
        one = waiting.pop()
        name = re.sub("[-_.]+", "-", one.name).lower()
        if (name, *sorted(one.extras)) in seen:
            continue
        seen.add((name, *sorted(one.extras)))
        with contextlib.suppress(PackageNotFoundError):
            found[name] = licence(name)
            waiting += requirements(name, tuple(one.extras))
    return dict(sorted(found.items()))


def is_gpl(licence: str) -> bool:
    """Whether a licence is the GPL or the AGPL, and no other may be chosen."""
    return bool(GNU.search(licence)) and not re.search(r"\bOR\b|LGPL|Lesser", licence)


if __name__ == "__main__":
    for name, text in licences(*sys.argv[1:]).items():
        print(f"{name:<28}{text}")
