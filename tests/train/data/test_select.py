"""Selection of recordings to train on: nobody who is held out is among them."""

import json

import pytest
from smalle.train.data import select
from smalle.train.data.audio import read_waveform
from smalle.train.data.corpora import corpus_clips

GROUPS = {
    "anna": ["train", "train"],
    "ben": ["test", "test"],
    "carla": ["train", "dev"],
    "1867": ["train"],
    "dan": [""],
}


@pytest.fixture
def people(tmp_path, record):
    """Recordings of 0.5 s by speakers of several groups."""
    rows = []
    for speaker, groups in GROUPS.items():
        for number, group in enumerate(groups):
            name = f"{speaker}-{number}.wav"
            record(tmp_path / name)
            rows.append({"file_name": name, "text": f"By {speaker}.", "speaker": speaker, "duration": 0.5})
            rows[-1] |= {"group": group} if group else {}
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_held_out_people_are_left_out_and_the_others_can_be_read(people, tmp_path):
    select.main([str(people), str(tmp_path / "out"), "--exclude", "1867"])
    clips = list(corpus_clips(tmp_path / "out"))
    assert sorted(clip.speaker for clip in clips) == ["anna", "anna", "dan"]
    for clip in clips:
        with open(clip.path, "rb") as file:
            assert len(read_waveform(file, clip, 24000)) == 12000
        assert clip.text == f"By {clip.speaker}."


def test_hours_are_limited(people):
    assert len(select.select(people, [], max_hours=0.9 / 3600)) == 2


def test_nobody_left_is_an_error(people):
    with pytest.raises(ValueError, match="no recordings with transcripts without the speakers"):
        select.select(people, ["anna", "1867", "dan"])
