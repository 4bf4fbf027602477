"""Converts a checkpoint of lina-speech beta, the original implementation of Small-E, to this package's format.

  python -m smalle.train.convert_lina CHECKPOINT.pt CONFIG.yaml OUT [--tokenizer bpe256.json]

CHECKPOINT.pt and CONFIG.yaml are what the original's inference.py reads, or a checkpoint of its training that holds
tensors only. `AutoModelForTextToWaveform` loads OUT. With the original's tokenizer OUT is complete, with EnCodec at
3 kbps as its codec. Other checkpoints raise ValueError.
"""

import pickle
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.cli.command import command_parser, run_command
from smalle.configuration_smalle import NUM_AUDIO_SPECIALS
from smalle.processing_smalle import SmallEProcessor
from smalle.saving_smalle import atomic_folder

from .assemble import generation_config
from .data.tokenizer import wrap_tokenizer

RENAMES = [  # applied in this order: the original's names -> ours
    (r"^txt_embed\.", "model.text_embedding."),
    (r"^txt_encoder\.sa\.(\d+)\.(tmix\.)?", r"model.text_encoder.\1."),
    (r"^attentive_rnn\.encoder\.backbone\.norm_f\.", "model.audio_encoder_norm."),
    (r"^attentive_rnn\.decoder\.backbone\.norm_f\.", "model.audio_norm."),
    (r"^attentive_rnn\.cross_att\.pos_net\.backbone\.norm_f\.", "model.cross_attention.position_norm."),
    (r"^attentive_rnn\.(encoder|decoder)\.(backbone\.layers\.)?(\d+)\.", r"model.audio_\1.\3."),
    (r"^attentive_rnn\.cross_att\.pos_net\.(backbone\.layers\.)?", "model.cross_attention.position_block."),
    (r"^attentive_rnn\.cross_att\.([qkv])\.", r"model.cross_attention.\1_proj."),
    (r"^attentive_rnn\.cross_att\.ln_([qkv])\.", r"model.cross_attention.\1_norm."),
    (r"\.tmix\.", ".mixer."),
    (r"\.cmix\.", ".mlp."),
    (r"\.mlp\.p_out\.", ".mlp.down_proj."),
    (r"\.mlp\.key\.", ".mlp.k_proj."),  # RWKV's channel mixing
    (r"\.mlp\.receptance\.", ".mlp.r_proj."),
    (r"\.mlp\.value\.", ".mlp.v_proj."),
    (r"\.mixer\.gk_proj\.0\.", ".mixer.decay_down_proj."),  # GLA
    (r"\.mixer\.gk_proj\.1\.", ".mixer.decay_up_proj."),
    (r"\.mixer\.g_norm_swish_gate\.", ".mixer.norm."),
    (r"\.mixer\.receptance\.", ".mixer.r_proj."),  # RWKV's time mixing
    (r"\.mixer\.key\.", ".mixer.k_proj."),
    (r"\.mixer\.value\.", ".mixer.v_proj."),
    (r"\.mixer\.gate\.", ".mixer.g_proj."),
    (r"\.mixer\.output\.", ".mixer.o_proj."),
    (r"\.mixer\.ln_x\.", ".mixer.norm."),
    (r"\.mixer\.time_maa_w1$", ".mixer.time_mix_down"),
    (r"\.mixer\.time_maa_w2$", ".mixer.time_mix_up"),
    (r"\.mixer\.time_decay_w1$", ".mixer.decay_down"),
    (r"\.mixer\.time_decay_w2$", ".mixer.decay_up"),
    (r"(\.audio_\w+\.\d+|\.position_block\.\d+)\.norm\.", r"\1.norm1."),  # Mamba's block
    (r"\.mixer\.conv1d\.", ".mixer.conv."),
    (r"\.mixer\.out_proj\.", ".mixer.o_proj."),
]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by their original names, in single precision. Raises ValueError for other files."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no checkpoint, or holds Python objects, which are not unpickled for safety: expected what "
            'torch.save({"model": model.state_dict()}, ...) writes.'
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint of PyTorch: {str(error).splitlines()[0]}") from error
    for key in ("model", "state_dict"):
        checkpoint = checkpoint.get(key, checkpoint) if isinstance(checkpoint, dict) else None
    if not checkpoint or not all(torch.is_tensor(value) for value in checkpoint.values()):
        raise ValueError(f'{path}: expected a dictionary of tensors, or one under the key "model" or "state_dict".')
    if "rvq_embed.weight" not in checkpoint or "logits_head.weight" not in checkpoint:
        raise ValueError(
            f"{path} has no rvq_embed.weight or no logits_head.weight: expected a checkpoint of lina-speech beta "
            "(2024, about commit b341829)."
        )
    return {name: value.float() for name, value in checkpoint.items()}


