"""At a record the policy decides, and the network grows; what growing costs is charged."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from analysis import Record
from nets import Architecture, Grown, Network, Remove, SetSurvival, cost, grow
from nets.initializing.by_name import initializer_of
from nets.plan.action_dicts import name_of
from nets.plan.actions import adds_capacity
from training.computing import distributed
from training.computing.wrapped_model import model_of
from training.deciding.call_policy import Answer, attempt, failure_of, state_of, told_of_state
from training.deciding.refusals import Decision, admit, first_refusals
from training.deciding.user_errors import PolicyFailed, told
from training.keeping.nonfinite import check_growth
from training.keeping.run_state import Run
from training.running.prepare import CHECKED
from training.running.write_down import save

MOST_MOVED = 0.01
"""Of the largest output: from here on it is no rounding, in float32 and TF32."""


def decide_and_grow(
    run: Run, record: Record, unmeasured: Answer | None = None
) -> tuple[Decision, float | None, list[str]]:
    """Ask the policy and do what it may; one whose probe was not measured has failed already.

    Gives what was decided, how much the outputs differ after growth, None without one, and what
    people are told of it.

    Raises:
        PolicyFailed: the policy failed, and `policy_errors` is "stop".
        NonFinite: outputs after growth are NaN or infinite.
    """
    policy = run.settings.policy
    state = state_of(policy)
    decision, difference, failure = _decide_and_grow(run, record, unmeasured)
    notes = first_refusals(run.history, decision.refused)
    notes += filter(None, [failure, _told_of_move(run, decision, difference)])
    if not run.stateful and state_of(policy) != state:
        run.stateful = True
        notes.append(told_of_state(policy))
    return decision, difference, notes


def _decide_and_grow(
    run: Run, record: Record, unmeasured: Answer | None
) -> tuple[Decision, float | None, str]:
    """Take away what has faded, ask the policy and do what it may; last comes how it failed.

    A policy that fails has asked for nothing, or ends the run: see `policy_errors`.
    """
    gone = tuple(
        Remove(name, reason="its branch has faded")
        for name, block in run.net.architecture.blocks.items()
        if block.fade and int(run.net.get_submodule(name).fade) >= block.fade  # pyright: ignore
    )
    faded, settings = Decision(applied=gone), run.settings
    if run.spent >= 1:
        return faded, grow_run(run, faded), ""
    answer = unmeasured or distributed.from_first(
        lambda: attempt(settings.policy, (*run.history, record))
    )
    failure = answer.failure
    if not failure:
        architecture = reduce(Architecture.apply, gone, run.net.architecture)
        may_grow = run.spent <= settings.grow_until
        decision = admit(architecture, answer.actions, run.limit, may_grow)
        decision = replace(decision, applied=(*gone, *decision.applied))
        try:
            return decision, grow_run(run, decision), ""
        except ValueError as error:  # what only the weights can tell
            failure = failure_of(settings.policy, record, told(error))
    if settings.policy_errors == "stop":
        failed = PolicyFailed(failure)
        failed.add_note(answer.trace)  # for a comparison's error.txt
        raise failed
    return faded, grow_run(run, faded), failure


def grow_run(run: Run, decision: Decision) -> float | None:
    """Grow the run's network and give the output difference; the state before it is kept."""
    if not decision.applied:
        return None
    settings = run.settings
    if not settings.compile and _survives(run, decision):
        return 0.0
    grown = grow(
        run.net,
        decision.applied,
        run.optimizer,
        ema=run.ema,
        initializer=settings.initializer,
        seed=settings.seed,
        probe=(run.probe[0][:CHECKED], run.probe[1][:CHECKED]),
        loss=run.loss,
    )
    check_growth(run, grown.difference)
    if any(map(adds_capacity, decision.applied)):  # only now: it could not have been done
        save(run, f"growth/step{run.progress.step:07d}.pt")
    run.progress.flops += growth_flops(run.net, grown)
    assert grown.optimizer is not None
    run.net, run.ema, run.optimizer = grown.network, grown.ema, grown.optimizer
    run.model = model_of(run.net, settings)
    run.clock.lead(run.optimizer)
    if run.rates is not None:
        run.rates.follow(grown)  # before the observer sees a step
    if run.captured:
        run.captured.forget()
    run.observer.follow(grown)
    return grown.difference


def _survives(run: Run, decision: Decision) -> bool:
    """Say whether all that is decided is other chances of survival, which are now in place."""
    if not all(isinstance(action, SetSurvival) for action in decision.applied):
        return False
    architecture = reduce(Architecture.apply, decision.applied, run.net.architecture)
    return all(net.survive(architecture) for net in (run.net, run.ema) if net is not None)


def _told_of_move(run: Run, decision: Decision, difference: float | None) -> str:
    """Say that outputs moved although nothing that was done says that it moves them."""
    applied, given = decision.applied, run.settings.initializer
    if not applied or difference is None or difference <= MOST_MOVED:
        return ""
    used = [getattr(action, "initializer", None) or given for action in applied]
    if not all(map(adds_capacity, applied)) or any(initializer_of(i).moves_outputs for i in used):
        return ""
    names = ", ".join(dict.fromkeys(map(name_of, used)))
    return f"outputs moved by {difference:.2g} as the net grew; {names} should keep them"


def growth_flops(before: Network, grown: Grown) -> int:
    """Give what growing costs: forwards on the probe batch, and what was measured for edits.

    Two of the old network and three of the new one, though one of these serves both for running
    statistics and for the comparison. The average's are free, as all that only judges.
    """
    old, new = (cost(net.architecture).flops for net in (before, grown.network))
    return CHECKED * (2 * old + 3 * new) + grown.flops
