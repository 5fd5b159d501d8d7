"""Methods, protocols, and which trainings they share."""

from collections.abc import Sequence

from rrope_jax.posgen.grid import PROTOCOLS, Training, trainings
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.methods import parse_method

PAPER = ("rope", "resonance_rope", "yarn", "resonance_yarn")


def _spec(method: str, **fields: float) -> RopeSpec:
    scaling, resonance = parse_method(method)
    needed = {"factor": 4.0, "original_context": 64} | fields if scaling == "yarn" else {}
    return RopeSpec(head_dim=64, scaling=scaling, resonance=resonance, **needed)


def _plan(
    protocols: Sequence[str], methods: Sequence[str] = PAPER, *, factor_at_test: float = 4.0
) -> tuple[Training, ...]:
    factors = {"scaled_training": 4.0, "scaled_at_test": factor_at_test}
    specs = {
        (protocol, method): _spec(method, factor=factors[protocol])
        for protocol in protocols
        for method in {*methods, *map(PROTOCOLS[protocol], methods)}
    }
    return trainings(tasks=("cot",), methods=methods, seeds=(0,), specs=specs)


class TestProtocols:
    def test_scaled_training_trains_every_method_as_itself(self) -> None:
        planned = _plan(["scaled_training"])
        assert [t.method for t in planned] == list(PAPER)
        for training in planned:
            (evaluation,) = training.evaluations
            assert (evaluation.protocol, evaluation.method) == ("scaled_training", training.method)
            assert evaluation.spec == training.spec == _spec(training.method)

    def test_scaled_at_test_trains_unscaled_and_tests_twice(self) -> None:
        planned = _plan(["scaled_at_test"])
        assert {t.method: [e.method for e in t.evaluations] for t in planned} == {
            "rope": ["rope", "yarn"],
            "resonance_rope": ["resonance_rope", "resonance_yarn"],
        }
        for training in planned:
            assert training.spec == _spec(training.method)
            assert [e.spec for e in training.evaluations] == [
                _spec(e.method) for e in training.evaluations
            ]

    def test_unscaled_training_is_made_even_if_only_scaled_methods_are_wanted(self) -> None:
        (training,) = _plan(["scaled_at_test"], ["resonance_yarn"])
        assert training.method == "resonance_rope"
        assert [e.method for e in training.evaluations] == ["resonance_yarn"]

    def test_protocols_share_the_trainings_they_have_in_common(self) -> None:
        planned = _plan(["scaled_training", "scaled_at_test"], factor_at_test=3.0)
        served = {t.method: [(e.protocol, e.method) for e in t.evaluations] for t in planned}
        assert served == {
            "rope": [
                ("scaled_training", "rope"),
                ("scaled_at_test", "rope"),
                ("scaled_at_test", "yarn"),
            ],
            "resonance_rope": [
                ("scaled_training", "resonance_rope"),
                ("scaled_at_test", "resonance_rope"),
                ("scaled_at_test", "resonance_yarn"),
            ],
            "yarn": [("scaled_training", "yarn")],
            "resonance_yarn": [("scaled_training", "resonance_yarn")],
        }
        factors = {(e.protocol, e.method): e.spec.factor for t in planned for e in t.evaluations}
        assert factors["scaled_training", "yarn"] == 4.0
        assert factors["scaled_at_test", "yarn"] == 3.0


class TestOrder:
    def test_seed_by_seed_then_task_by_task(self) -> None:
        specs = {("scaled_training", method): _spec(method) for method in ("rope", "yarn")}
        planned = trainings(
            tasks=("recursive", "cot"), methods=("rope", "yarn"), seeds=(5, 6), specs=specs
        )
        assert [(t.seed, t.task, t.method) for t in planned] == [
            (5, "recursive", "rope"),
            (5, "recursive", "yarn"),
            (5, "cot", "rope"),
            (5, "cot", "yarn"),
            (6, "recursive", "rope"),
            (6, "recursive", "yarn"),
            (6, "cot", "rope"),
            (6, "cot", "yarn"),
        ]

    def test_names_are_unique(self) -> None:
        specs = {("scaled_training", method): _spec(method) for method in PAPER}
        planned = trainings(
            tasks=("recursive", "cot", "semi_recursive"),
            methods=PAPER,
            seeds=range(5),
            specs=specs,
        )
        assert len(planned) == 60
        assert len({training.name for training in planned}) == 60
        assert planned[0].name == "recursive-rope-0"