def read_settings(path: str | Path) -> dict[str, Any]:
    """The arguments of the original model from a configuration of LightningCLI, with ${...} resolved.

    They include quant_layer (the codebooks of EnCodec) from the part `data`.
    """
    try:
        whole = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        model = resolve(whole["model"], whole)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a configuration of lina-speech ({error!r}): expected YAML with a part `model`, and the "
            "values of all ${...} in it."
        ) from error
    settings = model.get("init_args", model) if isinstance(model, dict) else {}
    missing = [name for name in ("d_model", "n_codebook", "n_txt_vocab", "attentive_rnn") if name not in settings]
    if missing:
        raise ValueError(f"{path}: the part `model` lacks {', '.join(missing)}; expected a lina-speech beta model.")
    return {**part(whole, "data")[1], **settings}


def resolve(value: Any, whole: dict) -> Any:
    """Replaces each ${path.to.another} in a value by the value at that path in `whole`."""
    if isinstance(value, dict):
        return {key: resolve(part, whole) for key, part in value.items()}
    if isinstance(value, list):
        return [resolve(part, whole) for part in value]
    if isinstance(value, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", value)):
        found = whole
        for key in match[1].split("."):
            found = found[key]
        return resolve(found, whole)
    return value


def part(settings: dict, name: str) -> tuple[str, dict]:
    """Class name and arguments of a part of the model; ("", {}) if it is missing."""
    value = settings.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}: expected class_path and init_args.")
    return str(value.get("class_path", "")).rpartition(".")[2], value.get("init_args") or {}


def mixer_settings(kind: str, rnn: dict, size: int) -> dict[str, Any]:
    """The fields of SmallEConfig that differ between the original's three recurrent models."""
    heads = rnn["heads"]
    if kind == "AttentiveGLA":
        fields = {"mixer": "gla", "mixer_heads": heads, "position_heads": heads, "final_norms": []}
        default, cross_heads = size, 1
    elif kind == "AttentiveRWKV6":
        feed_forward = "swiglu" if rnn.get("light") else "rwkv"
        fields = {"mixer": "rwkv6", "mixer_heads": heads, "feed_forward": feed_forward, "final_norms": []}
        default, cross_heads = 128, heads
    elif kind == "AttentiveMamba":
        norms = ["audio_encoder", "position", "audio_decoder"]
        fields = {"mixer": "mamba", "mixer_heads": 1, "feed_forward": "none", "final_norms": norms}
        default, cross_heads = 64, heads
    else:
        raise ValueError(f"attentive_rnn is {kind}: expected AttentiveGLA, AttentiveRWKV6 or AttentiveMamba.")
    if not rnn.get("blind"):
        turned = size // heads // 2
        return {**fields, "cross_attention": "plain", "cross_attention_heads": heads, "cross_rotary_size": turned}
    width = rnn.get("d_blind") or default
    return {
        **fields,
        "cross_attention": "paca",
        "cross_rotary_size": size // cross_heads // 2,
        "position_size": width,
        "position_layers": 2 if kind == "AttentiveMamba" else 1,
        "position_intermediate_size": 4 * width // 3,
        "position_gain": None,
    }


