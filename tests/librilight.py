"""A small Libri-light and its Libriheavy manifest, with the layout and the field names of the real ones."""

import gzip
import json
import tarfile

import numpy as np
import soundfile

RATE = 16000
BOOK_META = {
    "id": "319",
    "title": "History of Holland",
    "description": "",
    "url_text_source": "",
    "language": "English",
    "copyright_year": "1922",
    "num_sections": "2",
    "url_rss": "",
    "url_zip_file": "",
    "url_project": "",
    "url_librivox": "",
    "url_other": "",
    "totaltime": "0:01:00",
    "totaltimesecs": 60,
    "authors": [{"id": "1", "first_name": "George", "last_name": "Edmundson", "dob": "1848", "dod": "1930"}],
    "genre": ["*Non-fiction", "History"],
    "Dramatic Readings": False,
    "meta_genre": "Literature",
}


def speech(voiced, seconds, pitch):
    """A hum during the voiced stretches, faint noise elsewhere: float (L,)."""
    time = np.arange(round(seconds * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * pitch * harmonic * time) / harmonic for harmonic in range(1, 6))
    inside = np.any([(start <= time) & (time < end) for start, end in voiced], 0)
    return 0.1 * hum * inside + 0.001 * np.random.default_rng(round(pitch)).normal(size=len(time))


def make_librilight(
    folder,
    speakers=("100", "1006", "960"),
    books=("a_book_librivox_64kb_mp3",),
    chapters=2,
    stretches=4,
    subset="small",
):
    """Writes FOLDER/subset/speaker/book/*.flac and *.json; gives the voiced stretches of each recording by its name."""
    voiced = {}
    for number, speaker in enumerate(speakers):
        for book in books:
            path = folder / subset / speaker / book
            path.mkdir(parents=True)
            for chapter in range(chapters):
                ends = 0.2 + np.cumsum([0.6 + 0.1 * n for n in range(stretches)]) + 0.3 * np.arange(stretches)
                activity = [[round(end - 0.6 - 0.1 * n, 3), round(end, 3)] for n, end in enumerate(ends.tolist())]
                name, pitch = f"{chapter + 1:02d}_{book[:6]}_64kb", 90 + 25 * number + 7 * chapter
                soundfile.write(path / f"{name}.flac", speech(activity, ends[-1] + 0.2, pitch), RATE, subtype="PCM_16")
                snr = float("nan") if chapter == 0 else 5.391 + number
                meta = {"speaker": speaker, "book_meta": BOOK_META, "snr": snr, "voice_activity": activity}
                (path / f"{name}.json").write_text(json.dumps(meta))
                voiced[f"{subset}/{speaker}/{book}/{name}"] = activity
    return voiced


def make_cuts(path, voiced, words=("one", "two", "three", "four", "five", "six")):
    """A manifest of Libriheavy with a cut for each voiced stretch: texts by the ids of the cuts."""
    texts = {}
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for name, activity in voiced.items():
            for number, (start, end) in enumerate(activity):
                first, second = words[number % len(words)].title(), words[len(texts) % len(words)]
                cut, text = f"{name}_{number}", f"{first},  {second}."
                texts[cut] = " ".join(text.split())
                duration, speaker = round(end - start, 3), name.split("/")[1]
                custom = {"texts": [text, text.upper()], "pre_texts": ["", ""], "begin_byte": 0, "end_byte": 9}
                supervision = {
                    "id": cut,
                    "recording_id": name,
                    "start": 0,
                    "duration": duration,
                    "channel": 0,
                    "language": "English",
                    "speaker": speaker,
                    "custom": custom,
                }
                source = {"type": "file", "channels": [0], "source": f"download/librilight/{name}.flac"}
                recording = {
                    "id": name,
                    "sources": [source],
                    "sampling_rate": RATE,
                    "num_samples": 0,
                    "duration": 0,
                    "channel_ids": [0],
                }
                file.write(
                    json.dumps(
                        {
                            "id": cut,
                            "start": start,
                            "duration": duration,
                            "channel": 0,
                            "supervisions": [supervision],
                            "recording": recording,
                            "custom": {"text_path": "text.txt"},
                            "type": "MonoCut",
                        }
                    )
                    + "\n"
                )
    return texts


def make_tar(path, folder):
    """The archive of the subsets in a folder, as it is downloaded."""
    with tarfile.open(path, "w") as archive:
        for subset in sorted(folder.iterdir()):
            archive.add(subset, subset.name)
    return path
