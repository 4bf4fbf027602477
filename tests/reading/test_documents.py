"""Documents of all kinds become the chapters that a person would read; damaged and hostile ones are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalle.reading import documents
from smalle.reading.documents import parse_html, read_document


def outline(document):
    return {chapter.title: [paragraph.text for paragraph in chapter.paragraphs] for chapter in document.chapters}


@pytest.mark.parametrize("version", [2, 3])
def test_an_epub_has_the_chapters_of_its_contents_and_no_notes(make_epub, version):
    document = read_document(make_epub(version))
    assert (document.title, document.author) == ("Alice's Adventures in Wonderland", "Lewis Carroll")
    cover, first, second = document.chapters
    assert [p.text for p in cover.paragraphs] == ["Alice’s Adventures in Wonderland"]
    assert [first.title, second.title] == ["Down the Rabbit-Hole", "The Pool of Tears"]
    heading, paragraph = first.paragraphs
    assert heading == ("CHAPTER I.\nDown the Rabbit-Hole", True)
    assert paragraph.text.startswith("Alice was beginning") and paragraph.text.endswith("conversations?”")
    assert [p.text for p in second.paragraphs] == [
        "CHAPTER II.\nThe Pool of Tears",
        "“Curiouser and curiouser!” cried Alice.",
    ]


def test_titles_in_the_contents_have_the_spaces_of_their_text(make_epub):
    contents = """<nav epub:type="toc"><a href="text/all%20text.xhtml#one">
    <span>I</span>: Down<br/>the <i>Rabbit</i>-Hole </a></nav>"""
    assert read_document(make_epub(**{"OEBPS/nav.xhtml": contents})).chapters[1].title == "I: Down the Rabbit-Hole"


def test_an_epub_without_contents_is_cut_at_its_headings(make_epub):
    no_contents = {"OEBPS/nav.xhtml": "<html></html>", "OEBPS/toc.ncx": "<ncx/>"}
    titles = [chapter.title for chapter in read_document(make_epub(**no_contents)).chapters]
    assert titles[1:] == ["CHAPTER I. Down the Rabbit-Hole", "CHAPTER II. The Pool of Tears"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"META-INF/container.xml": None}, "no file 'META-INF/container.xml'"),
        ({"META-INF/container.xml": "<container/>"}, "expected a rootfile"),
        ({"META-INF/container.xml": documents.__doc__}, "damaged XML"),
        ({"OEBPS/package.opf": '<!DOCTYPE x [<!ENTITY a "b">]><package>&a;</package>'}, "defines entities"),
        ({"OEBPS/text/all text.xhtml": None}, "no file 'OEBPS/text/all text.xhtml'"),
        ({"OEBPS/text/all text.xhtml": "", "OEBPS/cover.xhtml": "<p>...</p>"}, "contains no text"),
        ({"OEBPS/text/all text.xhtml": b"\0" * (documents.MAX_BYTES + 1)}, "unpacks to 64 MB"),
        (
            {"META-INF/encryption.xml": '<e><CipherReference URI="OEBPS/cover.xhtml"/></e>'},
            "encrypted: expected one without copy protection",
        ),
    ],
)
def test_damaged_and_hostile_epubs_are_refused(make_epub, changes, message):
    with pytest.raises(ValueError, match=message):
        read_document(make_epub(**changes))


def test_links_out_of_an_epub_lead_nowhere(make_epub, tmp_path):
    (tmp_path / "secret.xhtml").write_text("<p>secret</p>")
    with pytest.raises(ValueError, match="no file '../secret.xhtml'"):
        read_document(make_epub(cover="../../secret.xhtml"))


@pytest.mark.parametrize("cut", [10, 0.5, -10])
def test_an_epub_that_is_cut_short_is_refused(make_epub, cut):
    path = make_epub()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut) if cut == 0.5 else cut])
    with pytest.raises(ValueError, match="alice.epub: it is not an epub"):
        read_document(path)


BOOK = """\
The Project Gutenberg eBook of Nothing
*** START OF THE PROJECT GUTENBERG EBOOK NOTHING ***

NOTHING

Part One

CHAPTER I.
The Beginning

