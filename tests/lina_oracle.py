"""Runs the original's code, lina-speech beta, on tiny random models: what the golden files in tests/golden hold.

usage: python tests/lina_oracle.py LINA MAMBA OUT    (with einops and rotary-embedding-torch 0.5.3 installed)

LINA: a checkout of theodorblackbird/lina-speech, commit b341829. MAMBA: one of state-spaces/mamba, v1.2.0. What they
need of a GPU has a stand-in here: the recurrences step by step, written from the papers, and the fused norm of GLA.
Each OUT/lina-KIND.safetensors holds weights under the original's names in half precision, text, codes and the logits
that the original computes from them in single precision; its metadata has the configuration that it was built from.
"""

import importlib.machinery
import os
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import nn

SIZE, TEXT_VOCABULARY, CODEBOOKS, CODEBOOK = 16, 12, 2, 10
RNN = {
    "gla": ("model.gla.AttentiveGLA", {}),
    "rwkv6": ("model.rwkv6.AttentiveRWKV6", {"n_layer": 2}),
    "rwkv6-light": ("model.rwkv6.AttentiveRWKV6", {"n_layer": 2, "light": True}),
    "mamba": ("model.mamba.AttentiveMamba", {}),
}
KINDS = {  # name: recurrent part, blind (PACA)
    "gla-blind": ("gla", True),
    "gla-plain": ("gla", False),
    "rwkv6-blind": ("rwkv6", True),
    "rwkv6-light-plain": ("rwkv6-light", False),
    "mamba-blind": ("mamba", True),
    "mamba-plain": ("mamba", False),
}


def recurrence(q, k, v, log_decay, bonus=None, initial_state=None, **ignored):
    """(B, H, T, D): S_t = diag(a_t) S_(t-1) + k_t v_t^T, read with q_t; with a bonus before the decay, as in RWKV."""
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[2]):
        update = k[:, :, t, :, None] * v[:, :, t, None]
        before, state = state, state * log_decay[:, :, t, :, None].exp() + update
        read = state if bonus is None else before + bonus[..., None] * update
        outputs.append((q[:, :, t, None] @ read).squeeze(2))
    return torch.stack(outputs, 2), state


def gla(q, k, v, gk, **options):
    return recurrence(q * q.shape[-1] ** -0.5, k, v, gk, **options)


class NormSwishGate(nn.Module):
    """RMSNorm of the first argument times SiLU of the second."""

    def __init__(self, size, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x, gate):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps) * F.silu(gate)


class Lightning(nn.Module):
    def save_hyperparameters(self):
        pass


def stand_in(name, **members):
    module = types.ModuleType(name)
    module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
    vars(module).update(members)
    sys.modules[name] = module


def stand_ins():
    """What the original imports and this machine need not have."""
    stand_in("pytorch_lightning", LightningModule=Lightning)
    stand_in("pytorch_lightning.cli", LightningCLI=object)
    stand_in("matplotlib")
    stand_in("matplotlib.pyplot")
    stand_in("fla")
    stand_in("fla.modules", FusedRMSNormSwishGate=NormSwishGate, RMSNorm=None, ShortConvolution=nn.Identity)
    stand_in("fla.ops")
    stand_in("fla.ops.gla", chunk_gla=gla, fused_chunk_gla=gla, fused_recurrent_gla=gla)
    stand_in("fla.ops.rwkv6")
    stand_in("fla.ops.rwkv6.chunk", chunk_rwkv6=None)
    stand_in("selective_scan_cuda")
    stand_in("mamba_ssm.utils.hf", load_config_hf=None, load_state_dict_hf=None)
    stand_in("mamba_ssm.utils.generation", GenerationMixin=object, InferenceParams=None)


def patch_rwkv():
    """The recurrence of RWKV v6 in place of its CUDA kernel, and nothing rounded to bfloat16 before it."""
    import torch.utils.cpp_extension

    os.environ["RWKV_CTXLEN"] = "1"
    torch.utils.cpp_extension.load = lambda **ignored: None
    torch.Tensor.bfloat16 = lambda tensor: tensor
    stand_in("model.rwkv_inner", rwkv_inner=None)
    import model.rwkv6

    def kernel(B, T, C, H, r, k, v, w, u, state=None):
        r, k, v, w = (x.view(B, T, H, -1).transpose(1, 2) for x in (r, k, v, w))
        return recurrence(r, k, v, -w.exp(), bonus=u, initial_state=state)

    def whole(*arguments, u):
        return kernel(*arguments, u=u)[0].transpose(1, 2).flatten(2)

    def stepwise(self, r, k, v, w):
        out, self.kv_state = kernel(*r.shape, self.n_head, r, k, v, w, self.time_faaaa, self.kv_state)
        return out.transpose(1, 2).flatten(2)

    model.rwkv6.RUN_CUDA_RWKV6 = whole
    model.rwkv6.RWKV_TMix_x060.wkv = stepwise
    model.rwkv6.RWKV_TMix_x060.inference = False


