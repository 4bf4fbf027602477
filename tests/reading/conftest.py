"""The tiny checkpoint of tests/smalle, and a book of public domain."""

import zipfile

import pytest

from tests.smalle.conftest import make_tiny, processor, tiny_checkpoint, tiny_config, tiny_model  # noqa: F401

CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OEBPS/package.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>"""
PACKAGE = """<?xml version="1.0"?>
<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/" version="3.0">
<metadata><dc:title>Alice's Adventures in Wonderland</dc:title><dc:creator>Lewis Carroll</dc:creator></metadata>
<manifest>
<item id="cover" href="{cover}" media-type="application/xhtml+xml"/>
<item id="text" href="text/all%20text.xhtml" media-type="application/xhtml+xml"/>
<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" {nav}/>
<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>
</manifest>
<spine toc="ncx"><itemref idref="cover"/><itemref idref="text"/><itemref idref="nav" linear="no"/></spine>
</package>"""
NAV = """<html xmlns:epub="http://www.idpf.org/2007/ops"><body>
<nav epub:type="landmarks"><a href="cover.xhtml">x</a></nav>
<nav epub:type="toc"><ol><li><a href="text/all%20text.xhtml#one">Down the <i>Rabbit-Hole</i></a></li>
<li><a href="text/all%20text.xhtml#two">The Pool of Tears</a></li></ol></nav></body></html>"""
NCX = """<?xml version="1.0"?>
<!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "http://www.daisy.org/z3986/2005/ncx.dtd">
<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>
<navPoint id="a"><navLabel><text>Down the Rabbit-Hole</text></navLabel>
<content src="text/all%20text.xhtml#one"/></navPoint>
<navPoint id="b"><navLabel><text>The Pool of Tears</text></navLabel>
<content src="text/all%20text.xhtml#two"/></navPoint>
</navMap></ncx>"""
TEXT = """<html><head><title>Alice</title><style>p {{ color: red }}</style></head><body>
<h2 id="one">CHAPTER I.<br/>Down the Rabbit-Hole</h2>
<p>Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do:
once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations
in it, <em>“and what is the use of a book,”</em> thought Alice “without pictures or
conversations?”<a epub:type="noteref" href="#n">1</a></p>
<aside epub:type="footnote" id="n">A note.</aside>
<div><h2><a id="two"></a>CHAPTER II.<br/>The Pool of Tears</h2></div>
<p>“Curiouser and curiouser!” cried Alice.</p></body></html>"""
COVER = "<html><body><img src='x.png' alt='cover'/><p>Alice’s Adventures in Wonderland</p></body></html>"


@pytest.fixture
def make_epub(tmp_path):
    """Writes an epub of two chapters in one file; changes replace or add files."""

    def make(version=3, cover="cover.xhtml", **changes):
        nav = 'properties="nav"' if version == 3 else ""
        files = {
            "META-INF/container.xml": CONTAINER,
            "OEBPS/package.opf": PACKAGE.format(nav=nav, cover=cover),
            "OEBPS/nav.xhtml": NAV,
            "OEBPS/toc.ncx": NCX,
            "OEBPS/cover.xhtml": COVER,
            "OEBPS/text/all text.xhtml": TEXT,
            **changes,
        }
        path = tmp_path / "alice.epub"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
            for file, content in files.items():
                if content is not None:
                    archive.writestr(file, content)
        return path

    return make