def make_config(settings: dict, num_codebooks: int) -> SmallEConfig:
    """The configuration for the original's settings. Raises ValueError for settings without a counterpart here."""
    kind, rnn = part(settings, "attentive_rnn")
    encoder_kind, encoder = part(settings, "txt_encoder")
    size = settings["d_model"]
    widths = {settings.get("d_context") or size, rnn.get("d_context", size), rnn.get("d_model", size)}
    if encoder_kind not in ("", "TextEncoder") or widths | {encoder.get("dim", size)} != {size}:
        raise ValueError(f"txt_encoder is {encoder_kind}, widths {widths}: expected TextEncoder, all {size} wide.")
    specials = {settings.get(f"n_special_token_{side}", NUM_AUDIO_SPECIALS) for side in ("in", "out")}
    if specials != {NUM_AUDIO_SPECIALS}:
        raise ValueError(f"n_special_token_in and _out are {specials}: expected {NUM_AUDIO_SPECIALS}.")
    missing = [name for name in ("heads", "n_layer") if name not in rnn]
    if missing:
        raise ValueError(f"attentive_rnn lacks {', '.join(missing)}.")
    return SmallEConfig(
        vocab_size=settings["n_txt_vocab"],
        hidden_size=size,
        intermediate_size=4 * size // 3,
        text_layers=encoder.get("n_layers", 4) if encoder_kind else 0,
        num_attention_heads=encoder.get("heads", 1),
        partial_rotary_factor=0.5,
        audio_encoder_layers=rnn["n_layer"],
        audio_decoder_layers=rnn["n_layer"],
        expand_k=1.0,
        expand_v=2.0,
        num_codebooks=num_codebooks,
        codebook_size=settings["n_codebook"],
        tie_word_embeddings=bool(settings.get("tie_embed")),
        **mixer_settings(kind, rnn, size),
    )


