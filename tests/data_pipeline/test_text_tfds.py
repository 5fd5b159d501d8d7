"""Text in TFDS data sets: ours from local files, and others that were prepared elsewhere."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rrope_jax.data.text import TextConfig, documents
from rrope_jax.data.tfds_builder import LocalBuilder, prepare
from tests.data_pipeline.samples import NAMES, TEXTS


class Books(LocalBuilder):
    """A data set of someone else: no names, two strings, and splits."""

    VERSION = tfds.core.Version("2.1.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self._described(
            "", book_text=text, book_title=text, book_id=tfds.features.Scalar(np.int32)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count: int) -> Any:
        for i in range(count):
            yield i, {"book_text": f"text {i} é", "book_title": f"title {i}", "book_id": i}


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def books(data_dir: str) -> str:
    prepare(Books, data_dir=data_dir)
    return data_dir


class TestLocalText:
    def test_documents_are_those_of_the_files(self, folder: Path, data_dir: str) -> None:
        found = documents(TextConfig(source=str(folder), data_dir=data_dir))
        assert list(found.names) == NAMES
        assert [document.text for document in found] == TEXTS
        assert found[4] == (NAMES[4], TEXTS[4])

    def test_made_once(self, folder: Path, data_dir: str) -> None:
        config = TextConfig(source=str(folder), data_dir=data_dir)
        first = documents(config)
        (file,) = Path(data_dir).rglob("*.array_record*")
        before = file.stat().st_mtime_ns
        second = documents(config)
        assert file.stat().st_mtime_ns == before
        assert first.fingerprint == second.fingerprint
        assert [document.text for document in second] == TEXTS

    def test_changed_files_are_another_data_set(self, folder: Path, data_dir: str) -> None:
        config = TextConfig(source=str(folder), data_dir=data_dir)
        before = documents(config)
        (folder / "b.txt").write_text("seven seven seven seven")
        after = documents(config)
        assert after[1].text == "seven seven seven seven"
        assert before[1].text == "two four six"
        assert after.fingerprint != before.fingerprint

    def test_readable_under_its_tfds_name(self, folder: Path, data_dir: str) -> None:
        documents(TextConfig(source=str(folder), data_dir=data_dir))
        found = documents(TextConfig(source="tfds:rrope_text", data_dir=data_dir))
        assert [document.text for document in found] == TEXTS

    def test_nothing_is_printed(
        self, folder: Path, data_dir: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        documents(TextConfig(source=str(folder), data_dir=data_dir))
        assert capfd.readouterr() == ("", "")

    def test_damaged_file_is_named_and_nothing_stays(self, folder: Path, data_dir: str) -> None:
        (folder / "z.txt").write_bytes(b"\xff")
        with pytest.raises(ValueError, match=r"z\.txt is not UTF-8"):
            documents(TextConfig(source=str(folder), data_dir=data_dir))
        assert list(Path(data_dir).rglob("*.array_record*")) == []

    @pytest.mark.parametrize("left", [0, 1000, 65536, 70000, 131072])
    def test_copy_that_was_cut_short(self, tmp_path: Path, data_dir: str, left: int) -> None:
        text = tmp_path / "text"
        text.mkdir()
        for name in ("a.txt", "b.txt"):  # which does not shrink when it is compressed
            (text / name).write_text(np.random.default_rng(0).bytes(80_000).hex())
        config = TextConfig(source=str(text), data_dir=data_dir)
        assert len(list(documents(config))) == 2
        (file,) = Path(data_dir).rglob("*.array_record*")
        file.write_bytes(file.read_bytes()[:left])
        with pytest.raises(ValueError, match=r"/1\.0\.0 is damaged: .*; prepare or copy it again"):
            list(documents(config))

    @pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
    @pytest.mark.parametrize("content", [None, b"", b"{", b"null", b"[]", b'"x"', b"\xff"])
    def test_damaged_description(
        self, folder: Path, data_dir: str, name: str, content: bytes | None
    ) -> None:
        config = TextConfig(source=str(folder), data_dir=data_dir)
        documents(config)
        (file,) = Path(data_dir).rglob(name)
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ValueError, match=r"/1\.0\.0 is damaged: .*; prepare or copy it again"):
            documents(config)

    def test_name_that_is_not_utf8(self, folder: Path, data_dir: str) -> None:
        with open(os.fsencode(folder) + b"/caf\xe9.txt", "wb") as file:
            file.write(b"text")
        with pytest.raises(
            ValueError, match=r"'caf\\udce9\.txt': the file's name is not UTF-8.*re"
        ):
            documents(TextConfig(source=str(folder), data_dir=data_dir))
        assert not Path(data_dir).exists()

    def test_folder_that_cannot_be_written(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"data_dir='.*/a.txt' cannot be used: .*; give a"):
            documents(TextConfig(source=str(folder), data_dir=str(folder / "a.txt")))


class TestTfds:
    def test_newest_version_and_default_names(self, books: str) -> None:
        found = documents(TextConfig(source="tfds:books", data_dir=books))
        assert list(found.names) == [f"books/train/{i}" for i in range(5)]
        assert [document.text for document in found] == [f"text {i} é" for i in range(5)]

    @pytest.mark.parametrize(
        ("fields", "texts"),
        [
            ({"split": "test"}, ["text 0 é", "text 1 é"]),
            ({"split": "train[3:]"}, ["text 3 é", "text 4 é"]),
            ({"split": "test", "text_key": "book_title"}, ["title 0", "title 1"]),
            ({"split": "test", "source": "tfds:books:2.1.0"}, ["text 0 é", "text 1 é"]),
        ],
    )
    def test_split_key_and_version(
        self, books: str, fields: dict[str, Any], texts: list[str]
    ) -> None:
        config = TextConfig(**{"source": "tfds:books", "data_dir": books, **fields})
        assert [document.text for document in documents(config)] == texts

    def test_default_folder_is_that_of_tfds(
        self, books: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tfds.core.constants, "DATA_DIR", books)
        assert len(documents(TextConfig(source="tfds:books"))) == 5

    def test_newest_version_is_the_one_with_the_largest_numbers(self, books: str) -> None:
        folder = Path(books) / "books"
        for version in ("2.9.0", "2.10.0"):
            shutil.copytree(folder / "2.1.0", folder / version)
        for version in ("2.1.0", "2.9.0"):  # can no longer be read
            for file in (folder / version).glob("*.array_record*"):
                file.unlink()
        assert len(list(documents(TextConfig(source="tfds:books", data_dir=books)))) == 5

    def test_only_config_needs_no_name(self, books: str) -> None:
        folder = Path(books) / "books"
        (folder / "2.1.0").rename(folder / "x")
        (folder / "only").mkdir()
        (folder / "x").rename(folder / "only" / "2.1.0")
        assert len(documents(TextConfig(source="tfds:books", data_dir=books))) == 5
        shutil.copytree(folder / "only", folder / "other")
        with pytest.raises(ValueError, match=r"several; there are books/only/2.*, books/other/2"):
            documents(TextConfig(source="tfds:books", data_dir=books))
        assert len(documents(TextConfig(source="tfds:books/other", data_dir=books))) == 5

    def test_fingerprint_follows_what_is_read(self, books: str) -> None:
        def fingerprint(**fields: str) -> str:
            config = TextConfig(source="tfds:books", data_dir=books, **fields)
            return documents(config).fingerprint

        assert fingerprint() == fingerprint()
        assert (
            len({fingerprint(), fingerprint(split="test"), fingerprint(text_key="book_title")}) == 3
        )


class TestRefusals:
    @pytest.mark.parametrize("name", ["pg19", "c4/en", "pg19:0.1.1"])
    def test_data_set_of_tfds_that_is_not_prepared(self, data_dir: str, name: str) -> None:
        with pytest.raises(ValueError, match="is not in data_dir=") as caught:
            documents(TextConfig(source=f"tfds:{name}", data_dir=data_dir))
        message = str(caught.value)
        folder = "c4" if "c4" in name else "pg19"
        assert f"`tfds build {name} --file_format=array_record --data_dir=DIR`" in message
        assert f"copy DIR/{folder} into data_dir" in message
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"source": "tfds:pg91"}, r"not in data_dir='.*' \(did you mean 'pg19'\?\); prepare"),
            ({"source": "tfds:books:9.0.0"}, r"not in data_dir=.* there are books/2\.1\.0 \(the"),
            ({"source": "tfds:books/x"}, r"not in data_dir=.* there are books/2\.1\.0 \(the"),
            ({"source": "tfds:a b"}, r"has to be tfds:NAME\[/CONFIG\]\[:VERSION\]"),
            (
                {"split": "dev"},
                r"split='dev' of source='tfds:books': Unknown split .*'train', 'test'",
            ),
            ({"text_key": "body"}, "text_key='body': .* strings are book_text, book_title"),
            ({"text_key": "book_id"}, "text_key='book_id': .* strings are book_text, book_title"),
        ],
    )
    def test_fields(self, books: str, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            documents(TextConfig(**{"source": "tfds:books", "data_dir": books, **fields}))

    def test_other_format(self, books: str) -> None:
        (info,) = Path(books).rglob("dataset_info.json")
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
        with pytest.raises(ValueError, match=r"in another format \(tfrecord\).*`tfds build books"):
            documents(TextConfig(source="tfds:books", data_dir=books))

    @pytest.mark.parametrize("left", [None, 0, 1000, 60000])
    def test_damaged_file(self, books: str, left: int | None) -> None:
        for file in Path(books).rglob("*.array_record*"):
            file.write_bytes(file.read_bytes()[:left])
            if left is None:
                file.unlink()
        with pytest.raises(ValueError, match=r"/books/2\.1\.0 is damaged: .*; prepare or copy it"):
            list(documents(TextConfig(source="tfds:books", data_dir=books)))

    def test_text_that_can_be_any_of_several(self, data_dir: str) -> None:
        class Pairs(LocalBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self) -> tfds.core.DatasetInfo:
                text = tfds.features.Text()
                return self._described("", question=text, answer=text)

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {"train": iter([(0, {"question": "a", "answer": "b"})])}

            def _generate_examples(self) -> Any:
                raise NotImplementedError

        prepare(Pairs, data_dir=data_dir)
        with pytest.raises(ValueError, match=r"text_key=None: .* strings are answer, question"):
            documents(TextConfig(source="tfds:pairs", data_dir=data_dir))
