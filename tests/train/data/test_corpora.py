"""Corpora of every layout: clips, waveforms, datasets, and errors of files that cannot be used."""

import csv
import gzip
import io
import itertools
import json
import math

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from datasets.distributed import split_dataset_by_node
from hypothesis import given
from hypothesis import strategies as st
from smalle.train.data.audio import Clip, Problem
from smalle.train.data.corpora import corpus_clips, layout, load_corpus
from smalle.train.data.librilight import join_segments
from smalle.train.data.prepare import read_ahead

from tests.librilight import make_cuts, make_librilight, make_tar


@pytest.fixture(scope="module")
def librilight(tmp_path_factory):
    """(folder, tar, manifest, voiced stretches, texts)"""
    work = tmp_path_factory.mktemp("librilight")
    voiced = make_librilight(work / "unlab")
    covered = dict(list(voiced.items())[:-1])  # of the last recording Libriheavy knows nothing
    manifest = work / "libriheavy_cuts_small.jsonl.gz"
    texts = make_cuts(manifest, covered)
    return work / "unlab", make_tar(work / "small.tar", work / "unlab"), manifest, voiced, texts


def read(clips, rate=16000):
    """(clip, waveform or Problem) of all."""
    return list(read_ahead(clips, rate, threads=1))


stretches = st.lists(st.tuples(st.floats(0, 30), st.floats(0.01, 60)), min_size=1, max_size=20)


@given(stretches)
def test_joined_segments_hold_all_voice_and_none_is_too_long(gaps):
    voiced, now = [], 0.0
    for gap, length in gaps:
        voiced.append((now + gap, now + gap + length))
        now = voiced[-1][1]
    found = join_segments(voiced, 25.0, 1.0, min_seconds=0.0)
    assert all(0 < end - start <= 25 + 1e-6 for start, end in found)
    assert all(first[1] <= second[0] + 1e-6 for first, second in zip(found, found[1:]))
    outside = sum(end - start for start, end in found) - sum(end - start for start, end in voiced)
    assert -1e-6 <= outside <= len(voiced)  # nothing lost, and pauses of a second at most between them
    for start, end in voiced:
        assert math.fsum(max(0, min(end, b) - max(start, a)) for a, b in found) == pytest.approx(end - start, abs=1e-5)


def test_neighbours_are_joined_and_long_pauses_part():
    assert join_segments([[0.4, 12.0], [12.5, 20.0], [20.3, 27.0], [40.0, 41.0], [43.0, 43.2]]) == [
        (0.4, 20.0),
        (20.3, 27.0),
        (40.0, 41.0),
    ]


def test_libriheavy_gives_the_texts_and_the_rest_is_left_to_an_asr(librilight):
    folder, _, manifest, voiced, texts = librilight
    clips = list(corpus_clips(folder, cuts=[manifest]))
    assert {clip.id: clip.text for clip in clips} == texts
    assert {clip.speaker for clip in clips} == {"100", "1006", "960"}
    more = list(corpus_clips(folder, cuts=[manifest], untranscribed=True))
    assert more[: len(clips)] == clips
    (uncovered,) = more[len(clips) :]
    assert uncovered.text is None and uncovered.id.startswith(list(voiced)[-1])
    activity = list(voiced.values())[-1]
    assert (uncovered.start, uncovered.duration) == pytest.approx((activity[0][0], activity[-1][1] - activity[0][0]))


def test_the_tar_gives_what_its_folders_give(librilight):
    folder, tar, manifest, _, _ = librilight
    unpacked, packed = (read(corpus_clips(path, cuts=[manifest], untranscribed=True)) for path in (folder, tar))
    assert len(packed) == len(unpacked) > 20
    for (clip, wave), (other, same) in zip(unpacked, packed):
        assert (clip.id, clip.text, clip.speaker) == (other.id, other.text, other.speaker)
        assert len(wave) == round(clip.duration * 16000) and np.array_equal(wave, same)
        assert 0.05 < np.std(wave[500:-500]) < 0.3  # voice, not the pause beside it


def test_recordings_with_much_noise_are_left_out_and_unknown_ones_kept(librilight):
    folder, _, manifest, _, _ = librilight
    kept = {clip.id.rsplit("_", 1)[0] for clip in corpus_clips(folder, [manifest], untranscribed=True, min_snr=6.0)}
    assert sum(name.split("/")[-1].startswith("01") for name in kept) == 3  # NaN
    assert sorted(name.split("/")[1] for name in kept if name.split("/")[-1].startswith("02")) == ["1006", "960"]


def test_broken_files_are_told_with_their_reason(tmp_path):
    voiced = make_librilight(tmp_path / "unlab", speakers=("7", "8", "9"), chapters=1)
    flacs, jsons = (sorted((tmp_path / "unlab").rglob(f"*.{suffix}")) for suffix in ("flac", "json"))
    flacs[0].write_bytes(flacs[0].read_bytes()[:3000])
    jsons[1].unlink()
    jsons[2].write_text('{"speaker": "9"')
    found = list(corpus_clips(tmp_path / "unlab", untranscribed=True))
    problems = {problem.id: problem.reason for problem in found if isinstance(problem, Problem)}
    names = list(voiced)
    assert sorted(problems) == names[1:]
    assert "no .json" in problems[names[1]] and "Expecting" in problems[names[2]]
    results = read(clip for clip in found if isinstance(clip, Clip))
    assert results and all(isinstance(wave, Problem) and wave.reason for _, wave in results)