def reorder_rotary(rows: Tensor, heads: int, rotated: int) -> Tensor:
    """Reorders the channels (D, ...) of heads from interleaved rotary pairs to rotary halves.

    The original rotates neighbouring pairs of the first `rotated` channels of each head; this model rotates halves.
    """
    order = torch.arange(len(rows) // heads)
    order[:rotated] = torch.cat((order[0:rotated:2], order[1:rotated:2]))
    return rows.unflatten(0, (heads, -1))[:, order].flatten(0, 1)


def split_text_layer(ours: dict[str, Tensor], layer: str, config: SmallEConfig) -> None:
    """Splits the joint projection of queries, keys and values, and adds an output projection."""
    for kind in ("weight", "bias"):
        q, k, v = ours.pop(f"{layer}.qkv.{kind}").chunk(3)
        q, k = (reorder_rotary(rows, config.num_attention_heads, config.rotary_size) for rows in (q, k))
        ours |= {f"{layer}.q_proj.{kind}": q, f"{layer}.k_proj.{kind}": k, f"{layer}.v_proj.{kind}": v}
    add_identity_projection(ours, layer, config)


def add_identity_projection(ours: dict[str, Tensor], layer: str, config: SmallEConfig) -> None:
    """Adds an identity as the output projection if the original has none."""
    ours[f"{layer}.o_proj.weight"] = torch.eye(config.hidden_size)
    ours[f"{layer}.o_proj.bias"] = torch.zeros(config.hidden_size)


def join_time_mix(ours: dict[str, Tensor], mixer: str) -> None:
    """Stacks RWKV's parameters, which have one row each in the original."""
    names = "wkvrg" if mixer.endswith(".mixer") else "kr"
    ours[f"{mixer}.time_mix"] = torch.stack([ours.pop(f"{mixer}.time_maa_{name}").flatten() for name in names])
    if mixer.endswith(".mixer"):
        ours[f"{mixer}.time_mix_x"] = ours.pop(f"{mixer}.time_maa_x").flatten()[None]
        ours[f"{mixer}.decay"] = ours.pop(f"{mixer}.time_decay").flatten()
        ours[f"{mixer}.bonus"] = ours.pop(f"{mixer}.time_faaaa").flatten()


def check_frequencies(name: str, frequencies: Tensor) -> None:
    """Raises ValueError unless rotary frequencies are the usual ones, because here they are not parameters."""
    usual = 10000.0 ** (-torch.arange(len(frequencies)) / max(1, len(frequencies)))
    if not torch.allclose(frequencies, usual, rtol=1e-2):
        raise ValueError(
            f"{name} is not 10000^(-i / {len(frequencies)}): learned or rescaled frequencies are not supported."
        )


def convert_weights(weights: dict[str, Tensor], config: SmallEConfig) -> dict[str, Tensor]:
    """The state dict of SmallEForTextToSpeech."""
    ours = {}
    for name, value in weights.items():
        if name.endswith("rotary.freqs"):
            check_frequencies(name, value)
            continue
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        ours[name] = value
    ours["model.audio_embedding.weight"] = ours.pop("rvq_embed.weight").flatten(0, 1)
    ours["head.weight"] = ours.pop("logits_head.weight").flatten(0, 1)
    for name in list(ours):
        prefix, _, last = name.rpartition(".")
        if last in ("weight", "bias") and prefix.endswith(".mlp.p_in"):
            gate, up = ours.pop(name).chunk(2)
            prefix = prefix.removesuffix("p_in")
            ours |= {f"{prefix}gate_proj.{last}": gate, f"{prefix}up_proj.{last}": up}
        elif name.endswith(".qkv.weight"):
            split_text_layer(ours, name.removesuffix(".qkv.weight"), config)
        elif last == "time_maa_k":
            join_time_mix(ours, prefix)
    cross = "model.cross_attention"
    heads = config.cross_attention_heads or 1
    for layer in ("q_proj", "q_norm", "k_proj", "k_norm"):
        for name in (f"{cross}.{layer}.weight", f"{cross}.{layer}.bias"):
            ours[name] = reorder_rotary(ours[name], heads, config.cross_rotary_size)
    if config.cross_attention == "plain":
        add_identity_projection(ours, cross, config)
    return ours


def convert(checkpoint: str | Path, config_file: str | Path) -> SmallEForTextToSpeech:
    """The model with the weights of a lina-speech beta checkpoint. Raises ValueError for other checkpoints.

    Warns if the model was not trained on the first codebooks of EnCodec.
    """
    weights, settings = read_weights(checkpoint), read_settings(config_file)
    try:
        config = make_config(settings, len(weights["rvq_embed.weight"]))
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{config_file} describes no model: {error}") from error
    layers = settings.get("quant_layer")
    if layers and list(layers) != list(range(config.num_codebooks)):
        warnings.warn(
            f"quant_layer is {layers}: the model generates these codebooks of EnCodec, but the codec decodes the first "
            f"{config.num_codebooks}.",
            stacklevel=2,
        )
    model = SmallEForTextToSpeech(config).eval()
    try:
        model.load_state_dict(convert_weights(weights, config))
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{checkpoint} is not the model that {config_file} describes: {error}") from error
    return model


def read_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The original's tokenizer, which here adds BOS and EOS to each text, like the original's data."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no other type
        raise ValueError(f"{path} is not a file of the tokenizers library: {error}") from error
    return wrap_tokenizer(tokenizer)


def save(model: SmallEForTextToSpeech, out: str | Path, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    """Writes the checkpoint OUT as a whole, or not at all."""
    model.generation_config = generation_config(model.config)
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            SmallEProcessor(tokenizer, codec="encodec", sampling_rate=model.config.sampling_rate).save_pretrained(
                folder
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises ValueError or OSError for wrong input."""
    parser = command_parser("python -m smalle.train.convert_lina", __doc__)
    parser.add_argument("checkpoint", help="the original's checkpoint, .pt")
    parser.add_argument("config", help="the original's configuration, .yaml")
    parser.add_argument("out", help="folder of the checkpoint to write")
    parser.add_argument("--tokenizer", help="the original's bpe256.json; without it OUT has no processor")
    arguments = parser.parse_args(argv)
    model = convert(arguments.checkpoint, arguments.config)
    save(model, arguments.out, arguments.tokenizer and read_tokenizer(arguments.tokenizer))
    print(f"{arguments.out}: {model.num_parameters() / 1e6:.1f}M parameters, mixer {model.config.mixer}")


if __name__ == "__main__":
    sys.exit(run_command("convert_lina", main))
