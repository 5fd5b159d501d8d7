"""The loop, with stand-ins for the step and the text: what is logged, saved and when."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.train import loop
from rrope_jax.train.step import Measures, State

KEY = jax.random.key(0)


class _Text:
    """Batches that hold their own number, counted from 1."""

    def __init__(self, number: int = 0) -> None:
        self.number, self.waiting_seconds = number, 0.0

    def __next__(self) -> Mapping[str, np.ndarray]:
        self.number += 1
        return {"tokens": np.full((1, 1), self.number)}

    def state(self) -> dict[str, Any]:
        return {"number": self.number}


def _state(step: int = 0) -> State:
    return State({"sum": jnp.zeros(())}, (), jnp.int32(step), jnp.ones((), bool))


def _step(broken: int | None = None) -> loop.Step:
    """A model that adds up the numbers of its batches; its loss is the sum before."""

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, Measures]:
        sound = state.sound & (int(state.step) + 1 != broken)
        total = state.params["sum"]
        new = State({"sum": total + batch["tokens"][0, 0]}, (), state.step + 1, sound)
        kept = jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, state)._replace(sound=sound)
        loss = jnp.where(sound, total, jnp.nan)
        one = jnp.ones(())
        return kept, Measures(loss, one, one, one, sound)

    return step


class _Run:
    """Runs the loop and keeps what it was told."""

    def __init__(
        self,
        *,
        steps: int = 7,
        first: int = 0,
        save_every: int = 3,
        evaluate_every: int | None = None,
        stop_at: int | None = None,
        broken: int | None = None,
        spoiled: float | None = None,
    ) -> None:
        self.events: list[tuple[Any, ...]] = []
        text = _Text(first)
        self.hooks = loop.Hooks(
            log=lambda r: self.events.append(("log", r["step"], r["loss"], r.get("eval_loss"))),
            save=lambda state, place: self.events.append(
                ("save", int(state.step), float(state.params["sum"]), place["number"])
            ),
            save_every=save_every,
            evaluate=lambda state: {"eval_loss": spoiled or -float(state.params["sum"])},
            evaluate_every=evaluate_every,
            stopping=lambda number: number == stop_at,
        )

        def call(
            hooks: loop.Hooks = self.hooks,
            *,
            state: State | None = None,
            owed: Mapping[str, Any] | None = None,
        ) -> bool:
            begun = state or _state(first)
            return loop.run(
                _step(broken),
                begun,
                text,
                KEY,
                steps=steps,
                put=jax.device_put,
                hooks=hooks,
                owed=owed,
            )

        self.call = call

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == kind]


def test_every_step_is_logged_once_and_before_the_checkpoint_it_leads_to() -> None:
    run = _Run()
    assert run.call() is True
    assert [event[:2] for event in run.events] == [
        *(("log", step) for step in (1, 2, 3)),
        ("save", 3),
        *(("log", step) for step in (4, 5, 6)),
        ("save", 6),
        ("log", 7),
        ("save", 7),  # the last step always
    ]
    assert [loss for _, loss, _ in run.of("log")] == [0, 1, 3, 6, 10, 15, 21]


def test_checkpoint_has_the_place_of_its_state() -> None:
    run = _Run()
    run.call()
    assert run.of("save") == [(3, 6.0, 3), (6, 21.0, 6), (7, 28.0, 7)]


def test_going_on() -> None:
    run = _Run(first=4)
    assert run.call() is True
    assert [step for step, *_ in run.of("log")] == [5, 6, 7]


def test_nothing_left_to_do() -> None:
    run = _Run(first=7)
    assert run.call() is True
    assert run.events == []


def test_evaluation_is_in_the_record_of_its_step() -> None:
    run = _Run(evaluate_every=2)
    run.call()
    # of the model after the step; the last step has one, too
    assert [(step, value) for step, _, value in run.of("log") if value is not None] == [
        (2, -3.0),
        (4, -10.0),
        (6, -21.0),
        (7, -28.0),
    ]


def test_asked_to_stop_it_saves_what_it_has_logged() -> None:
    run = _Run(stop_at=5)
    assert run.call() is False
    assert run.of("log")[-1][0] == 5
    assert run.of("save")[-1] == (5, 15.0, 5)


@pytest.mark.parametrize("broken", [1, 2, 3, 4, 5, 7])
def test_loss_that_is_not_finite_keeps_the_step_before(broken: int) -> None:
    run = _Run(broken=broken, evaluate_every=3)
    with pytest.raises(loop.DivergedError, match=f"step {broken} has loss nan"):
        run.call()
    good = broken - 1
    assert [step for step, *_ in run.of("log")] == list(range(1, broken))
    saved = run.of("save")
    assert len({step for step, *_ in saved}) == len(saved)
    if good:
        assert saved[-1] == (good, sum(range(broken)), good)
    else:
        assert saved == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("every", [2, 3, 7])
def test_heldout_loss_that_is_not_finite_ends_the_run_with_its_step_saved(
    loss: float, every: int
) -> None:
    run = _Run(evaluate_every=every, spoiled=loss)
    with pytest.raises(loop.DivergedError, match=f"the model of step {every} has eval_loss {loss}"):
        run.call()
    assert [(step, value) for step, _, value in run.of("log")] == [
        (step, None) for step in range(1, every + 1)
    ]
    assert run.of("save")[-1] == (every, sum(range(every + 1)), every)
    assert len({step for step, *_ in run.of("save")}) == len(run.of("save"))


def test_stopped_evaluation_is_owed_and_made_up_for() -> None:
    run = _Run(evaluate_every=3)
    owed: list[tuple[int, float, dict[str, Any], Mapping[str, Any]]] = []

    def stopped(params: Any) -> Mapping[str, float]:
        raise loop.EvaluationStopped

    def save(state: State, place: Any, record: Mapping[str, Any] | None = None) -> None:
        assert record is not None
        owed.append((int(state.step), float(state.params["sum"]), place, record))

    hooks = dataclasses.replace(run.hooks, evaluate=stopped, save=save)
    assert run.call(hooks) is False
    ((step, total, place, record),) = owed
    assert (step, total, place["number"]) == (3, 6.0, 3)
    assert [step for step, *_ in run.of("log")] == [1, 2]
    again = _Run(first=3, evaluate_every=3)
    state = _state(3)._replace(params={"sum": jnp.float32(6)})
    assert again.call(state=state, owed=record) is True
    assert again.of("log")[0] == (3, record["loss"], -6.0)
    assert [step for step, *_ in again.of("log")] == [3, 4, 5, 6, 7]


def test_stopped_again_before_it_is_made_up_for() -> None:
    run = _Run(first=3)

    def stopped(params: Any) -> Mapping[str, float]:
        raise loop.EvaluationStopped

    record = {"step": 3, "loss": 1.0}
    assert run.call(dataclasses.replace(run.hooks, evaluate=stopped), owed=record) is False
    assert run.events == []