def test_a_download_that_stopped_gives_what_is_whole(librilight, tmp_path):
    _, tar, _, _, _ = librilight
    (tmp_path / "part.tar").write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    found = list(corpus_clips(tmp_path / "part.tar", untranscribed=True))
    clips = [clip for clip in found if isinstance(clip, Clip)]
    assert clips and any("only the files before" in problem.reason for problem in found if problem not in clips)
    assert any(isinstance(wave, np.ndarray) for _, wave in read(clips))
    (tmp_path / "no.tar").write_bytes(b"\x1f\x8b nothing" * 100)
    with pytest.raises(ValueError, match="cannot be read as a tar archive"):
        list(corpus_clips(tmp_path / "no.tar"))


@pytest.fixture
def waves(tmp_path, record):
    """Three wavs in a folder, and what they hold."""
    (tmp_path / "wavs").mkdir()
    return tmp_path / "wavs", [record(tmp_path / "wavs" / f"{n}.wav", 0.2 + 0.1 * n, 100 + 10 * n)[0] for n in range(3)]


def test_libritts_as_it_is_laid_out(tmp_path, record):
    chapter = tmp_path / "LibriTTS_R" / "train-clean-100" / "103" / "1240"
    chapter.mkdir(parents=True)
    waves = [record(chapter / f"103_1240_00000{n}_000000.wav", 0.3, 100 + n)[0] for n in range(2)]
    (chapter / "103_1240_000000_000000.normalized.txt").write_text("Chapter one.\n")
    (chapter / "103_1240_000000_000000.original.txt").write_text("CHAPTER I.\n")
    (chapter / "103_1240.trans.tsv").write_text("")
    clip, problem = corpus_clips(tmp_path / "LibriTTS_R")
    assert (clip.text, clip.speaker) == ("Chapter one.", "103") and "no text" in problem.reason
    assert clip.id == "train-clean-100/103/1240/103_1240_000000_000000"
    assert np.array_equal(read([clip], 24000)[0][1], waves[0])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_any_set_of_audio_text_and_speaker(waves, kind):
    folder, recorded = waves
    rows = [{"file_name": f"{n}.wav", "transcription": f"Number {n}.", "speaker_id": f"s{n % 2}"} for n in range(3)]
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with open(folder / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        folder = folder.parent / "set"
        (folder / "data").mkdir(parents=True)
        audio = [{"bytes": (waves[0] / row["file_name"]).read_bytes(), "path": row["file_name"]} for row in rows]
        columns = {name: [row[name] for row in rows] for name in ("transcription", "speaker_id")}
        table = pyarrow.table({"audio": audio, **columns})
        pyarrow.parquet.write_table(table, folder / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    clips = [Clip.from_json(clip.to_json()) for clip in corpus_clips(folder)]  # as through a plan
    assert [(clip.text, clip.speaker) for clip in clips] == [(f"Number {n}.", f"s{n % 2}") for n in range(3)]
    assert len({clip.id for clip in clips}) == 3
    for (_, wave), same in zip(read(clips, 24000), recorded):
        assert np.array_equal(wave, same)


def test_stereo_and_other_rates_become_mono_at_the_codecs_rate(tmp_path):
    tone = np.sin(np.arange(32000) * 2 * np.pi * 440 / 32000)
    soundfile.write(tmp_path / "a.flac", np.stack([0.5 * tone, 0.1 * tone], 1), 32000)
    ((_, wave),) = read([Clip("a", str(tmp_path / "a.flac"), "x", "a", 0.25, 0.5)], 24000)
    expected = 0.3 * np.sin(np.arange(12000) * 2 * np.pi * 440 / 24000)
    assert wave.shape == (12000,) and np.abs(wave - expected)[200:-200].max() < 1e-3


def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected Libri-light"):
        layout(tmp_path)
    with pytest.raises(ValueError, match="expected Libri-light"):
        layout(tmp_path / "nothing.tar")


def decoded(dataset):
    """Rows of a dataset, with their audio as samples."""
    rows = []
    for row in dataset:
        audio = row.pop("audio")
        samples, rate = soundfile.read(io.BytesIO(audio["bytes"]) if audio["bytes"] else audio["path"])
        assert len(samples) == pytest.approx(row["duration"] * rate, abs=1)
        rows.append({**row, "samples": samples.tolist()})
    return rows


def test_streaming_gives_what_a_dataset_on_disk_gives(librilight):
    folder, tar, manifest, _, texts = librilight
    whole = load_corpus(folder, cuts=[manifest])
    stream = load_corpus(folder, streaming=True, cuts=[manifest])
    assert isinstance(whole, datasets.Dataset) and isinstance(stream, datasets.IterableDataset)
    assert whole.features == stream.features and whole.features["audio"] == datasets.Audio(decode=False)
    rows = decoded(whole)
    assert decoded(stream) == decoded(load_corpus(tar, streaming=True, cuts=[manifest])) == rows
    assert {row["id"]: row["text"] for row in rows if row["text"]} == texts
    assert [row["text"] for row in rows].count(None) == 1 and {row["speaker"] for row in rows} == {"100", "1006", "960"}
    transcribed = load_corpus(folder, streaming=True, cuts=[manifest], untranscribed=False)
    assert [row["id"] for row in transcribed] == list(texts)


@pytest.mark.parametrize(("streaming", "nodes"), [(True, 2), (True, 3), (False, 2)])
def test_shards_of_all_nodes_join_to_all_rows(librilight, streaming, nodes):
    _, tar, manifest, _, _ = librilight
    dataset = load_corpus(tar, streaming, num_shards=4, cuts=[manifest])
    parts = [[row["id"] for row in split_dataset_by_node(dataset, rank, nodes)] for rank in range(nodes)]
    joined = list(itertools.chain(*parts))
    assert all(parts) and len(set(joined)) == len(joined) and set(joined) == {row["id"] for row in dataset}


def test_rows_of_a_dataset_are_the_clips_of_preparation(librilight):
    folder, _, manifest, _, _ = librilight
    clips = read(corpus_clips(folder, [manifest], untranscribed=True))
    rows = decoded(load_corpus(folder, cuts=[manifest]))
    assert [(row["id"], row["text"], row["speaker"]) for row in rows] == [
        (clip.id, clip.text, clip.speaker) for clip, _ in clips
    ]
    for row, (_, wave) in zip(rows, clips):
        assert np.array_equal(np.float32(row["samples"]), wave)


def test_other_layouts_are_datasets_too(waves, tmp_path, record):
    folder, recorded = waves
    rows = [
        {"file_name": f"{n}.wav", "text": f"Number {n}.", "speaker": "s", "words": [[0, 0.1], [0.1, 0.2]]}
        for n in (0, 1)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(load_corpus(folder))
    assert [row["words"] for row in found] == [row["words"] for row in rows]
    assert [row["audio"] for row in found] == [{"bytes": None, "path": str(folder / f"{n}.wav")} for n in (0, 1)]
    assert [row["duration"] for row in found] == pytest.approx([len(wave) / 24000 for wave in recorded[:2]], abs=1e-4)
    chapter = tmp_path / "LibriTTS" / "dev-clean" / "84" / "121123"
    chapter.mkdir(parents=True)
    record(chapter / "84_121123_000000_000000.wav", 0.3, 100)
    (chapter / "84_121123_000000_000000.normalized.txt").write_text("Go on!\n")
    (row,) = load_corpus(tmp_path / "LibriTTS", streaming=True)
    assert (row["text"], row["speaker"], row["words"]) == ("Go on!", "84", [])
    content = {"bytes": (folder / "0.wav").read_bytes(), "path": None}
    table = pyarrow.table({"audio": [content, {"bytes": b"", "path": None}], "text": ["Yes.", "No."]})
    pyarrow.parquet.write_table(table, tmp_path / "some.parquet")
    (row,) = load_corpus(tmp_path / "some.parquet")  # the other row has no audio
    assert (row["text"], row["audio"]) == ("Yes.", content)


def test_a_corpus_without_usable_clips_is_refused(tmp_path):
    make_librilight(tmp_path / "unlab", speakers=("7",), chapters=1)
    next((tmp_path / "unlab").rglob("*.json")).unlink()
    with pytest.raises(ValueError, match="unlab has no usable clips .1 unusable"):
        load_corpus(tmp_path / "unlab")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "metadata.jsonl:2: Expecting"),
        ('{"text": "Yes."}', "the row {'text': 'Yes.'}: expected"),
        ("5", "the row 5: expected"),
    ],
)
def test_a_wrong_line_of_metadata_is_named(waves, line, message):
    folder, _ = waves
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "0.wav", "text": "One."}}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        load_corpus(folder)


def test_wrong_values_of_a_row_are_problems(waves):
    folder, _ = waves
    wrong = [{"duration": "long"}, {"words": [[0, 1]]}, {"words": "0 1"}, {"duration": []}]
    rows = [{"file_name": "0.wav", "text": "Number one.", **values} for values in wrong]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    found = list(corpus_clips(folder))
    assert [isinstance(clip, Problem) for clip in found] == [True, True, True, False]
    assert "'long'" in found[0].reason and "shape (1, 2)" in found[1].reason


def test_a_wrong_line_of_a_manifest_is_named(librilight, tmp_path):
    folder, _, manifest, _, _ = librilight
    with gzip.open(manifest, "rt") as lines:
        first = lines.readline()
    (tmp_path / "cuts.jsonl").write_text(first + '{"id": "a", "supervisions": []}\n')
    with pytest.raises(ValueError, match="cuts.jsonl:2 is not a cut of Libriheavy"):
        load_corpus(folder, cuts=[tmp_path / "cuts.jsonl"])
