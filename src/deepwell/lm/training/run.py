"""A whole run: from a recipe to a trained model in a folder, stopped and gone on with as often as one likes.

    runs/my-run/
      recipe.json       what the run does; going on with another recipe is refused
      data/             the tokenised text and, if it was trained here, the tokenizer
      checkpoints/      the newest states, each whole or not there at all
      journal.jsonl     a line of JSON for everything that happened; what the panel, TensorBoard and the report draw
      model/            the trained network with its tokenizer, which chat and serve open; for LoRA also adapter/
      report.html       curves, expert load, samples, cost

    >>> read = deepwell.lm.training.reading.read("pretrain-debug")                                   # doctest: +SKIP
    >>> outcome = train(read.recipe, Path("runs/mine"), base=read.base, name=read.name)              # doctest: +SKIP

Under torchrun every process calls ``train`` alike; the first one writes. Ctrl-C and SIGTERM end the run after the step
that is under way, with a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from deepwell.errors import TrainingError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.parallel.sharding import distribute, whole_copy
from deepwell.lm.parallel.world import World
from deepwell.lm.training import cost, esft, network, reading
from deepwell.lm.training.checkpoint import Checkpoints
from deepwell.lm.training.data import corpus
from deepwell.lm.training.data.rows import Rows, Spread
from deepwell.lm.training.evaluating import sample, validate
from deepwell.lm.training.folder import CHECKPOINTS, EXPERTS, JOURNAL, claim, held, write_whole
from deepwell.lm.training.guard import Guard
from deepwell.lm.training.journal import Journal
from deepwell.lm.training.loop import Loop, Progress
from deepwell.lm.training.optimizers import build
from deepwell.lm.training.precision import set_precision
from deepwell.lm.training.recipe import Recipe
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated, Watcher
from deepwell.lm.training.report import write_report
from deepwell.lm.training.schedules import plan
from deepwell.lm.training.states import collect, put_back
from deepwell.lm.training.stopping import Stopping
from deepwell.lm.weights.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    step: int
    finished: bool
    """False where it was stopped; it goes on with ``resume``."""
    model: Path | None
    report: Path | None
    loss: float
    """Of the last step."""
    bits_per_byte: float | None
    """Of what was held back, at the end."""


Preparing = Callable[[str, int, int], None]
"""Told of the preparation: what is done, how much of it, and how much there is."""


def train(
    recipe: Recipe,
    folder: Path,
    *,
    base: Path,
    name: str,
    resume: bool = False,
    watchers: Sequence[Watcher] = (),
    on_prepare: Preparing | None = None,
) -> Outcome:
    """Carry out a recipe.

    Args:
        recipe: What to do.
        folder: Where everything goes; see the module.
        base: The folder that relative paths of the recipe's data start from.
        name: What the run is called.
        resume: Go on from the newest good checkpoint in ``folder`` (from the beginning where there is none).
        watchers: Called with each record, in the first process alone.
        on_prepare: Called while data is prepared.

    Raises:
        UsageError: The folder holds another run, or is in use.
        DataError: Text that is missing, damaged or too little.
        TrainingError: Losses were not finite again and again; the disk is full; no checkpoint is good.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with World.start(experts=recipe.parallel.experts, data=recipe.parallel.data) as world, held(folder, world):
        claim(folder, recipe, name, base, resume=resume, world=world)
        run = _Run(recipe, folder, base, name, world, tuple(watchers), on_prepare)
        try:
            return run.carry_out(resume=resume)
        finally:
            run.journal.close()


