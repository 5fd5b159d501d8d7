"""Flags and config files: what is accepted, and what a user reads when something is wrong."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from absl import flags

from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import UsageError

CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config(size="small"):
    return ConfigDict(dict(
        tasks=("cot", "recursive"),
        steps={"small": 10, "large": 1000}[size],
        layers=[1, 2],
        sizes=(1, 2.5),
        unset=config_dict.placeholder(tuple),
        note=None,
        callback=len,
        rope=dict(theta=10000.0, scaling="none", resonance=False,
                  head_dim=config_dict.placeholder(int)),
    ))
"""


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder", required=True, flag_values=values)
    flags.DEFINE_integer("jobs", 1, "number of jobs", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("quiet", False, "say less", flag_values=values)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


def _parse(*words: str | Path) -> flags.FlagValues:
    return parse("posgen", "Does a thing.", [str(w) for w in words], _define)


def _error(*words: str | Path) -> str:
    with pytest.raises(UsageError) as caught:
        _parse(*words)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestParse:
    def test_config_and_flags(self, config_file: Path) -> None:
        values = _parse(f"--config={config_file}", "--workdir=w", "--jobs=3", "--quiet")
        assert (values.workdir, values.jobs, values.quiet) == ("w", 3, True)
        assert values.config.rope.theta == 10000.0
        assert values.config.is_locked

    def test_argument_of_get_config(self, config_file: Path) -> None:
        assert _parse(f"--config={config_file}:large", "--workdir=w").config.steps == 1000

    @pytest.mark.parametrize(
        ("words", "key", "expected"),
        [
            (["--config.rope.theta=5e5"], "rope.theta", 500000.0),
            (["--config.rope.theta", "7"], "rope.theta", 7.0),
            (["--config.rope.scaling=yarn"], "rope.scaling", "yarn"),
            (["--config.rope.resonance=True"], "rope.resonance", True),
            (["--config.rope.resonance"], "rope.resonance", True),
            (
                ["--config.rope.resonance=true", "--noconfig.rope.resonance"],
                "rope.resonance",
                False,
            ),
            (["--config.rope.head_dim=64"], "rope.head_dim", 64),
            (["--config.steps=2", "--config.steps=3"], "steps", 3),
            (["--config.tasks=cot"], "tasks", ("cot",)),
            (["--config.tasks=cot,semi_recursive"], "tasks", ("cot", "semi_recursive")),
            (["--config.tasks=('cot', 'recursive')"], "tasks", ("cot", "recursive")),
            (["--config.tasks=cot", "--config.tasks=recursive"], "tasks", ("recursive",)),
            (["--config.tasks=1,2"], "tasks", ("1", "2")),
            (["--config.tasks='Hello, world'"], "tasks", ("Hello, world",)),
            (["--config.tasks='a','b'"], "tasks", ("a", "b")),
            (["--config.tasks=['a', 'b']"], "tasks", ("a", "b")),
            (["--config.tasks=('cot',)"], "tasks", ("cot",)),
            (["--config.tasks=cot,"], "tasks", ("cot",)),
            (["--config.tasks=deep/a.txt,deep/b.txt"], "tasks", ("deep/a.txt", "deep/b.txt")),
            (["--config.tasks=r.jsonl:5,r.jsonl:6"], "tasks", ("r.jsonl:5", "r.jsonl:6")),
            (["--config.tasks=my book.txt, b.txt"], "tasks", ("my book.txt", "b.txt")),
            (["--config.tasks=*.txt,b?.txt"], "tasks", ("*.txt", "b?.txt")),
            (["--config.tasks=[ab].txt,[a,b].txt"], "tasks", ("[ab].txt", "[a,b].txt")),
            (["--config.tasks=a=b,c==d"], "tasks", ("a=b", "c==d")),
            (["--config.tasks=2024"], "tasks", ("2024",)),
            (["--config.tasks=007,1e3"], "tasks", ("007", "1e3")),
            (["--config.tasks=[1]"], "tasks", ("[1]",)),
            (["--config.tasks=(1, 2)"], "tasks", (1, 2)),
            (["--config.tasks="], "tasks", ()),
            (["--config.tasks=()"], "tasks", ()),
            (["--config.tasks", "cot,x"], "tasks", ("cot", "x")),
            (["--config.tasks=a,b", "--config.tasks=c"], "tasks", ("c",)),
            (["--config.tasks=None"], "tasks", None),
            (["--config.tasks=a", "--config.tasks=None", "--config.tasks=b"], "tasks", ("b",)),
            (["--config.sizes=3"], "sizes", (3,)),
            (["--config.sizes=3,0.5,-1,1e3"], "sizes", (3, 0.5, -1, 1000.0)),
            (["--config.sizes=(1,2)"], "sizes", (1, 2)),
            (["--config.sizes=[1, 2]"], "sizes", (1, 2)),
            (["--config.sizes=x"], "sizes", ("x",)),
            (["--config.unset=3,x"], "unset", (3, "x")),
            (["--config.layers=3,4"], "layers", [3, 4]),
            (["--config.layers="], "layers", []),
            (["--config.note=1"], "note", 1),
            (["--config.note=1.5"], "note", 1.5),
            (["--config.note=yes=no"], "note", "yes=no"),
            (["--config.note="], "note", ""),
            (["--config.note=None"], "note", None),
            (["--config.rope.scaling="], "rope.scaling", ""),
            (["--config.rope.scaling=a=b, c"], "rope.scaling", "a=b, c"),
            (["--config.rope.scaling=None"], "rope.scaling", None),
            (["--config.rope.scaling=none"], "rope.scaling", "none"),
            (["--config.rope.theta=None"], "rope.theta", None),
            (["--config.rope.theta=-.5"], "rope.theta", -0.5),
            (["--config.rope.resonance=None"], "rope.resonance", None),
            (["--config.rope.resonance=0"], "rope.resonance", False),
            (["-config.rope.resonance"], "rope.resonance", True),
            (["--config.rope.head_dim=None"], "rope.head_dim", None),
            (["--config.rope.head_dim=64", "--config.rope.head_dim=None"], "rope.head_dim", None),
            (["--config.steps=None", "--config.steps=4"], "steps", 4),
            (["--config.steps", "-4"], "steps", -4),
        ],
    )
    def test_override(
        self, config_file: Path, words: Sequence[str], key: str, expected: object
    ) -> None:
        config = _parse(f"--config={config_file}", "--workdir=w", *words).config
        for name in key.split("."):
            config = config[name]
        assert config == expected
        assert type(config) is type(expected)

    def test_nothing_global_is_touched(self, config_file: Path) -> None:
        argv, modules = list(sys.argv), set(sys.modules)
        _parse(f"--config={config_file}", "--workdir=w", "--config.steps=2")
        second = _parse(f"--config={config_file}", "--workdir=w")
        assert second.config.steps == 10
        assert "workdir" not in flags.FLAGS
        assert sys.argv == argv
        assert set(sys.modules) == modules
        assert list(config_file.parent.iterdir()) == [config_file]

    def test_command_without_config(self) -> None:
        values = parse("convert", "Converts.", ["--workdir=w"], _define, config=False)
        assert values.workdir == "w"
        assert "config" not in values

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            _parse("--help")
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith("usage: rrope posgen [FLAGS]\n\nDoes a thing.\n")
        assert "--config=FILE" in shown
        assert "--workdir=STRING\n      folder (required)" in shown
        assert "--jobs=INT\n      number of jobs (default '1')" in shown

    @pytest.mark.parametrize(
        ("words", "parts"),
        [
            ([], ["--workdir", "missing"]),
            (["--workdir=w", "more"], ["'more'", "--help"]),
            (["--workdir=w", "--jobs=2.5"], ["--jobs=2.5", "int"]),
            (["--workdir=w", "--jobs=None"], ["--jobs=None", "int"]),
            (["--workdir=w", "--jobs=0"], ["--jobs=0", "positive integer"]),
            (["--workdir=w", "--quiet=5"], ["--quiet=5", "neither True nor False"]),
            (["--workdir"], ["--workdir", "Missing value"]),
            (["--wokdir=w"], ["--wokdir", "did you mean '--workdir'?", "--quiet"]),
            (["--flagfile=absent"], ["absent", "No such file"]),
            (["--workdir=w", "--config.steps=abc"], ["--config.steps=abc", "int"]),
            (["--workdir=w", "--config.rope.resonance=abc"], ["resonance=abc", "True nor False"]),
            (["--workdir=w", "--config.tasks=(1,"], ["--config.tasks=(1,", "tuple"]),
            (["--workdir=w", "--config.tasks='a"], ["--config.tasks='a", "tuple"]),
            (["--workdir=w", "--config.steps"], ["--config.steps", "Missing value"]),
            (["--workdir=w", "--config.steps="], ["--config.steps=", "int"]),
            (["--workdir=w", "--config.steps=1.5"], ["--config.steps=1.5", "int"]),
            (["--workdir=w", "--config.steps", "abc"], ["--config.steps=abc", "int"]),
            (["--workdir=w", "--config.rope.theta="], ["--config.rope.theta=", "float"]),
            (["--workdir=w", "--config.rope.resonance="], ["resonance=", "True nor False"]),
            (["--workdir=w", "--noconfig.steps"], ["--noconfig.steps", "only fields of type bool"]),
            (["--workdir=w", "--noconfig.rope.resonance=True"], ["without a value"]),
            (["--workdir=w", "--config.theta=1"], ["'theta'; config.rope.theta is there"]),
            (["--workdir=w", "--config.rop.theta=1"], ["no key 'rop'", "did you mean 'rope'?"]),
            (["--workdir=w", "--config.mesh.fsdp=1"], ["config has no key 'mesh'", "rope, sizes"]),
            (
                ["--workdir=w", "--config.rope.thet=1"],
                ["config.rope", "'thet'", "did you mean 'theta'?", "head_dim, resonance, scaling"],
            ),
            (
                ["--workdir=w", "--config.zzz=1"],
                ["'zzz'", "layers, note, rope, sizes, steps, tasks, "],
            ),
            (["--workdir=w", "--config.=1"], ["config has no key ''"]),
            (["--workdir=w", "--config.rope=1"], ["config.rope is a group", "theta"]),
            (["--workdir=w", "--config.steps.x=1"], ["config.steps is a value"]),
            (["--workdir=w", "--config.callback=1"], ["config.callback", "in the config file"]),
        ],
    )
    def test_bad_flags(self, config_file: Path, words: Sequence[str], parts: Sequence[str]) -> None:
        message = _error(f"--config={config_file}", *words)
        assert [part for part in parts if part not in message] == []

    @pytest.mark.parametrize(
        ("words", "parts"),
        [
            ([], ["--config is missing"]),
            (["--config"], ["--config", "Missing value"]),
            (["--config=absent.py"], ["absent.py", "does not exist"]),
            (["--config=/"], ["is not a file"]),
            (["--config.steps=1"], ["--config.steps", "without --config=FILE"]),
        ],
    )
    def test_no_config_file(self, words: Sequence[str], parts: Sequence[str]) -> None:
        message = _error("--workdir=w", *words)
        assert [part for part in parts if part not in message] == []

    def test_required_placeholder(self, tmp_path: Path) -> None:
        file = tmp_path / "c.py"
        file.write_text(
            "from ml_collections import ConfigDict, config_dict\n"
            "def get_config():\n"
            "    rope = ConfigDict({'theta': config_dict.required_placeholder(float)})\n"
            "    return ConfigDict({'rope': rope})\n"
        )
        words = [f"--config={file}", "--workdir=w"]
        with pytest.raises(UsageError, match=r"^config\.rope\.theta has no value: .*theta=VALUE$"):
            parse("job", "Does it.", words, _define)
        given = parse("job", "Does it.", [*words, "--config.rope.theta=5"], _define)
        assert given.config.rope.theta == 5.0

    def test_override_before_its_config(self, config_file: Path) -> None:
        values = _parse("--config.steps=1", f"--config={config_file}", "--workdir=w")
        assert values.config.steps == 1

    def test_flags_in_a_file(self, config_file: Path) -> None:
        file = config_file.with_name("flags.txt")
        file.write_text(f"--config={config_file}\n--workdir=w\n--config.tasks=a b,c\n")
        assert _parse(f"--flagfile={file}").config.tasks == ("a b", "c")

    @pytest.mark.parametrize(
        ("source", "parts"),
        [
            ("x = 1", ["no get_config()"]),
            ("def get_config(:\n", ["line 1", "SyntaxError"]),
            ("import absent_module\n", ["line 1", "ModuleNotFoundError", "absent_module"]),
            ("def get_config():\n  x = 1\n  return x / 0\n", ["line 3", "ZeroDivisionError"]),
            ("def get_config():\n  raise ValueError('a\\nb')\n", ["line 2", "ValueError: a b"]),
            ("def get_config():\n  return open('absent')\n", ["line 2", "absent"]),
            ("def get_config():\n  return {'a': 1}\n", ["returned dict", "ConfigDict"]),
            ("def get_config():\n  pass\n", ["returned NoneType"]),
            ("def get_config(size):\n  pass\n", ["get_config()", "'size'", "colon"]),
        ],
    )
    def test_bad_config_file(self, tmp_path: Path, source: str, parts: Sequence[str]) -> None:
        path = tmp_path / "bad.py"
        path.write_text(source)
        message = _error(f"--config={path}", "--workdir=w")
        assert str(path) in message
        assert [part for part in parts if part not in message] == []
