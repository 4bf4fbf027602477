"""What a user runs may be used in any program: no GPL, and every licence has a name."""

import pytest

from tests.reliability.licences import is_gpl, licences


def test_nothing_that_a_user_runs_is_under_the_gpl():
    found = licences("serve", "read")
    assert {"smalle", "torch", "transformers", "num2words", "numpy", "soundfile"} <= found.keys()
    assert "LGPL" in found["num2words"] or "Lesser" in found["num2words"]  # a library that is used unchanged
    assert not {name: text for name, text in found.items() if is_gpl(text)}
    assert not [name for name, text in found.items() if text == "not named"]


@pytest.mark.parametrize(
    "licence, expected",
    {
        "GPL-3.0-only": True,
        "AGPLv3+": True,
        "GNU General Public License v2 (GPLv2)": True,
        "GNU Lesser General Public License v2 (LGPLv2)": False,
        "LGPL-2.1-or-later": False,
        "MIT OR GPL-2.0": False,
        "Apache-2.0": False,
    }.items(),
)
def test_the_gpl_is_told_from_others(licence, expected):
    assert is_gpl(licence) == expected
