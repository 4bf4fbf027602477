"""What is refused before anything begins: ValueErrors that name the value, what was expected and what to do.

`look`: also check the values of a tensor, not its shape and type alone. generate() always does, once a speech;
forward() where they are `visible`.
"""

import torch

INTEGERS = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8
FLOATS = torch.float32, torch.float64, torch.float16, torch.bfloat16


def visible(*tensors):
    """Whether values may be looked at: not while a graph is recorded, and on a GPU looking would wait for it."""
    return not torch.compiler.is_compiling() and all(not torch.is_tensor(x) or x.is_cpu for x in tensors)


def as_tensor(name, value):
    """A tensor of what a caller gave; ValueError where it is none."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise ValueError(f"{name} is {kind}: expected a tensor, an array or a list of numbers.") from error


def check_tensor(name, x, shape, dtypes, meaning, hint=" The processor makes it."):
    """ValueError unless x is a tensor of one of the dtypes; shape: what each dimension must be, None: anything."""
    right = torch.is_tensor(x) and x.dtype in dtypes and x.ndim == len(shape)
    if not right or any(size is not None and size != there for size, there in zip(shape, x.shape)):
        got = f"{x.dtype} of shape {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} is {got}: expected {meaning}, a tensor of shape ({wanted}).{hint}")


def check_mask(name, mask, like, look=True):
    """ValueError unless mask, where it is given, has the shape (B, N) of what it masks and holds 0 and 1 alone."""
    if mask is None:
        return
    check_tensor(name, mask, like.shape[:2], (*INTEGERS, *FLOATS, torch.bool), "1 where there is something, else 0")
    if look and ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"{name} holds {mask.min()}..{mask.max()}: expected 1 and, on padding, 0.")


def check_text(ids, mask, config, prefix="", look=True):
    """ValueError unless ids (B, N) and mask (B, N) are texts that the model can read."""
    name = f"{prefix}input_ids"
    check_tensor(name, ids, (None, None), INTEGERS[:2], "token ids")
    check_mask(f"{prefix}attention_mask", mask, ids, look)
    if not ids.numel() or look and mask is not None and not mask.any(1).all():
        raise ValueError(f"{name} of shape {tuple(ids.shape)} holds a text without a token: leave that row out.")
    if ids.shape[1] > config.max_text_tokens:
        raise ValueError(f"The text has {ids.shape[1]} tokens, the limit is {config.max_text_tokens}: split the text.")
    if look and (ids.min() < 0 or ids.max() >= config.vocab_size):
        raise ValueError(
            f"{name} holds {int(ids.min())}..{int(ids.max())}: expected tokens of 0..{config.vocab_size - 1}. Does the "
            "processor belong to this model?"
        )


def check_recording(codes, mask, batch, config, prefix="audio", look=True):
    """ValueError unless codes (B, P, Q) and mask (B, P) are undelayed codes of recordings, for each text one."""
    shape, meaning = (batch, None, config.num_codebooks), "undelayed codes with one recording for each text"
    check_tensor(f"{prefix}_codes", codes, shape, INTEGERS, f"{meaning}, (batch, frames, {config.num_codebooks})")
    check_mask(f"{prefix}_attention_mask", mask, codes, look)
    if codes.shape[1] > config.max_audio_frames:
        raise ValueError(
            f"{prefix}_codes has {codes.shape[1]} frames, the limit is {config.max_audio_frames}: shorten the voice."
        )
    heard = codes if mask is None or not look else codes[mask.bool()]
    if look and heard.numel() and (heard.min() < 0 or heard.max() >= config.codebook_size):
        raise ValueError(
            f"{prefix}_codes holds {int(heard.min())}..{int(heard.max())}: expected codes of "
            f"0..{config.codebook_size - 1}. Was the voice made with another codec?"
        )


def check_initial_state(rows, batch, look=True):
    """ValueError unless rows (B, S) are finite numbers; the model checks S."""
    if rows is None:
        return
    check_tensor("initial_state", rows, (batch, None), FLOATS, "a tuned voice for each text")
    if look and not rows.isfinite().all():
        raise ValueError("initial_state holds NaN or infinity: the tuning of this voice went wrong, tune it again.")


def rows_of(state, config):
    """Rows of a state that forward() is to go on from; ValueError where it is not one of this kind of model."""
    mask = getattr(state, "mask" if config.architecture == "decoder-only" else "text_mask", None)
    if not torch.is_tensor(mask):
        raise ValueError(
            f"cache is {type(state).__name__}: expected that of an output of this model (of forward(); what "
            "generate() returns goes on in generate())."
        )
    return len(mask)


def check_delayed(codes, mask, batch, config):
    """ValueError unless codes (B, T, Q) and mask (B, T) are delayed codes, special tokens among them, of B texts."""
    shape, hint = (batch, None, config.num_codebooks), " smalle.generation_smalle.delay makes a row of it."
    check_tensor("decoder_input_ids", codes, shape, INTEGERS, "delayed codes, (batch, frames, codebooks)", hint)
    check_mask("decoder_attention_mask", mask, codes, visible(mask))
    if codes.shape[1] > config.max_audio_frames:
        raise ValueError(f"decoder_input_ids has {codes.shape[1]} frames, the limit is {config.max_audio_frames}: split it.")
    if visible(codes) and codes.numel() and (codes.min() < 0 or codes.max() >= config.audio_vocab_size):
        raise ValueError(
            f"decoder_input_ids holds {int(codes.min())}..{int(codes.max())}: expected 0..{config.audio_vocab_size - 1}, "
            "codes + 3 and special tokens, as smalle.generation_smalle.delay makes them."
        )


def check_maps(maps, text_length, codes):
    """ValueError unless maps, where given, are (B, T, N) numbers."""
    if maps is not None:
        shape = *codes.shape[:2], text_length
        check_tensor(
            "forced_alignments", maps, shape, FLOATS, "where in the text each step reads, (batch, frames, tokens)", ""
        )


def check_labels(labels, codes, config):
    """ValueError unless labels (B, T, Q) are what follows codes (B, T, Q): tokens, or -100 where nothing is taught."""
    check_tensor("labels", labels, codes.shape, INTEGERS, "the codes that follow decoder_input_ids", "")
    if not visible(labels) or not labels.numel():
        return
    taught = labels[labels != -100]
    if taught.numel() and (taught.min() < 0 or taught.max() >= config.audio_vocab_size):
        raise ValueError(
            f"labels holds {int(taught.min())}..{int(taught.max())}: expected 0..{config.audio_vocab_size - 1}, or "
            "-100 where there is nothing to learn."
        )


def check_seed(seed):
    """ValueError unless seed is None, an integer that a generator takes, or a torch.Generator."""
    if seed is None or isinstance(seed, torch.Generator):
        return
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}: expected an integer of 0 or more, or None.")
