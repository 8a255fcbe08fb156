"""All checks: plain functions of a device, which raise if something is wrong."""

from __future__ import annotations

from collections.abc import Callable

from . import by_hand, compiled, donation, laws, profiled, reads, seen, stored

Check = Callable[[str], None]

CHECKS: dict[str, Check] = {
    "law 1, pure": laws.pure,
    "law 2, repeatable": laws.repeatable,
    "law 4, accumulates": laws.accumulates,
    "law 8, resumes": laws.resumes,
    "law 10, skips": laws.skips,
    "law 11, stable": laws.stable,
    "a population": laws.members,
    "a checkpointed loss": laws.checkpointed,
    "optimizers by hand": by_hand.optimizers,
    "schedules by hand": by_hand.schedules,
    "bf16 by hand": by_hand.bf16,
    "fp16 by hand": by_hand.fp16,
    "parameters in bf16": by_hand.half_parameters,
    "eager steps do not read": reads.eager,
    "compiled steps do not read": reads.compiled,
    "merging does not read": reads.merged,
    "a summary": seen.summary,
    "speed and memory, without reading": seen.measured,
    **compiled.AGREES,
    "agrees: most stages": compiled.everything_agrees,
    "random numbers of compiled steps": compiled.masks,
    "states outlive the next steps": compiled.states_are_kept,
    "states of donating steps": compiled.donated_states_are_kept,
    "one CUDA graph": compiled.few_graphs,
    "several steps in one call": compiled.several_steps,
    "donated states are refused": donation.refused,
    "kept tensors stay": donation.kept,
    "donation is in place": donation.in_place,
    "memory does not grow": donation.does_not_grow,
    "saved, loaded, moved": stored.there_and_back,
    "compiled, saved, loaded": stored.compiled_and_loaded,
    "fit": stored.fitted,
    "early stopping": stored.stopped,
    "prefetch": stored.prefetched,
    "a profile": profiled.profiled,
}
