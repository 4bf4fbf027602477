"""The results of smalle.train.evaluation.evaluate as one HTML page: every utterance with its sound, what was heard, its errors."""

import html
import os
import urllib.parse

from .word_errors import align, words

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; color-scheme: light dark }
table { border-collapse: collapse } td, th { padding: .1rem .8rem .1rem 0; text-align: left }
section { border-top: 1px solid #8888; padding: 1rem 0 } img { max-width: 100%; display: block; margin-top: .5rem }
del { color: #c33 } ins { color: #b60 } .numbers { opacity: .7 } audio { height: 2rem; vertical-align: middle }
"""


def marked(text, heard):
    """(text, heard) as HTML words: <del> what was not heard, <ins> what was heard in its place or besides."""
    said, other = [], []
    for wanted, got in align(words(text), words(heard)):
        same = wanted == got
        for word, kind, out in (wanted, "del", said), (got, "ins", other):
            if word is not None:
                out.append(html.escape(word) if same else f"<{kind}>{html.escape(word)}</{kind}>")
    return " ".join(said), " ".join(other)


def player(path, folder):
    """An audio element of a file, by its path relative to the page."""
    source = urllib.parse.quote(os.path.relpath(os.path.join(folder, path), folder))
    return f'<audio controls preload="none" src="{source}"></audio>'


def table(values):
    """Names and values, one row each."""
    cells = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
        if value not in (None, {})
    )
    return f"<table>{cells}</table>"


def section(number, row, folder):
    """One utterance."""
    parts = [f"<p>{number}. {html.escape(row['text'])}</p>", player(row["audio"], folder)]
    if row.get("reference"):
        parts.append(f" the speaker: {player(row['reference'], folder)}")
    if "heard" in row:
        said, heard = marked(row["text"], row["heard"])
        parts.append(f"<p>said: {said}<br>heard: {heard or '<ins>nothing</ins>'}</p>")
    known = {key: value for key, value in row.items() if key not in ("text", "audio", "reference", "heard")}
    numbers = ", ".join(f"{key} {value}" for key, value in known.items() if value not in (None, False))
    parts.append(f'<p class="numbers">{html.escape(numbers)}</p>')
    picture = os.path.splitext(row["audio"])[0] + ".png"
    if os.path.isfile(os.path.join(folder, picture)):
        parts.append(f'<img src="{urllib.parse.quote(picture)}" alt="where in the text each frame was read">')
    return f"<section>{''.join(parts)}</section>"


def results_page(folder, rows, report):
    """The page: a summary, then the utterances, most errors first. rows: of the judge, or of the manifest."""
    order = sorted(enumerate(rows, 1), key=lambda pair: -(pair[1].get("wer") or 0))
    summary = {**report.get("summary", {}), **report.get("timing", {})}
    settings = {**report.get("settings", {}), "judge": report.get("judge")}
    name = html.escape(os.path.basename(os.path.abspath(folder)))
    body = "\n".join(section(number, row, folder) for number, row in order)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style>\n"
        f"<h1>{name}</h1>\n{table(summary)}\n<details><summary>settings</summary>{table(settings)}</details>\n"
        f"{body}\n</html>\n"
    )
