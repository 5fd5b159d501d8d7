"""Local files as documents, and which of them are held out."""

import codecs
import errno
import gzip
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.data.text import TextConfig, documents, split
from rrope_jax.run.workdir import Workdir
from tests.data_pipeline.samples import NAMES, TEXTS

# Name of a file -> its bytes, and what is said of them.
DAMAGED = {
    "a.txt": (b"good\xff", r"/a\.txt is not UTF-8 \(.* at byte 4\); convert it"),
    "b.jsonl": (b'{"text": "x"}\n{"text"', r"/b\.jsonl:2 is not JSON .*one JSON object"),
    "c.jsonl": (b'{"body": "x"}', r"/c\.jsonl:1 has no string 'text' \(found: body\)"),
    "d.jsonl": (b'{"text": 5}', r"/d\.jsonl:1 has no string 'text' .*with text_key"),
    "e.jsonl": (b'["x"]', r"/e\.jsonl:1 has no string 'text' \(found: list\)"),
    "f.txt.gz": (b"no gzip", r"/f\.txt\.gz is damaged \(Not a gzipped file"),
    "g.txt.gz": (gzip.compress(b"x" * 99)[:-12], r"/g\.txt\.gz is damaged .*again"),
    "i.txt": (codecs.BOM_UTF16_LE + "text".encode("utf-16-le"), "not UTF-8 .*begins like UTF-16"),
    "j.txt": ("text".encode("utf-16-le"), r"/j\.txt is no text \(byte 1 is NUL\)"),
    "k.jsonl": ('{"text": ""}'.encode("utf-16-le"), r"/k\.jsonl:1 is no text"),
    "l.txt.gz": (b"", r"/l\.txt\.gz is damaged \(it is empty"),
    "m.jsonl.gz": (b"", r"/m\.jsonl\.gz is damaged \(it is empty"),
    "n.jsonl": (b"[" * 100_000, r"/n\.jsonl:1 is not JSON"),
    "o.jsonl": (b'{"text": null}', r"/o\.jsonl:1 has no string 'text'"),
    "p.jsonl": (b'{"text": ["x"]}', r"/p\.jsonl:1 has no string 'text'"),
    "q.jsonl": (b'"text"', r"/q\.jsonl:1 has no string 'text' \(found: str\)"),
    "r.txt.gz": (gzip.compress(b"x" * 99) + b"rest", r"/r\.txt\.gz is damaged"),
    "s.txt.gz": (gzip.compress(b"\xff"), r"/s\.txt\.gz is not UTF-8"),
    "h.jsonl.gz": (gzip.compress(b'{"text": ""}')[:-9], r"/h\.jsonl\.gz is damaged"),
}


