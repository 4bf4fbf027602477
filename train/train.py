"""Trains Small-E with the Trainer of transformers.

usage: python -m train.train RECIPE.yaml [key.subkey=value ...] [--resume]

The recipe has four parts: `model` (fields of SmallEConfig), `data`, `objective`, `training` (TrainingArguments, and
`minutes`, which ends the run and paces its learning rate by the clock instead of by steps).
It may name an `init` checkpoint to start from. The averaged weights, the tokenizer and the recipe end up in
training.output_dir; `--resume` goes on from its last checkpoint and gives what an uninterrupted run gives.
"""

import argparse
import pathlib
import shutil
import sys

import torch
import torch.nn.functional as F
import yaml
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.configuration_smalle import AUDIO_PAD

from .alignment import forward_sum_loss, timed_maps, window_loss
from .clock import Clock
from .data import CodesDataset, Collator, SpeakerBatchSampler
from .ema import EMACallback


def drop_spans(codes, share, span=8):
    """Hides about a `share` of the frames of codes (B, T, Q) from the model, in spans, so that it has to read the text."""
    starts = torch.rand(codes.shape[0], 1, codes.shape[1] + span - 1, device=codes.device) < share / span
    hidden = F.max_pool1d(starts.float(), span, stride=1)[:, 0] > 0
    return codes.masked_fill(hidden[..., None], AUDIO_PAD)


class SmallETrainer(Trainer):
    """Cross-entropy weighted by codebook, and losses on the maps of the text (train.alignment); logs each part."""

    def __init__(self, *args, sampler=None, eval_sampler=None, objective=None, clock=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.sampler, self.eval_sampler, self.objective = sampler, eval_sampler, objective
        self.clock = clock
        self.parts = []

    def _loader(self, dataset, sampler):
        workers = self.args.dataloader_num_workers
        return torch.utils.data.DataLoader(
            dataset, batch_sampler=sampler, collate_fn=self.data_collator, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def get_train_dataloader(self):
        return self._loader(self.train_dataset, self.sampler)

    def get_eval_dataloader(self, eval_dataset=None):
        return self._loader(eval_dataset or self.eval_dataset, self.eval_sampler)

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.clock is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.clock)
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        windows = inputs.pop("token_windows")
        alignment, forward_sum = (self.objective.get(name, 0) for name in ("alignment_weight", "forward_sum_weight"))
        if model.training and self.objective.get("audio_dropout"):
            inputs["audio_codes"] = drop_spans(inputs["audio_codes"], self.objective["audio_dropout"])
        if model.training and self.objective.get("timed_rows"):
            maps = timed_maps(windows, labels.shape[1])
            rows = torch.rand(len(maps), 1, 1, device=maps.device) < self.objective["timed_rows"]
            inputs["text_maps"] = maps * rows
        out = model(**inputs, output_attentions=alignment + forward_sum > 0)
        losses = F.cross_entropy(out.logits.float().flatten(0, 2), labels.flatten(), reduction="none")
        codebooks = losses.view(labels.shape).sum((0, 1)) / (labels != -100).sum((0, 1)).clamp(min=1)
        weights = torch.tensor(self.objective["codebook_weights"], device=codebooks.device)
        loss = (codebooks * weights).sum() / weights.sum()
        parts = {f"loss_{q}": value for q, value in enumerate(codebooks.detach())}
        if alignment:
            mask = inputs["audio_attention_mask"]
            parts["alignment"] = sum(window_loss(one, windows, mask) for one in out.attentions) / len(out.attentions)
            loss = loss + alignment * parts["alignment"]
        if forward_sum:
            masks, count = (inputs["audio_attention_mask"], inputs["attention_mask"]), len(out.attentions)
            maps = torch.cat(out.attentions), *(mask.repeat(count, 1) for mask in masks)  # one pass over time for all
            parts["forward_sum"] = forward_sum_loss(*maps)
            loss = loss + count * forward_sum * parts["forward_sum"]
        if model.training:
            self.parts.append(torch.stack([value.detach() for value in parts.values()]))
            self.part_names = list(parts)
        out.loss = loss
        return (loss, out) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def log(self, logs, *args, **kwargs):
        if self.parts and "loss" in logs:
            means = torch.stack(self.parts).mean(0).tolist()
            logs.update({name: round(value, 4) for name, value in zip(self.part_names, means)})
            self.parts = []
        super().log(logs, *args, **kwargs)


def read_recipe(path, overrides):
    """The YAML with `key.subkey=value` overrides."""
    recipe = yaml.safe_load(pathlib.Path(path).read_text())
    for override in overrides:
        keys, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"{override!r}: expected key.subkey=value.")
        *parents, last = keys.split(".")
        part = recipe
        for key in parents:
            part = part.setdefault(key, {})
        part[last] = yaml.safe_load(value)
    return recipe


def build_trainer(recipe, adapt=None):
    """The Trainer that a recipe describes; `adapt` makes of its model what is trained in its place."""
    data, objective, training = (dict(recipe[part]) for part in ("data", "objective", "training"))
    minutes = training.pop("minutes", None)
    arguments = TrainingArguments(remove_unused_columns=False, use_cpu=not torch.cuda.is_available(), **training)
    set_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(data["tokenizer"])
    if recipe.get("init"):
        model = SmallEForTextToSpeech.from_pretrained(recipe["init"], dtype=torch.float32)
    else:
        model = SmallEForTextToSpeech(SmallEConfig(vocab_size=len(tokenizer), **recipe["model"]))
    config = model.config
    model = adapt(model) if adapt else model
    objective.setdefault("codebook_weights", [1.0] * config.num_codebooks)
    if len(objective["codebook_weights"]) != config.num_codebooks:
        raise ValueError(f"objective.codebook_weights: expected {config.num_codebooks} numbers, one for each codebook.")
    for name in ("alignment_weight", "forward_sum_weight"):
        if objective.get(name) and config.architecture == "decoder-only":
            raise ValueError(
                f"objective.{name}={objective[name]}: expected 0; a decoder-only transformer has no map of the text."
            )
    train, evaluation = (
        CodesDataset(data[name], config.num_codebooks, config.frame_rate) for name in ("train", "eval")
    )
    max_frames = int(data["max_seconds"] * config.frame_rate)
    sampler = SpeakerBatchSampler(
        train.lengths, train.speakers, data["frames_per_batch"], max_frames, arguments.seed, data["single"]
    )
    eval_batches = SpeakerBatchSampler(
        evaluation.lengths, evaluation.speakers, data["frames_per_batch"], max_frames
    ).epoch(0)[: data["eval_batches"]]
    clock = Clock(minutes, arguments.warmup_steps) if minutes else None
    callbacks = [EMACallback(model, objective["ema"])] + ([clock] if clock else [])
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters; "
          f"{train.lengths.sum() / config.frame_rate / 3600:.1f} hours, {len(sampler.epoch(0))} batches an epoch", flush=True)  # fmt: skip
    return SmallETrainer(
        model=model, args=arguments, train_dataset=train, eval_dataset=evaluation, sampler=sampler,
        eval_sampler=eval_batches, objective=objective, clock=clock, processing_class=tokenizer, callbacks=callbacks,
        data_collator=Collator(tokenizer, config.num_codebooks, config.frame_rate, objective["text_dropout"]),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    trainer = build_trainer(recipe)
    trainer.train(resume_from_checkpoint=arguments.resume or None)
    trainer.save_model()
    shutil.copy(arguments.recipe, trainer.args.output_dir)


if __name__ == "__main__":
    sys.exit(main())
