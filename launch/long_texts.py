"""Long plain texts out of Debian packages: three Debian books, Austen's novels, An Anarchist FAQ.

Called by launch/long_texts.sh with the folder of the unpacked packages and the folder to write.
Needs only the standard library. Each text becomes one file of paragraphs, a document of its own for
`config.data.source`.
"""

import html.parser
import itertools
import re
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_SKIPPED = {"script", "style", "head", "nav", "title"}
_BLOCKS = re.compile("p|div|br|h[1-6]|li|[uod]l|d[td]|blockquote|table|tr|hr|pre|section")
_NAVIGATION = re.compile(r"navheader|navfooter|docnav|\btoc\b")
_NAVIGATION_LINES = re.compile(r"\n(Download the ebook|Prev|Next)(?=\n)")
# Stand for line ends and spaces inside <pre>, where they count.
_LINE_END, _SPACE = "\0", "\1"


class _Page(html.parser.HTMLParser):
    """The text of a page: a paragraph a line, without navigation and scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._skipped = self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = dict(attrs).get("class") or ""
        inside_skipped = self._skipped and tag == "div"
        navigation = tag == "div" and _NAVIGATION.search(kind)
        self._skipped += bool(tag in _SKIPPED or inside_skipped or navigation)
        self._preformatted += tag == "pre"
        if _BLOCKS.fullmatch(tag):
            self.pieces.append("\n\n")
        if tag == "td":
            self.pieces.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED or (self._skipped and tag == "div"):
            self._skipped = max(0, self._skipped - 1)
        self._preformatted -= tag == "pre"
        if _BLOCKS.fullmatch(tag):
            self.pieces.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        if self._preformatted:
            self.pieces.append(data.replace("\n", _LINE_END).replace(" ", _SPACE))
        else:
            self.pieces.append(re.sub(r"\s+", " ", data))


def _text_of(path: Path) -> str:
    source = path.read_text(errors="replace")
    if (start := source.find('<div class="body" role="main">')) >= 0:  # made by Sphinx
        source = source[start : source.index('<div class="sphinxsidebar"')]
    page = _Page()
    page.feed(source)
    page.close()
    text = re.sub(r"[ \t]+", " ", "".join(page.pieces))
    text = re.sub(r" ?\n ?", "\n", text)
    text = re.sub(r"\n{2,}", "\n\n", text)
    text = _NAVIGATION_LINES.sub("", f"\n{text}\n").replace("¶", "")
    return text.replace(_LINE_END, "\n").replace(_SPACE, " ").strip()


def _pages(folder: Path, names: Iterable[str]) -> list[str]:
    return [_text_of(path) for name in names if (path := folder / f"{name}.html").exists()]


def _anarchist_faq(root: Path) -> Iterator[tuple[str, list[str]]]:
    folder = root / "usr/share/doc/anarchism/html"
    for letter in "ABCDEFGHIJ":
        parts = ["int", *map(str, range(1, 20)), "con"]
        yield f"anarchist_faq_{letter}", _pages(folder, [f"sec{letter}{part}" for part in parts])


def _debian_books(root: Path) -> Iterator[tuple[str, list[str]]]:
    folder = root / "usr/share/doc/debian-handbook/html/en-US"
    index = (folder / "index.html").read_text()
    links = re.findall(r'href="([\w.-]+)\.html', index[index.index('class="toc"') :])
    yield "debian_handbook", _pages(folder, dict.fromkeys(links))

    folder = root / "usr/share/debian-reference"
    yield "debian_reference", _pages(folder, [f"ch{number:02}.en" for number in range(1, 13)])

    folder = root / "usr/share/developers-reference"
    chapters = ["scope", "developer-duties", "resources", "pkgs", "best-pkging-practices"]
    chapters += ["beyond-pkging", "new-maintainer", "tools", "l10n"]
    yield "debian_developers_reference", _pages(folder, chapters)


def _austen(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Six R vectors of lines, each compressed behind its length, in the order of their names."""
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    for name in (
        "emma",
        "mansfield_park",
        "northanger_abbey",
        "persuasion",
        "pride_and_prejudice",
        "sense_and_sensibility",
    ):
        unzip = zlib.decompressobj()
        lines = _r_strings(unzip.decompress(data[4:]))
        data = unzip.unused_data
        yield (
            f"austen_{name}",
            [" ".join(group) for full, group in itertools.groupby(lines, bool) if full],
        )


def _r_strings(vector: bytes) -> list[str]:
    """The strings of a serialized R character vector (R Internals, section 1.8)."""
    at = vector.index(b"UTF-8") + len(b"UTF-8")
    _, count = struct.unpack_from(">II", vector, at)
    at += 8
    strings = []
    for _ in range(count):
        _, size = struct.unpack_from(">Ii", vector, at)
        at += 8
        strings.append(vector[at : at + max(size, 0)].decode())
        at += max(size, 0)
    return strings


def main(unpacked: Path, folder: Path) -> None:
    """Writes all texts, or none when a package is not as expected."""
    texts = {
        name: re.sub(r"\n{3,}", "\n\n", "\n\n".join(part.strip() for part in parts if part.strip()))
        for source in (_anarchist_faq, _debian_books, _austen)
        for name, parts in source(unpacked)
    }
    short = [name for name, text in texts.items() if len(text) < 100_000]
    if short:
        sys.exit(f"{', '.join(short)}: too short, so the packages are not as expected (Debian 12)")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(f"{text}\n")
    print(f"{len(texts)} texts in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