def _denying(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """The function, but not of a folder `deep`: root, who may run the tests, can read them all."""

    def denied(path: str) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return function(path)

    return denied


class TestSources:
    def test_folder(self, folder: Path) -> None:
        found = documents(TextConfig(source=str(folder)))
        assert list(found.names) == NAMES
        assert [document.text for document in found] == TEXTS
        assert [document.name for document in found] == NAMES

    def test_any_document_at_any_time(self, folder: Path) -> None:
        found = documents(TextConfig(source=str(folder)))
        for index in (5, 0, 6, 4, 5, 2, 6):
            assert found[index] == (NAMES[index], TEXTS[index])

    @pytest.mark.parametrize(
        ("name", "names"),
        [
            ("a.txt", ["a.txt"]),
            ("c.txt.gz", ["c.txt.gz"]),
            ("e.jsonl", ["e.jsonl:1", "e.jsonl:3"]),
            ("?.txt", ["a.txt", "b.txt"]),
            ("**/*.txt", ["a.txt", "b.txt", "deep/d.txt"]),
            ("deep/*", ["d.txt"]),
            ("deep/**", ["d.txt"]),
            ("**/d*", ["deep/d.txt"]),
            ("**/deep/**/d.txt", ["deep/d.txt"]),
            ("[ab].txt", ["a.txt", "b.txt"]),
            ("[!a].txt", ["b.txt"]),
            (".h*", [".hidden.txt"]),
            ("*/../a.txt", ["deep/../a.txt"]),
        ],
    )
    def test_file_and_glob(self, folder: Path, name: str, names: list[str]) -> None:
        assert list(documents(TextConfig(source=str(folder / name))).names) == names

    def test_relative_path(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        assert list(documents(TextConfig(source="*.jsonl")).names) == ["e.jsonl:1", "e.jsonl:3"]
        assert list(documents(TextConfig(source=".")).names) == NAMES

    def test_name_in_a_glob_does_not_depend_on_the_other_files(self, folder: Path) -> None:
        source = TextConfig(source=str(folder / "*" / "*.txt"))
        assert list(documents(source).names) == ["deep/d.txt"]
        (folder / "other").mkdir()
        (folder / "other" / "g.txt").write_text("one")
        assert list(documents(source).names) == ["deep/d.txt", "other/g.txt"]

    def test_files_of_other_kinds_are_counted(
        self, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # a job run earlier in this process may have detached the package's log
        monkeypatch.setattr(logging.getLogger("rrope_jax"), "propagate", True)
        with caplog.at_level(logging.INFO, "rrope_jax"):
            documents(TextConfig(source=str(folder)))
        assert "2 files not read, hidden or of other kinds" in caplog.text

    @pytest.mark.parametrize(
        "name",
        ["a.json.gz", "a.csv.gz", "a.tar.gz", "a.tgz", "a.gz", "a.jsonl.bz2", "a.txt~", "a.json"],
    )
    def test_only_text_is_read_of_a_folder(self, folder: Path, name: str) -> None:
        data = b'{"text": "a page"}'
        (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        assert list(documents(TextConfig(source=str(folder))).names) == NAMES

    def test_file_of_another_ending_is_text_where_it_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"one,two"))
        (tmp_path / "b.jsonl.txt").write_text("not rows")
        for name, text in (("a.csv.gz", "one,two"), ("*.csv.gz", "one,two"), ("b*", "not rows")):
            (document,) = documents(TextConfig(source=str(tmp_path / name)))
            assert document.text == text

    @pytest.mark.parametrize(
        "pattern", ["**/**/*.txt", "**/./**/*.txt", "**/*.txt", "*/../**/*.txt", "./**/**/**/d.txt"]
    )
    def test_every_file_once(self, folder: Path, pattern: str) -> None:
        found = documents(TextConfig(source=f"{folder}/{pattern}"))
        texts = [document.text for document in found]
        assert len(set(texts)) == len(texts) > 0
        assert len(set(found.names)) == len(texts)

    @pytest.mark.parametrize("pattern", [".", "**/*", "*", "linked/**/*", "./*/../**/*"])
    def test_links_give_no_file_twice(self, folder: Path, pattern: str) -> None:
        (folder / "picture.png").unlink()
        (folder / "0.txt").symlink_to("a.txt")
        (folder / "linked").symlink_to("deep")
        (folder / "deep" / "up").symlink_to("..")  # round and round
        found = documents(TextConfig(source=os.path.join(folder, pattern)))
        texts = [document.text for document in found]
        assert len(set(texts)) == len(texts) > 0
        assert "0.txt" not in found.names

    def test_linked_folder_as_a_source(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(folder)
        (folder / "0.txt").symlink_to("a.txt")
        found = documents(TextConfig(source=str(tmp_path / "link")))
        assert [document.text for document in found] == TEXTS

    def test_link_to_a_file_elsewhere(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "blob").write_text("linked")
        (folder / "y.txt").symlink_to(tmp_path / "blob")
        (folder / "z.txt").symlink_to(tmp_path / "blob")
        assert list(documents(TextConfig(source=str(folder))).names) == [*NAMES, "y.txt"]

    @pytest.mark.parametrize("source", [".", "**/*.*", "./**/**/*"])
    def test_results_of_a_run_are_no_text(
        self, folder: Path, source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "picture.png").unlink()
        monkeypatch.chdir(folder)
        before = documents(TextConfig(source=source))
        with Workdir.claim("runs/x", {"steps": 3}) as workdir:
            workdir.write_text("metrics.jsonl", '{"step": 1}\n')
            workdir.write_text("deep/sample.txt", "of the model")
            after = documents(TextConfig(source=source))
        assert list(after.names) == list(before.names)
        assert after.fingerprint == before.fingerprint

    def test_results_of_a_run_that_are_named(self, tmp_path: Path) -> None:
        with Workdir.claim(tmp_path / "run", {}) as workdir:
            workdir.write_text("samples/a.txt", "of the model")
        for source in ("run", "run/samples", "run/samples/a.txt", "run/**/*.txt"):
            (document,) = documents(TextConfig(source=str(tmp_path / source)))
            assert document.text == "of the model"

    @pytest.mark.parametrize("name", ["a[1].txt", "[a].txt", "*.txt", "a?.txt", "**", "[x]/a.txt"])
    def test_file_named_like_a_pattern(self, tmp_path: Path, name: str) -> None:
        for other in ("a1.txt", "a.txt", "ab.txt", "x/a.txt"):
            (tmp_path / other).parent.mkdir(exist_ok=True)
            (tmp_path / other).write_text("other")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("this")
        (document,) = documents(TextConfig(source=str(tmp_path / name)))
        assert document.text == "this"

    def test_folder_named_like_a_pattern(self, tmp_path: Path) -> None:
        for folder in ("[ab]", "a"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "c.txt").write_text(folder)
        for source in ("[ab]", "[ab]/*.txt", "[ab]/c.txt"):
            found = documents(TextConfig(source=str(tmp_path / source)))
            assert [*found] == [("c.txt", "[ab]")]

    def test_marks_of_byte_order_begin_any_file_or_row(self, tmp_path: Path) -> None:
        rows = [codecs.BOM_UTF8 + json.dumps({"text": t}).encode() for t in ("a", "b")]
        (tmp_path / "rows.jsonl").write_bytes(b"\r\n".join(rows))
        assert [d.text for d in documents(TextConfig(source=str(tmp_path)))] == ["a", "b"]

    def test_rows_hold_what_json_allows(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text(f'{{"text": "a\\u0000", "n": {"9" * 5000}}}')
        assert documents(TextConfig(source=str(tmp_path)))[0].text == "a\0"

    def test_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb") as file:
            file.write(b"text")
        (document,) = documents(TextConfig(source=str(tmp_path)))
        assert document == ("caf\udce9.txt", "text")

    @pytest.mark.parametrize("pattern", [".", "**/*.txt"])
    def test_folder_that_cannot_be_read_is_told(
        self,
        folder: Path,
        pattern: str,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for function in ("scandir", "listdir"):
            monkeypatch.setattr(os, function, _denying(getattr(os, function)))
        monkeypatch.setattr(logging.getLogger("rrope_jax"), "propagate", True)
        found = documents(TextConfig(source=str(folder / pattern)))
        assert "deep/d.txt" not in found.names
        assert "1 folders not read, such as " in caplog.text
        assert "deep: Permission denied" in caplog.text

    def test_text_is_kept_to_the_letter(self, tmp_path: Path) -> None:
        text = "\r\n one\ttwo \n\n\u2028é\n"
        (tmp_path / "plain.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}))
        found = documents(TextConfig(source=str(tmp_path)))
        assert [document.text for document in found] == [text, text]

    def test_another_field_of_jsonl(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": "no", "content": "yes"}')
        found = documents(TextConfig(source=str(tmp_path), text_key="content"))
        assert found[0].text == "yes"

    def test_half_of_a_surrogate_pair_cannot_be_text(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text('{"text": "a\\ud83d b\\ud83d\\ude00"}')
        assert documents(TextConfig(source=str(tmp_path)))[0].text == "a\ufffd b\U0001f600"

    def test_fingerprint_tells_changed_text(self, folder: Path) -> None:
        def fingerprint(**fields: str) -> str:
            return documents(TextConfig(source=str(folder), **fields)).fingerprint

        before = fingerprint()
        assert fingerprint() == before
        assert fingerprint(text_key="content") != before
        status = (folder / "a.txt").stat()
        os.utime(folder / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        touched = fingerprint()
        assert touched != before
        (folder / "new.txt").write_text("one")
        assert fingerprint() not in (before, touched)


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda p: p.rmdir(), r"source='.*/x' is neither a file nor a folder nor a glob"),
            (lambda p: None, r"source='.*/x': no file in this folder ends in \.txt, \.jsonl, "),
            (lambda p: (p / "x.txt").mkdir(), r"no file in this folder ends in"),
            (lambda p: os.mkfifo(p / "x.txt"), r"no file in this folder ends in"),
            (lambda p: (p / "x.txt").symlink_to("gone"), r"no file in this folder ends in"),
            (
                lambda p: Workdir.claim(p / "run", {}).release(),
                r"\(1 working folders .* left out\)",
            ),
            (lambda p: (p / "e.jsonl").write_text("\n \n"), r"no line in it, so no document"),
        ],
    )
    def test_nothing_to_read(
        self, tmp_path: Path, make: Callable[[Path], object], message: str
    ) -> None:
        (tmp_path / "x").mkdir()
        make(tmp_path / "x")
        with pytest.raises(ValueError, match=message):
            documents(TextConfig(source=str(tmp_path / "x")))

    @pytest.mark.parametrize("name", DAMAGED)  # a gzip header in a test's id would hold the time
    def test_damaged_file_is_named(self, tmp_path: Path, name: str) -> None:
        content, message = DAMAGED[name]
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(documents(TextConfig(source=str(tmp_path))))

    def test_file_that_went_away(self, folder: Path) -> None:
        found = documents(TextConfig(source=str(folder)))
        (folder / "b.txt").unlink()
        with pytest.raises(ValueError, match=r"b\.txt cannot be read: No such file"):
            found[1]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (os.mkfifo, r"source='.*/x.txt' is neither a file nor a folder; copy its text"),
            (lambda p: p.symlink_to("gone"), r"source='.*/x.txt' is a link to what is not there"),
            (lambda p: p.symlink_to("x.txt"), r"x\.txt cannot be read: Too many levels"),
            (lambda p: p.write_text(""), None),
        ],
        ids=["pipe", "broken link", "endless link", "empty"],
    )
    def test_path_that_is_no_text(
        self, tmp_path: Path, make: Callable[[Path], object], message: str | None
    ) -> None:
        make(tmp_path / "x.txt")
        config = TextConfig(source=str(tmp_path / "x.txt"))
        if message is None:  # a text without a word, which training counts
            assert [*documents(config)] == [("x.txt", "")]
        else:
            with pytest.raises(ValueError, match=message):
                documents(config)

    def test_name_that_is_too_long(self) -> None:
        with pytest.raises(ValueError, match="cannot be read: File name too long"):
            documents(TextConfig(source="x" * 5000))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"source": ""}, "source='' names nothing"),
            ({"source": "tfds:"}, "source='tfds:' names nothing"),
            ({"source": "hf://data/text"}, "source='hf://data/text' is a URL"),
            ({"source": "https://x.example/a.txt"}, "is a URL, and only local paths"),
            ({"source": "x", "data_dir": "s3://bucket"}, "data_dir='s3://bucket' is a URL"),
            (
                {"source": "x", "data_dir": "d"},
                "data_dir='d' is where TFDS keeps .*source='x' is none.* cache_dir keeps its token",
            ),
            ({"source": "x", "data_dir": ""}, "data_dir='' names nothing; give a name or None"),
            ({"source": "x", "text_key": ""}, "text_key='' names nothing"),
            ({"source": "x", "split": ""}, "split='' names nothing; give a name$"),
            ({"source": "x", "heldout_share": 1.0}, r"heldout_share=1\.0 must be .* below 1"),
            ({"source": "x", "heldout_share": -0.1}, r"heldout_share=-0\.1 must be at least 0"),
        ],
    )
    def test_fields(self, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TextConfig(**fields)  # type: ignore[arg-type]


def _split(config: TextConfig, names: list[str]) -> tuple[list[int], list[int]]:
    train, heldout = split(config, names)
    return train.tolist(), heldout.tolist()


class TestSplit:
    def test_by_name_and_pattern(self) -> None:
        config = TextConfig(source="x", heldout=("b.txt", "e.jsonl:*"))
        assert _split(config, NAMES) == ([0, 2, 3, 6], [1, 4, 5])

    def test_name_of_a_document_is_no_pattern(self) -> None:
        names = ["a[1].txt", "a1.txt", "*.txt", "b.txt", "c.txt"]
        assert _split(TextConfig(source="x", heldout=("a[1].txt",)), names)[1] == [0]
        assert _split(TextConfig(source="x", heldout=("*.txt", "[bc]*")), names)[1] == [2, 3, 4]

    def test_nothing_is_held_out_unless_asked_for(self) -> None:
        assert _split(TextConfig(source="x"), NAMES) == (list(range(7)), [])

    def test_share_is_about_that_of_all(self) -> None:
        names = [f"{i}.txt" for i in range(4000)]
        train, heldout = _split(TextConfig(source="x", heldout_share=0.25), names)
        assert sorted(train + heldout) == list(range(4000))
        # 4000 draws of one in four: standard deviation 27
        assert abs(len(heldout) - 1000) < 5 * 27

    def test_share_keeps_its_choice_when_documents_are_added_or_it_grows(self) -> None:
        names = [f"{i}.txt" for i in range(200)]

        def heldout(names: list[str], share: float) -> set[str]:
            config = TextConfig(source="x", heldout_share=share)
            return {names[i] for i in split(config, names).heldout}

        some = heldout(names, 0.2)
        assert some
        assert heldout(["new.txt", *reversed(names)], 0.2) - {"new.txt"} == some
        assert heldout(names, 0.5) > some

    def test_choice_is_the_same_on_every_machine(self) -> None:
        # b2sum -l 48 of the names, over 2^48: 0.136, 0.656, 0.036, 0.122
        config = TextConfig(source="x", heldout_share=0.13)
        assert _split(config, ["a.txt", "b.txt", "c.txt", "d.txt"])[1] == [2, 3]

    def test_pattern_without_a_match(self) -> None:
        config = TextConfig(source="x", heldout=("a.txt", "b.text"))
        with pytest.raises(ValueError, match=r"'b\.text' fits none of the 7 .* name is 'b\.txt'"):
            split(config, NAMES)
