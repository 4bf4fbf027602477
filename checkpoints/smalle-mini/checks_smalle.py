"""What generate() refuses before it begins: ValueErrors that name the value, what was expected and what to do."""

import torch

INTEGERS = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8
FLOATS = torch.float32, torch.float64, torch.float16, torch.bfloat16


def check_tensor(name, x, shape, dtypes, meaning):
    """ValueError unless x is a tensor of one of the dtypes; shape: what each dimension must be, None: anything."""
    right = torch.is_tensor(x) and x.dtype in dtypes and x.ndim == len(shape)
    if not right or any(size is not None and size != there for size, there in zip(shape, x.shape)):
        got = f"{x.dtype} of shape {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} is {got}: expected {meaning}, a tensor of shape ({wanted}). The processor makes it.")


def check_mask(name, mask, like):
    """ValueError unless mask, where it is given, has the shape (B, N) of what it masks and holds 0 and 1 alone."""
    if mask is None:
        return
    check_tensor(name, mask, like.shape[:2], (*INTEGERS, *FLOATS, torch.bool), "1 where there is something, else 0")
    if ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"{name} holds {mask.min()}..{mask.max()}: expected 1 and, on padding, 0.")


def check_text(ids, mask, config, prefix=""):
    """ValueError unless ids (B, N) and mask (B, N) are texts that the model can read."""
    name = f"{prefix}input_ids"
    check_tensor(name, ids, (None, None), INTEGERS[:2], "token ids")
    check_mask(f"{prefix}attention_mask", mask, ids)
    if not ids.numel() or mask is not None and not mask.any(1).all():
        raise ValueError(f"{name} of shape {tuple(ids.shape)} holds a text without a token: leave that row out.")
    if ids.shape[1] > config.max_text_tokens:
        raise ValueError(f"The text has {ids.shape[1]} tokens, the limit is {config.max_text_tokens}: split the text.")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise ValueError(
            f"{name} holds {int(ids.min())}..{int(ids.max())}: expected tokens of 0..{config.vocab_size - 1}. Does the "
            "processor belong to this model?"
        )


def check_prompt(codes, mask, batch, config):
    """ValueError unless codes (B, P, Q) and mask (B, P) are undelayed codes that the model can go on from."""
    shape, meaning = (batch, None, config.num_codebooks), "undelayed codes with one prompt for each text"
    check_tensor("audio_codes", codes, shape, INTEGERS, f"{meaning}, (batch, frames, {config.num_codebooks})")
    check_mask("audio_attention_mask", mask, codes)
    if codes.shape[1] > config.max_audio_frames:
        raise ValueError(f"The prompt has {codes.shape[1]} frames, the limit is {config.max_audio_frames}: shorten it.")
    heard = codes if mask is None else codes[mask.bool()]
    if heard.numel() and (heard.min() < 0 or heard.max() >= config.codebook_size):
        raise ValueError(
            f"audio_codes holds {int(heard.min())}..{int(heard.max())}: expected codes of "
            f"0..{config.codebook_size - 1}. Was the voice made with another codec?"
        )


def check_initial_state(rows, batch):
    """ValueError unless rows (B, S) are finite numbers; the model checks S."""
    if rows is None:
        return
    check_tensor("initial_state", rows, (batch, None), FLOATS, "a tuned voice for each text")
    if not rows.isfinite().all():
        raise ValueError("initial_state holds NaN or infinity: the tuning of this voice went wrong, tune it again.")


def check_seed(seed):
    """ValueError unless seed is None, an integer that a generator takes, or a torch.Generator."""
    if seed is None or isinstance(seed, torch.Generator):
        return
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}: expected an integer of 0 or more, or None.")
