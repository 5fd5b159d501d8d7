"""Text in TFDS data sets that were prepared elsewhere."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rrope_jax.data.text import TextConfig, documents
from tests.data_pipeline.samples import NAMES, TEXTS
from tests.data_pipeline.tfds_builders import LocalBuilder, prepare


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


class Long(Books):
    """Texts that do not shrink when they are compressed."""

    def _generate_examples(self, count: int) -> Any:
        for i in range(count):
            text = np.random.default_rng(i).bytes(80_000).hex()
            yield i, {"book_text": text, "book_title": "", "book_id": i}


class RropeText(LocalBuilder):
    """What earlier releases made of local files."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self._described("The documents of local files.", name=text, text=text)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for index, (name, text) in enumerate(zip(NAMES, TEXTS, strict=True)):
            yield index, {"name": name, "text": text}


def test_local_files_of_earlier_releases_keep_their_names(data_dir: str) -> None:
    prepare(RropeText, data_dir=data_dir)
    found = documents(TextConfig(source="tfds:rrope_text", data_dir=data_dir))
    assert list(found.names) == NAMES
    assert [document.text for document in found] == TEXTS
    assert found[4] == (NAMES[4], TEXTS[4])


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

    @pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
    @pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'"x"', b"\xff"])
    def test_damaged_description(self, books: str, name: str, content: bytes) -> None:
        (file,) = Path(books).rglob(name)
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"/2\.1\.0 is damaged: .*; prepare or copy it again"):
            documents(TextConfig(source="tfds:books", data_dir=books))

    @pytest.mark.parametrize("left", [0, 1000, 65536, 70000, 131072])
    def test_copy_that_was_cut_short(self, data_dir: str, left: int) -> None:
        prepare(Long, data_dir=data_dir)
        for file in Path(data_dir).rglob("*.array_record*"):
            file.write_bytes(file.read_bytes()[:left])
        with pytest.raises(ValueError, match=r"/2\.1\.0 is damaged: .*; prepare or copy it again"):
            list(documents(TextConfig(source="tfds:long", data_dir=data_dir)))

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