It was a dark
and stormy night.

Part one of the plan was simple.

Chapter 2

The end.

*** END OF THE PROJECT GUTENBERG EBOOK NOTHING ***
licence"""


def test_a_text_is_cut_at_lines_that_name_a_chapter(tmp_path):
    path = tmp_path / "nothing.txt"
    path.write_bytes(BOOK.replace("\n", "\r\n").encode())
    assert outline(read_document(path)) == {
        "nothing": ["NOTHING"],
        "CHAPTER I. The Beginning": [
            "Part One",
            "CHAPTER I. The Beginning",
            "It was a dark and stormy night.",
            "Part one of the plan was simple.",
        ],
        "Chapter 2": ["Chapter 2", "The end."],
    }


def test_a_licence_that_begins_again_and_again_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("*** START OF THE PROJECT GUTENBERG EBOOK A ***\n" * 5000 + "Hello.")
    assert outline(read_document(tmp_path / "a.txt")) == {"a": ["Hello."]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_of_texts(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("“Café”".encode(encoding))
    assert outline(read_document(path)) == {"a": ["“Café”"]}


def test_markdown_is_read_without_its_marks(tmp_path):
    pytest.importorskip("markdown_it")
    path = tmp_path / "a.md"
    path.write_text(
        "---\ntitle: no\n---\n# Title\n\nSome *emph* [link](http://x.y).\n\n## One\n\n- a\n- b\n\n"
        "## Two\n\n| c | d |\n|---|---|\n| e | f |\n"
    )
    document = read_document(path)
    assert document.title == "Title"
    assert outline(document) == {
        "Title": ["Title", "Some emph link."],
        "One": ["One", "a", "b"],
        "Two": ["Two", "c, d", "e, f"],
    }


HTML = """<html><head><meta charset="iso-8859-1"><title>A &amp; B</title><script>var a = '<p>no</p>'</script></head>
<body><nav>menu</nav><h1>Head</h1><p>One<sup>[1]</sup> two<br>three
<p>caf\xe9<div hidden>hidden</div><aside>aside <aside>inner</aside> outer</aside>end<template>no</template></body>"""


def test_html_is_read_as_a_person_would(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes(HTML.encode("latin-1"))
    document = read_document(path)
    assert document.title == "A & B"
    assert outline(document) == {"Head": ["Head", "One two\nthree", "café", "end"]}


def test_a_heading_with_a_subtitle_is_one_heading():
    blocks = parse_html(
        "<p>before<hgroup><h2>I</h2><p>Down the <i>Hole</i></p></hgroup><p>Alice.</p>"
        "<hgroup><p>Part</p><h3>Two</h3></hgroup>end"
    ).blocks
    assert [(block.text, block.level) for block in blocks] == [
        ("before", 0), ("I\nDown the Hole", 2), ("Alice.", 0), ("Part\nTwo", 3), ("end", 0),
    ]  # fmt: skip


@given(
    st.lists(
        st.sampled_from(
            "<p> <div> </p> </div> <h1> </h1> <hgroup> </hgroup> <br> <nav> </nav> <b> text &amp; <!-- --> <".split()
        )
    )
)
def test_html_in_any_disorder_gives_its_words_at_most_once(parts):
    blocks = parse_html(" ".join(parts)).blocks
    assert sum(block.text.count("text") for block in blocks) <= parts.count("text")
    assert all(block.text == block.text.strip() != "" for block in blocks)
    if "<nav>" not in parts and "<" not in parts and "<!--" not in parts:
        assert sum(block.text.count("text") for block in blocks) == parts.count("text")


def test_deep_html_is_no_recursion(tmp_path):
    path = tmp_path / "a.html"
    path.write_text("<div>" * 100_000 + "deep" + "</div>" * 100_000)
    assert outline(read_document(path)) == {"a": ["deep"]}


@pytest.mark.parametrize("name", ["a.pdf", "a", "missing.txt"])
def test_what_is_no_document_is_refused(tmp_path, name):
    if name != "missing.txt":
        (tmp_path / name).write_text("text")
    with pytest.raises(ValueError, match="expected"):
        read_document(tmp_path / name)