class _Run:
    """The state of one sitting of a run."""

    def __init__(
        self, recipe: Recipe, folder: Path, base: Path, name: str, world: World, watchers: tuple[Watcher, ...],
        on_prepare: Preparing | None,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.name, self.world = recipe, folder, name, world
        self.journal = Journal(folder / JOURNAL)
        self.watchers: tuple[Watcher, ...] = (self.journal, *watchers)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, keep=recipe.checkpoint.keep)
        device = world.device
        _seed(recipe.seed)
        model, tokenizer = network.opened(recipe, device)
        prepared = self._corpus(base, tokenizer, on_prepare)
        self.tokenizer: Tokenizer = prepared.tokenizer
        model = model if model is not None else network.made(recipe, self.tokenizer, device)
        self._balance(model)
        self.rows = Rows(prepared.train, recipe.data, self.tokenizer, recipe.seed, recipe.kind)
        self.validation = (
            Rows(prepared.validation, recipe.data, self.tokenizer, recipe.seed, recipe.kind)
            if recipe.data.validation and len(prepared.validation)
            else None
        )
        chosen = self._tune(model)
        set_precision(model, recipe.precision)
        model.recompute = recipe.memory.recompute
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        length = recipe.data.sequence_length
        whole = plan(recipe.batch, rows_per_epoch=len(self.rows), row_tokens=length)
        whole.check_processes(world.size)
        flops = cost.training_flops(model.config, length, model=model)
        distribute(model, world)
        self.model: Transformer = model
        self.loop = Loop(
            model=model,
            recipe=recipe,
            rows=self.rows,
            plan=whole,
            optimizer=build(model, recipe.optimizer, chosen_experts=chosen),
            guard=Guard(recipe.guard),
            world=world,
            progress=Progress(),
            flops_per_token=flops,
            peak_flops=self._peak(),
            origins={"data": prepared.fingerprint, "base": network.base_fingerprint(recipe.model)},
        )

    # ---- before the first step ----

    def _corpus(self, base: Path, tokenizer: Tokenizer | None, on_prepare: Preparing | None) -> corpus.Corpus:
        """The data: prepared by the first process, then read by all."""
        found = None
        if self.world.is_main:
            found = corpus.prepare(self.recipe, base, self.folder / "data", tokenizer=tokenizer, on_progress=on_prepare)
        self.world.barrier()
        return found or corpus.prepare(self.recipe, base, self.folder / "data", tokenizer=tokenizer)

    def _balance(self, model: Transformer) -> None:
        model.config = model.config.replace(aux_loss_alpha=self.recipe.balance.alpha)
        for gate in model.gates():
            gate.config = model.config

    def _tune(self, model: Transformer) -> Mapping[int, Sequence[int]] | None:
        """Freeze what the recipe leaves alone. For ESFT: the experts that learn, by the index of their gate."""
        section = self.recipe.model
        if section.tune == "lora":
            network.adapt(model, self.recipe)
            return None
        if section.tune == "full":
            model.requires_grad_(True)
            return None
        chosen: dict[int, list[int]] = self.world.broadcast_object(self._chosen(model) if self.world.is_main else None)
        esft.restrict(model, chosen, tune_shared=section.esft.tune_shared, tune_rest=section.esft.tune_rest)
        return chosen

    def _chosen(self, model: Transformer) -> dict[int, list[int]]:
        """For ESFT: the experts that the run's checkpoint is of, or those that the data says."""
        section, path = self.recipe.model.esft, self.folder / EXPERTS
        if path.exists() and self.checkpoints.steps():
            return {int(layer): list(experts) for layer, experts in json.loads(path.read_text()).items()}
        count = min(max(1, section.sample_tokens // self.recipe.data.sequence_length), len(self.rows))
        batches = (self.rows.batch(first, 1).to(self.world.device) for first in range(count))
        chosen = esft.choose_experts(esft.rank_experts(model, batches, by=section.by), section.share)
        write_whole(path, json.dumps(chosen) + "\n")
        return chosen

    def _peak(self) -> float:
        given = self.recipe.log.peak_tflops * 1e12
        dtype = torch.float32 if self.recipe.precision.compute == "f32" else torch.bfloat16
        return self.world.size * (given or cost.measured_peak(dtype, self.world.device))

    # ---- the run ----

    def carry_out(self, *, resume: bool) -> Outcome:
        """Steps until the end or until someone stops it."""
        loop, log = self.loop, self.recipe.log
        passed_over: list[str] = []
        if resume:
            self._restore(passed_over.append)
        if self.world.is_main:
            self.journal.resume(loop.progress.step)
        if log.tensorboard and self.world.is_main:
            self._watch_by_tensorboard()
        self._tell(self._started())
        for message in passed_over:  # told after the journal was cut, which ends at the last record that stays
            self._note(message)
        with Stopping() as stop:
            last = float("nan")
            while loop.progress.step < loop.plan.steps:
                told, back = loop.step()
                self._tell(told)
                last = told.loss
                if told.skipped and told.step not in loop.guard.passed:
                    self._note(f"step {told.step} was skipped: its loss or gradient is not finite")
                if back:
                    self._go_back()
                    continue
                step = loop.progress.step
                done = step == loop.plan.steps
                if done or (log.validate_every and step % log.validate_every == 0):
                    self._validate()
                if done or (log.sample_every and step % log.sample_every == 0):
                    self._sample()
                halted = stop.asked_everywhere(self.world)
                every = self.recipe.checkpoint.every
                if done or halted or (every and step % every == 0):
                    self._save()
                if halted and not done:
                    return self._end(last, finished=False)
        return self._end(last, finished=True)

    def _started(self) -> Started:
        recipe, loop = self.recipe, self.loop
        return Started(
            name=self.name,
            step=loop.progress.step,
            steps=loop.plan.steps,
            parameters=self.parameters,
            active_parameters=cost.active_parameters(self.model.config),
            trained_parameters=sum(slot.size for slot in loop.optimizer.slots),
            train_tokens=self.rows.tokens,
            validation_tokens=self.validation.tokens if self.validation is not None else 0,
            flops_per_token=loop.flops_per_token,
            peak_flops=loop.peak_flops,
            processes=self.world.size,
            device=str(self.world.device),
            precision=recipe.precision.compute,
            recipe=reading.to_dict(recipe),
        )

    def _tell(self, record: Record) -> None:
        if self.world.is_main:
            for watcher in self.watchers:
                watcher(record)

    def _note(self, message: str) -> None:
        self._tell(Noted(step=self.loop.progress.step, message=message))

    def _watch_by_tensorboard(self) -> None:
        from deepwell.errors import MissingExtraError
        from deepwell.lm.training.tensorboard import TensorBoard

        try:
            self.watchers = (*self.watchers, TensorBoard(self.folder / "tensorboard"))
        except MissingExtraError as error:
            self._note(f"no TensorBoard files: {error.message}")

    def _validate(self) -> None:
        if self.validation is None:
            return
        some = Spread(self.validation, self.recipe.log.validate_rows or len(self.validation))
        found = validate(self.model, some, count=len(some), micro=self.recipe.batch.micro_sequences or 8)
        self._tell(replace(found, step=self.loop.progress.step))

    def _sample(self) -> None:
        log, seed, chats = self.recipe.log, self.recipe.seed, self.recipe.kind == "sft"
        prompts = log.prompts or ("",)
        whole = whole_copy(self.model, self.world)  # in the first process, for which the others wait
        if whole is not None:
            texts = sample(whole, self.tokenizer, prompts, tokens=log.sample_tokens, seed=seed, chats=chats)
            for prompt, text in zip(prompts, texts, strict=True):
                self._tell(Sampled(step=self.loop.progress.step, prompt=prompt, text=text))
        self.world.barrier()

    # ---- states ----

    def _save(self) -> None:
        tensors, values = collect(self.loop)
        self.checkpoints.save(self.loop.progress.step, tensors, values, world=self.world)

    def _restore(self, on_bad: Callable[[str], None]) -> None:
        """Go on from the newest good checkpoint, if there is one."""
        loaded = self.checkpoints.latest_good(on_bad)
        if loaded is not None:
            put_back(self.loop, loaded)

    def _go_back(self) -> None:
        """After too many bad steps: the last checkpoint again, passing over the bad steps."""
        guard = self.loop.guard.state()
        bad = self.loop.progress.step
        loaded = self.checkpoints.latest_good(self._note)
        if loaded is None:
            raise TrainingError(
                f"losses are not finite at step {bad}, and there is no checkpoint to go back to",
                hint="lower optimizer.lr, or save more often (checkpoint.every)",
            )
        put_back(self.loop, loaded)
        self.loop.guard.restore(guard)
        self._note(f"went back from step {bad} to step {loaded.step}; the bad steps are passed over")

    def _end(self, loss: float, *, finished: bool) -> Outcome:
        progress = self.loop.progress
        model = None
        if finished:
            whole = whole_copy(self.model, self.world)
            if whole is not None and self.world.is_main:
                model = network.write(whole, self.recipe, self.tokenizer, self.folder)
        self._tell(
            Ended(
                step=progress.step, tokens=progress.tokens, seconds=progress.seconds,
                flops=progress.tokens * self.loop.flops_per_token, finished=finished, model=str(model or ""),
            )
        )  # fmt: skip
        self.world.barrier()
        report = write_report(self.folder) if self.world.is_main else None
        told = self.journal.records() if self.world.is_main else []
        looks = [record for record in told if isinstance(record, Validated)]
        steps = [record for record in told if isinstance(record, Stepped)]
        return Outcome(
            progress.step, finished, model, report, steps[-1].loss if steps else loss,
            looks[-1].bits_per_byte if looks else None,
        )  # fmt: skip


def _seed(seed: int) -> None:
    """Python's, NumPy's and torch's random numbers. Nothing of a run depends on another source of chance."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
