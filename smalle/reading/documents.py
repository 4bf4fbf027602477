"""Books and articles as chapters of paragraphs: plain text, Markdown, HTML and EPUB."""

import os
import posixpath
import re
import urllib.parse
import zipfile
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from .markup import has_words

MAX_BYTES = 64 << 20  # limit for a document, and for each file in an epub
MAX_UNPACKED = 256 << 20  # limit for all files that are read from an epub
SUFFIXES = {
    ".txt": "text", ".text": "text", ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html",
    ".xhtml": "html", ".epub": "epub",
}  # fmt: skip


class Paragraph(NamedTuple):
    text: str
    heading: bool = False


class Chapter(NamedTuple):
    """A chapter. If its title is a heading of the document, it is also one of the paragraphs."""

    title: str
    paragraphs: list[Paragraph]


class Document(NamedTuple):
    """title and author are "" if the document does not contain them."""

    title: str
    author: str
    chapters: list[Chapter]


def read_document(path: str | os.PathLike, format: str | None = None) -> Document:
    """Reads the chapters of a file.

    Args:
        path: path of the file.
        format: "text", "markdown", "html" or "epub"; None: determined by the suffix.

    Raises:
        ValueError: the format is unknown, or the file is damaged, too large or empty.
    """
    path = Path(path)
    format = format or SUFFIXES.get(path.suffix.lower())
    if format not in READERS:
        raise ValueError(f"{path} is not a supported document: expected {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: expected a file.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size >> 20} MB: expected at most {MAX_BYTES >> 20}.")
    try:
        document = READERS[format](path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    chapters = merge_headings([chapter for chapter in document.chapters if chapter.paragraphs])
    if not chapters:
        raise ValueError(f"{path} contains no text: expected at least one word.")
    return document._replace(title=document.title or path.stem, chapters=chapters)


def decode(data: bytes, charset: str | None = None) -> str:
    """Decodes bytes: in the given charset, else as UTF-16 with a byte order mark or UTF-8, else as Windows-1252."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        charset = "utf-16"
    try:
        return data.decode(charset or "utf-8-sig").lstrip("\ufeff")
    except (UnicodeDecodeError, LookupError):
        return data.decode("cp1252", errors="replace")


# --- blocks and chapters


class Block(NamedTuple):
    """A paragraph (level 0) or a heading (1 to 6), and the anchors before it."""

    text: str
    level: int = 0
    anchors: tuple[str, ...] = ()


def cut(blocks: Sequence[Block], starts: Mapping[int, str], title: str) -> list[Chapter]:
    """Splits blocks into chapters. starts: titles by the position of the first block; blocks before the first chapter
    get the title of the document."""
    chapters = [Chapter(title, [])]
    for position, block in enumerate(blocks):
        if position in starts:
            chapters.append(Chapter(starts[position], []))
        if has_words(block.text):
            chapters[-1].paragraphs.append(Paragraph(block.text, block.level > 0))
    return chapters


def cut_at_headings(blocks: Sequence[Block], title: str) -> list[Chapter]:
    """Splits blocks into chapters at the headings of the highest level that occurs twice, and at higher ones."""
    levels = [block.level for block in blocks if block.level]
    often = [level for level in sorted(set(levels)) if levels.count(level) > 1]
    deepest = often[0] if often else min(levels, default=0)
    starts = {n: " ".join(block.text.split()) for n, block in enumerate(blocks) if 0 < block.level <= deepest}
    return cut(blocks, starts, title)


def merge_headings(chapters: Sequence[Chapter]) -> list[Chapter]:
    """Joins a chapter that consists only of headings, such as "Part One", with the next one."""
    merged: list[Chapter] = []
    held: list[Paragraph] = []
    for number, chapter in enumerate(chapters, 1):
        held += chapter.paragraphs
        if number == len(chapters) or not all(paragraph.heading for paragraph in chapter.paragraphs):
            merged.append(Chapter(chapter.title, held))
            held = []
    return merged


# --- plain text

NUMBER = r"(?:\d{1,3}|[ivxlc]{1,8}|the\s+\w{1,12}|(?:twenty|thirty|forty|fifty|sixty)?[\s-]?(?:one|two|three|four|five|six|seven|eight|nine)|ten|eleven|twelve|\w{3,5}teen|twenty|thirty|forty|fifty|sixty)"  # noqa: E501
HEADING = re.compile(
    rf"(?:(?:chapter|part|book|volume|letter|act|scene|canto|stave|section)\s+{NUMBER}"
    r"|prologue|epilogue|preface|foreword|afterword|introduction|conclusion|contents)"
    r"(?:\s*[.:—–\n-][^\n]{0,80}){0,2}",
    re.IGNORECASE,
)
GUTENBERG = re.compile(r"\*\*\* ?(START|END) OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*\n?")


def read_text(path: Path) -> Document:
    """Reads plain text: empty lines separate paragraphs, and one such as "Chapter 1" starts a chapter."""
    text = without_licence(decode(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n"))
    paragraphs = [part.strip() for part in re.split(r"\n[^\S\n]*\n", text)]
    blocks = [Block(" ".join(p.split()), int(bool(HEADING.fullmatch(p)))) for p in paragraphs if p]
    return Document("", "", cut_at_headings(blocks, path.stem))


def without_licence(text: str) -> str:
    """A text of Project Gutenberg without its header and licence."""
    start = 0
    for mark in GUTENBERG.finditer(text):
        if mark[1] == "END":
            return text[start : mark.start()]
        start = mark.end()
    return text[start:]


# --- Markdown and HTML

BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure footer form "
    "h1 h2 h3 h4 h5 h6 header hgroup hr legend li main ol p pre section summary table tbody tfoot thead tr ul".split()
)
GROUPED = frozenset("h1 h2 h3 h4 h5 h6 p".split())
VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())
SKIPPED = frozenset(
    "script style template noscript nav aside svg math button select textarea iframe audio video object canvas".split()
)
SKIPPED_TYPES = re.compile(r"(?:doc-)?(?:footnotes?|noteref|pagebreak|toc|rearnotes?|endnotes?|pg-boilerplate)")


class BlockReader(HTMLParser):
    """Extracts the blocks of an HTML document that a person would read aloud.

    Skips scripts, styles, navigation, asides, media, hidden parts, notes, and their numbers in brackets. An hgroup (a
    heading and its subtitles) is one heading.
    """

    def __init__(self):
        super().__init__()
        self.blocks: list[Block] = []
        self.title = ""
        self.text: list[str] = []
        self.level = 0
        self.anchors: list[str] = []
        self.skipped, self.depth = "", 0  # name of the element that is being skipped, and its nesting depth
        self.in_title = self.in_group = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.skipped:
            self.depth += tag == self.skipped
            return
        attributes = {name: value or "" for name, value in attrs}
        if tag not in VOID and is_skipped(tag, attributes):
            self.skipped, self.depth = tag, 1
            if tag in BLOCKS:
                self.flush()
            return
        self.in_title = tag == "title"
        if self.in_group and tag in GROUPED:
            self.text.append("\n")
            self.level = self.level or (int(tag[1]) if tag != "p" else 0)
        elif tag in BLOCKS:
            self.flush()
            self.in_group = tag == "hgroup"
            self.level = int(tag[1]) if re.fullmatch("h[1-6]", tag) else self.level * (tag not in ("p", "li"))
        elif tag == "br":
            self.text.append("\n")
        self.anchors += filter(None, (attributes.get("id"), attributes.get("name") if tag == "a" else None))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self.skipped and not is_skipped(tag, dict(attrs)):
            self.handle_starttag(tag, attrs)
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.skipped:
            self.depth -= tag == self.skipped
            self.skipped = self.skipped if self.depth else ""
        elif tag == "title":
            self.in_title = False
        elif tag in ("td", "th"):
            self.text.append(", ")
        elif tag in BLOCKS and not (self.in_group and tag in GROUPED):
            self.flush()
            self.level, self.in_group = 0, False

    def handle_data(self, data: str) -> None:
        if self.in_title and not self.skipped:
            self.title += " ".join(data.split())
        elif not self.skipped:
            self.text.append(re.sub(r"\s+", " ", data))

    def flush(self) -> None:
        text = re.sub(r"\[\d{1,4}\]", "", "".join(self.text))  # numbers of notes
        text = re.sub(r" *\n[ \n]*", "\n", re.sub(" {2,}", " ", text)).strip().removesuffix(",")
        if has_words(text):
            self.blocks.append(Block(text, self.level, tuple(self.anchors)))
            self.anchors = []
        self.text = []


def is_skipped(tag: str, attributes: Mapping[str, str | None]) -> bool:
    """Whether to skip an element."""
    kinds = " ".join(attributes.get(name) or "" for name in ("epub:type", "role", "class")).split()
    hidden = "hidden" in attributes or attributes.get("aria-hidden") == "true"
    return tag in SKIPPED or hidden or any(SKIPPED_TYPES.fullmatch(kind) for kind in kinds)


def parse_html(text: str) -> BlockReader:
    reader = BlockReader()
    reader.feed(text)
    reader.close()
    reader.flush()
    return reader


def read_html(path: Path) -> Document:
    data = path.read_bytes()
    charset = re.search(rb"""charset\s*=\s*["']?([\w-]{1,40})""", data[:2048], re.IGNORECASE)
    reader = parse_html(decode(data, charset[1].decode() if charset else None))
    return Document(reader.title, "", cut_at_headings(reader.blocks, reader.title or path.stem))


def read_markdown(path: Path) -> Document:
    """Reads CommonMark with tables; skips a YAML header."""
    try:
        from markdown_it import MarkdownIt
    except ModuleNotFoundError as error:
        raise ValueError("Markdown needs the package markdown-it-py: run pip install 'smalle[read]'.") from error

    text = re.sub(r"\A---\n.*?\n---\n", "", decode(path.read_bytes()).replace("\r\n", "\n"), count=1, flags=re.DOTALL)
    blocks = parse_html(MarkdownIt("commonmark").enable("table").render(text)).blocks
    headings = [block for block in blocks if block.level == 1]
    title = headings[0].text if len(headings) == 1 else ""
    return Document(title, "", cut_at_headings(blocks, title or path.stem))


# --- EPUB


class Archive:
    """Access to the files of an epub by name. They are only read into memory, never unpacked to disk."""

    def __init__(self, path: Path):
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise ValueError(f"it is not an epub: {error}.") from error
        self.left = MAX_UNPACKED

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises ValueError if it is missing, damaged, encrypted or too large."""
        try:
            info = self.zip.getinfo(name)
        except KeyError as error:
            raise ValueError(f"the epub has no file {name!r}.") from error
        if info.flag_bits & 1:
            raise ValueError(f"{name} is encrypted: expected an epub without copy protection.")
        limit = min(MAX_BYTES, self.left)
        if info.file_size > limit:
            raise ValueError(f"{name} unpacks to {info.file_size >> 20} MB: expected at most {limit >> 20}.")
        try:
            data = self.zip.read(name)
        except Exception as error:  # zipfile and zlib raise many kinds
            raise ValueError(f"{name} in the epub is damaged: {error}.") from error
        self.left -= len(data)
        return data

    def xml(self, name: str) -> ElementTree.Element:
        """The root of an XML file."""
        data = self.read(name)
        if b"<!ENTITY" in data:  # entities could expand to gigabytes
            raise ValueError(f"{name} defines entities: expected plain XML.")
        try:
            return ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(f"{name} is damaged XML: {error}.") from error


def resolve(base: str, link: str) -> tuple[str, str]:
    """(name in the archive, fragment) of a link in the file `base`."""
    target, _, fragment = link.partition("#")
    name = posixpath.normpath(posixpath.join(posixpath.dirname(base), urllib.parse.unquote(target))) if target else base
    return name, urllib.parse.unquote(fragment)


def local(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def find_all(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if local(element) == name]


def first_text(root: ElementTree.Element, name: str) -> str:
    found = find_all(root, name)
    return " ".join("".join(found[0].itertext()).split()) if found else ""


def read_epub(path: Path) -> Document:
    """Reads EPUB 2 and 3. Chapters follow the table of contents, or without one the headings."""
    archive = Archive(path)
    with archive.zip:
        rootfiles = find_all(archive.xml("META-INF/container.xml"), "rootfile")
        if not rootfiles:
            raise ValueError("META-INF/container.xml names no package: expected a rootfile.")
        package_name = rootfiles[0].get("full-path", "")
        package = archive.xml(package_name)
        items = {item.get("id", ""): item for item in find_all(package, "item")}
        spine = [ref for ref in find_all(package, "itemref") if ref.get("linear") != "no"]
        names = [
            resolve(package_name, items[x.get("idref", "")].get("href", ""))[0]
            for x in spine
            if x.get("idref") in items
        ]
        check_protection(archive, names)
        blocks: list[Block] = []
        places: dict[tuple[str, str], int] = {}
        for name in dict.fromkeys(names):
            places[name, ""] = len(blocks)
            for block in parse_html(decode(archive.read(name))).blocks:
                places.update({(name, anchor): len(blocks) for anchor in block.anchors})
                blocks.append(block)
        title = first_text(package, "title")
        starts: dict[int, str] = {}
        for place, entry in table_of_contents(archive, package_name, items):
            position = places.get(place, places.get((place[0], "")))
            if position is not None and entry:
                starts[position] = f"{starts[position]}. {entry}" if position in starts else entry
        chapters = cut(blocks, starts, title) if starts else cut_at_headings(blocks, title)
        return Document(title, first_text(package, "creator"), chapters)


def check_protection(archive: Archive, names: Sequence[str]) -> None:
    """Raises ValueError if texts are encrypted; encrypted fonts are allowed."""
    if "META-INF/encryption.xml" in archive.zip.namelist():
        references = find_all(archive.xml("META-INF/encryption.xml"), "CipherReference")
        if {urllib.parse.unquote(reference.get("URI", "")) for reference in references} & set(names):
            raise ValueError("the epub is encrypted: expected one without copy protection.")


def table_of_contents(
    archive: Archive, package_name: str, items: Mapping[str, ElementTree.Element]
) -> list[tuple[tuple[str, str], str]]:
    """((file, fragment), title) of the entries in the table of contents, in order; [] without one."""
    for item in items.values():
        if "nav" in item.get("properties", "").split():
            name = resolve(package_name, item.get("href", ""))[0]
            reader = ContentsReader()
            reader.feed(decode(archive.read(name)))
            if reader.entries:
                return [(resolve(name, link), title.rstrip()) for link, title in reader.entries]
    for item in items.values():
        if item.get("media-type") == "application/x-dtbncx+xml":
            name = resolve(package_name, item.get("href", ""))[0]
            points = [
                (find_all(point, "content"), first_text(point, "text"))
                for point in find_all(archive.xml(name), "navPoint")
            ]
            return [(resolve(name, content[0].get("src", "")), title) for content, title in points if content]
    return []


class ContentsReader(HTMLParser):
    """Links and titles in the table of contents of an EPUB 3."""

    def __init__(self):
        super().__init__()
        self.entries: list[tuple[str, str]] = []
        self.in_contents = self.in_link = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "nav":
            self.in_contents = "toc" in (attributes.get("epub:type") or "").split()
        elif tag == "a" and self.in_contents and attributes.get("href"):
            self.in_link = True
            self.entries.append((attributes["href"] or "", ""))
        elif tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        self.in_link = self.in_link and tag != "a"
        self.in_contents = self.in_contents and tag != "nav"

    def handle_data(self, data: str) -> None:
        if self.in_link:
            link, title = self.entries[-1]
            self.entries[-1] = link, re.sub(r"\s+", " ", title + data).lstrip()


READERS = {"text": read_text, "markdown": read_markdown, "html": read_html, "epub": read_epub}
