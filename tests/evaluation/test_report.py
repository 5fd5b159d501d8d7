"""Tables of an evaluation, from results made by hand."""

from typing import Any

import pytest

from rrope_jax.evaluation import comparison, plots, report


def entry(document: str, context: int, loss: float) -> dict[str, Any]:
    return {
        "document": document,
        "context": context,
        "start": 0,
        "loss": loss,
        "perplexity": 2.718281828**loss,
        "tokens": context - 1,
    }


def results(*losses: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run over the given documents at 8 and 16 tokens."""
    contexts = sorted({e["context"] for e in losses})
    return {
        "checkpoint": "model.gguf",
        "method": "resonance_yarn",
        "rope": {"factor": 4.0, "scaling": "yarn"},
        "model": {"d_model": 8},
        "original_context": 8,
        "context": 32,
        "setting": {"perplexity": {"protocol": "fragments", "contexts": contexts}},
        "backend": "backend cpu",
        "versions": {"jax": "0"},
        "complete": True,
        "missing_units": 0,
        "perplexity": [
            {
                "context": context,
                "perplexity": 20.0,
                "loss": 3.0,
                "loss_std": None,
                "lowest": 10.0,
                "highest": 123456.0,
                "documents": 1,
                "fragments": 1,
                "tokens": context - 1,
            }
            for context in contexts
        ],
        "perplexity_by_document": list(losses),
        "loss_by_position": [],
        "too_short": [],
        **changes,
    }


def test_report_of_one_document() -> None:
    text = report.markdown(results(entry("a", 8, 3.0), entry("a", 16, 2.0)))
    assert "# Resonance YaRN, factor 4\n" in text
    assert "| 16 | 20.000 | 3.0000 | n/a | 10.000 | 123456 | 1 | 15 |" in text
    assert "| a | 20.086 | 7.389 |" in text
    assert "Partial" not in text


def test_report_says_which_tokens_are_predicted() -> None:
    run = results(entry("a", 8, 3.0))
    assert "of which all tokens but the first are predicted" in report.markdown(run)
    run["setting"]["perplexity"]["last_tokens"] = 4
    assert "of which the last 4 are predicted" in report.markdown(run)


def test_report_of_a_stopped_run() -> None:
    cells = [
        {"context": 8, "depth": 0.0, "accuracy": 1.0, "log_probability": -0.5},
        {"context": 16, "depth": 1.0, "accuracy": 0.0, "log_probability": -9.0},
    ]
    text = report.markdown(results(complete=False, missing_units=3, passkey=cells))
    assert "**Partial run: 3 units of work are missing.**" in text
    assert "## Perplexity" not in text
    assert "| 0 % | 100 (-0.5) | n/a |" in text
    assert "| 100 % | n/a | 0 (-9.0) |" in text
    assert plots.plots(results(passkey=cells)).keys() == {"passkey.png"}


def test_nothing_is_finished() -> None:
    empty = results(complete=False, missing_units=9)
    assert report.headline(empty).endswith("nothing is finished")
    assert plots.plots(empty) == {}


def test_comparison_is_paired_by_document() -> None:
    one = results(entry("a", 8, 3.0), entry("b", 8, 5.0), entry("c", 8, 1.0))
    other = results(entry("a", 8, 2.5), entry("b", 8, 5.1), entry("d", 8, 9.0))
    compared = comparison.summarise({"one": one, "other": other})
    (difference,) = compared["difference"]
    assert difference["loss"] == pytest.approx(-0.2)
    assert difference["std"] == pytest.approx(0.6 / 2**0.5)
    assert (difference["lower_in"], difference["documents"]) == (1, 2)
    text = comparison.markdown(compared)
    assert "The runs predicted different tokens" in text
    assert "| other | -0.2000 ± 0.4243 (1 of 2) |" in text


def test_only_losses_of_the_same_tokens_are_compared() -> None:
    """Another tokenizer, or protocol, has other tokens in a document of the same name."""
    one = results(entry("a", 8, 3.0) | {"crc32": 1}, entry("b", 8, 5.0) | {"crc32": 2})
    other = results(entry("a", 8, 2.5) | {"crc32": 1}, entry("b", 8, 5.1) | {"crc32": 3})
    windows = results(entry("a", 8, 1.0) | {"crc32": 1, "tokens": 99})
    compared = comparison.summarise({"one": one, "other": other, "windows": windows})
    (difference,) = compared["difference"]
    assert (difference["run"], difference["loss"], difference["documents"]) == ("other", -0.5, 1)
    assert "The runs predicted different tokens" in comparison.markdown(compared)
    same = comparison.summarise({"one": one, "again": one})
    assert "different tokens" not in comparison.markdown(same)


def test_comparison_of_runs_with_different_sections() -> None:
    cell = {"context": 8, "depth": 0.5, "accuracy": 0.25, "log_probability": -3.0}
    closed = {"task": "quiz", "metric": "choice", "accuracy": 0.5}
    runs = {
        "text": results(entry("a", 8, 3.0)),
        "keys": results(passkey=[cell, {**cell, "depth": 1.0, "accuracy": 0.75}]),
        "questions": results(closed_ended=[closed]),
    }
    compared = comparison.summarise(runs)
    assert compared["difference"] == []
    text = comparison.markdown(compared)
    assert "| keys | 50.0 |" in text
    assert "| keys | -3.00 |" in text
    assert "| questions | 50.00 |" in text
    assert comparison.plots(compared).keys() == {"perplexity.png", "passkey.png"}


def test_lengths_as_people_say_them() -> None:
    assert [plots.length_text(n) for n in (100, 1024, 1536, 32768)] == ["100", "1K", "1536", "32K"]


def ruler_run(*scores: tuple[str, int, float], **changes: Any) -> dict[str, Any]:
    """A run of RULER with scores by task and context."""
    contexts = sorted({context for _, context, _ in scores})
    of = {c: [score for _, context, score in scores if context == c] for c in contexts}
    return results(
        ruler=[
            {"task": task, "context": context, "score": score, "answer_loss": 1.5, "samples": 2}
            for task, context, score in scores
        ],
        ruler_mean=[
            {"context": c, "score": sum(of[c]) / len(of[c]), "answer_loss": 1.5} for c in contexts
        ],
        **changes,
    )


def test_report_of_ruler() -> None:
    run = ruler_run(("vt", 2048, 40.0), ("cwe", 2048, 5.0), ("vt", 4096, 20.0))
    text = report.markdown(run)
    assert "| task | 2048 | 4096 |" in text
    assert "| vt | 40.0 | 20.0 |" in text
    assert "| cwe | 5.0 | n/a |" in text
    assert "| **mean** | 22.5 | 20.0 |" in text
    assert "; 2 prompts each." in text
    assert "RULER at 2K 22.5, 4K 20.0" in report.headline(run)
    assert plots.plots(run).keys() == {"ruler.png"}


def test_comparison_of_ruler() -> None:
    one, other = ruler_run(("vt", 2048, 40.0)), ruler_run(("vt", 2048, 60.0))
    text = comparison.markdown(comparison.summarise({"a": one, "b": other}))
    assert "| a | 40.0 |\n| b | 60.0 |" in text
    assert "do not compare" not in text
    more = ruler_run(("vt", 2048, 60.0), ("cwe", 2048, 0.0))
    compared = comparison.summarise({"a": one, "b": more})
    assert "these means do not compare" in comparison.markdown(compared)
    assert comparison.plots(compared).keys() == {"ruler.png"}