def patch_mamba():
    import mamba_ssm.modules.mamba_simple as mamba
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    mamba.selective_scan_fn = selective_scan_ref
    plain = mamba.Mamba.__init__
    mamba.Mamba.__init__ = lambda self, *args, **kwargs: plain(self, *args, **{**kwargs, "use_fast_path": False})


def configuration(kind):
    """In the form of the original's YAML files."""
    rnn, blind = KINDS[kind]
    path, more = RNN[rnn]
    rnn = {
        "d_model": "${model.init_args.d_model}",
        "d_context": SIZE,
        "heads": 2,
        "n_layer": 1,
        "blind": blind,
        **({"d_blind": 12} if blind else {}),
        **more,
    }
    return {
        "data": {"class_path": "dataset.LinaDataModule", "init_args": {"quant_layer": list(range(CODEBOOKS))}},
        "model": {
            "class_path": "model.lina.Lina",
            "init_args": {
                "n_codebook": CODEBOOK,
                "n_special_token_in": 3,
                "n_special_token_out": 3,
                "n_txt_vocab": TEXT_VOCABULARY,
                "d_context": SIZE,
                "d_model": SIZE,
                "txt_encoder": {
                    "class_path": "model.encoder.TextEncoder",
                    "init_args": {"dim": SIZE, "heads": 1, "n_layers": 2},
                },
                "attentive_rnn": {"class_path": path, "init_args": rnn},
            },
        },
    }


def build(config):
    """The original's model with weights far from their initial values, rounded to half precision."""
    from model.encoder import TextEncoder
    from model.lina import Lina

    settings = dict(config["model"]["init_args"])
    module, name = settings["attentive_rnn"]["class_path"].rsplit(".", 1)
    rnn_settings = {**settings["attentive_rnn"]["init_args"], "d_model": SIZE}
    rnn = getattr(__import__(module, fromlist=[name]), name)(**rnn_settings)
    encoder = TextEncoder(**settings["txt_encoder"]["init_args"])
    quantizers = config["data"]["init_args"]["quant_layer"]
    model = Lina(**{**settings, "attentive_rnn": rnn, "txt_encoder": encoder, "quant_layer": quantizers}).eval()
    for name, parameter in model.named_parameters():
        if not name.endswith("freqs"):
            parameter.copy_((parameter + 0.2 * torch.randn_like(parameter)).half())
    return model


def step_by_step(model, text, codes):
    """The logits of the original's generation loop, where it has one that runs."""
    rnn = model.attentive_rnn
    if not hasattr(rnn.cross_att, "pos_net") or type(rnn).__name__ == "AttentiveMamba":
        return None
    encoded = model.txt_encoder(model.txt_embed(text), torch.ones_like(text).bool())
    rnn.init_state()
    embedded = model.rvq_embed(codes.permute(2, 0, 1)).sum(0)
    steps = [rnn.step(embedded[:, t : t + 1], encoded, time_step=t)[0] for t in range(codes.shape[1])]
    return model.logits_head(torch.cat(steps, 1))


@torch.no_grad()
def golden(kind, out):
    config = configuration(kind)
    torch.manual_seed(0)
    model = build(config)
    text = torch.randint(TEXT_VOCABULARY, (2, 7))
    codes = torch.randint(CODEBOOK + 3, (2, 10, CODEBOOKS))
    logits = model.step(text, codes, torch.tensor([7, 7]), torch.tensor([10, 10]))[0]
    again = step_by_step(model, text, codes[:, :-1])
    difference = "-" if again is None else f"{(again - logits).abs().max():.1e}"
    print(f"{kind}: logits {logits.std():.2f}, whole sequence against step by step {difference}")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    freqs = {name: value.contiguous() for name, value in model.state_dict().items() if name.endswith("freqs")}
    expected = {"text": text, "codes": codes[:, :-1].contiguous(), "logits": logits.contiguous()}
    save_file(
        {f"weights/{name}": value for name, value in {**weights, **freqs}.items()} | expected,
        out / f"lina-{kind}.safetensors",
        {"config": yaml.safe_dump(config)},
    )


def main():
    lina, mamba, out = map(Path, sys.argv[1:])
    sys.path[:0] = [str(lina), str(mamba)]
    stand_ins()
    patch_mamba()
    patch_rwkv()
    out.mkdir(exist_ok=True)
    for kind in KINDS:
        golden(kind, out)


if __name__ == "__main__":
    main()
