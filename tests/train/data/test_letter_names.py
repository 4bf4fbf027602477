"""Letters that stand alone are read by their names, and texts and word times keep them."""

import string

import pytest
from smalle.train.data.letter_names import NAMES, main, name_letters
from smalle.train.data.tokenizer import train_tokenizer
from tokenizers import Tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    return train_tokenizer([string.ascii_lowercase, "it's, a: b. c-d 'e'"], vocab_size=60).backend_tokenizer


@pytest.mark.parametrize(
    "text, read",
    [
        ("The F B I, at ten p m.", "the eff bee i, at ten p m."),
        ("A C E O's plan, two C D's", "a see ee oh's plan, two see dee's"),
        ("O'Brien, I'D, it's a 'B' or a C-plan", "o'brien, i'd, it's a 'bee' or a see-plan"),
        ("A C I A or N A S A, a plan A", "a see i eigh or en eigh ess eigh, a plan a"),
        ("BBC, Bee, b", "bbc, bee, b"),
    ],
)
def test_letters_alone_have_names(tokenizer, text, read):
    plain = tokenizer.encode(read).ids
    name_letters(tokenizer)
    assert tokenizer.encode(text).ids == plain


def test_the_tokens_of_a_name_belong_to_its_letter(tokenizer):
    name_letters(tokenizer)
    text = "B A " + " ".join(list(NAMES)[1:])
    encoded = tokenizer.encode(text)
    for start, letter in enumerate(text.split()):
        tokens = [
            token for token, (first, last) in zip(encoded.tokens, encoded.offsets) if first < 2 * start + 1 <= last
        ]
        assert "".join(tokens).strip("\u2581") == NAMES[letter]


def test_a_file_is_changed_once(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    main([str(tmp_path)])
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).normalizer.normalize_str("F") == "eff"
    with pytest.raises(ValueError, match="already replaces"):
        main([str(tmp_path)])
