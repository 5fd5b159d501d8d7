"""Local files as documents, and which of them are held out."""

import gzip
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rrope_jax.data.text import TextConfig, documents, split
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
    "h.jsonl.gz": (gzip.compress(b'{"text": ""}')[:-9], r"/h\.jsonl\.gz is damaged"),
}


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
            (lambda p: None, r"source='.*/x': no file in this folder ends in \.txt, \.jsonl, \.gz"),
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
        ("fields", "message"),
        [
            ({"source": ""}, "source='' names nothing"),
            ({"source": "tfds:"}, "source='tfds:' names nothing"),
            ({"source": "x", "heldout_share": 1.0}, r"heldout_share=1\.0 must be .* below 1"),
            ({"source": "x", "heldout_share": -0.1}, r"heldout_share=-0\.1 must be at least 0"),
        ],
    )
    def test_fields(self, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TextConfig(**fields)  # type: ignore[arg-type]


class TestSplit:
    def test_by_name_and_pattern(self) -> None:
        config = TextConfig(source="x", heldout=("b.txt", "e.jsonl:*"))
        assert split(config, NAMES) == ([0, 2, 3, 6], [1, 4, 5])

    def test_nothing_is_held_out_unless_asked_for(self) -> None:
        assert split(TextConfig(source="x"), NAMES) == (list(range(7)), [])

    def test_share_is_about_that_of_all(self) -> None:
        names = [f"{i}.txt" for i in range(4000)]
        parts = split(TextConfig(source="x", heldout_share=0.25), names)
        assert sorted(parts.train + parts.heldout) == list(range(4000))
        # 4000 draws of one in four: standard deviation 27
        assert abs(len(parts.heldout) - 1000) < 5 * 27

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
        assert split(config, ["a.txt", "b.txt", "c.txt", "d.txt"]).heldout == [2, 3]

    def test_pattern_without_a_match(self) -> None:
        config = TextConfig(source="x", heldout=("a.txt", "b.text"))
        with pytest.raises(ValueError, match=r"'b\.text' fits none of the 7 .* name is 'b\.txt'"):
            split(config, NAMES)
