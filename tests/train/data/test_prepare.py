"""Preparation in shards: every clip once, whoever works and whenever somebody is killed."""

import concurrent.futures
import difflib
import json
import multiprocessing
import os
import shutil
import signal
import time

import datasets
import numpy as np
import psutil
import pytest
import torch
import transformers
from pyarrow.parquet import read_table
from smalle.train.data.audio import Clip, read_audio
from smalle.train.data.dataset import CodesDataset, shards
from smalle.train.data.prepare import encode, make_batches, read_ahead

from smalle.audio_smalle import write_wav
from smalle.codec_smalle import load_codec
from tests.librilight import make_cuts, make_librilight, make_tar
from train.data import prepare

SPLITS = "train", "eval", "test"


def call(*arguments, **environment):
    """smalle.train.data.prepare in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        for name, value in environment.items():
            patch.setenv(name, str(value))
        prepare.main(list(map(str, arguments)))


def start(*arguments, **environment):
    """smalle.train.data.prepare in a process of its own, which is this one's copy: nothing has to be imported again."""
    process = multiprocessing.get_context("fork").Process(target=call, args=arguments, kwargs=environment)
    process.start()
    return process


def rows(out):
    """split -> rows of all its shards."""
    return {
        split: [row for path in sorted(out.glob(f"{split}-*.parquet")) for row in read_table(path).to_pylist()]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_codec):
    """A folder with a Libri-light of eight speakers, its .tar, its manifest and a codec; and the texts by source."""
    work = tmp_path_factory.mktemp("work")
    voiced = make_librilight(work / "unlab", speakers=[str(100 + n) for n in range(8)])
    texts = make_cuts(work / "cuts.jsonl.gz", voiced)
    make_tar(work / "small.tar", work / "unlab")
    tiny_codec.save_pretrained(work / "codec")
    return work, texts


@pytest.fixture(scope="module")
def arguments(work):
    """What all runs of the preparation here are asked for."""
    work, _ = work
    return [
        work / "small.tar",
        "--libriheavy-cuts",
        work / "cuts.jsonl.gz",
        "--codec",
        work / "codec",
        "--eval-speakers",
        2,
        "--test-speakers",
        "101",
        "--shard-hours",
        0.003,
        "--threads",
        1,
        "--device",
        "cpu",
    ]


@pytest.fixture(scope="module")
def prepared(arguments, tmp_path_factory):
    """Output of one process, all at once."""
    out = tmp_path_factory.mktemp("prepared") / "codes"
    call(*arguments, "--output", out)
    return out


def test_every_clip_is_prepared_once_with_its_codes(work, prepared):
    work, texts = work
    found = [row for split in rows(prepared).values() for row in split]
    assert {row["id"]: row["text"] for row in found} == texts and len(found) == len(texts)
    assert len(list(prepared.glob("*.parquet"))) > 5
    codec, row = load_codec(str(work / "codec")), found[0]
    name, number = row["id"].rsplit("_", 1)
    wave = read_audio(work / "unlab" / f"{name}.flac", 24000)
    activity = json.loads((work / "unlab" / f"{name}.json").read_text())["voice_activity"][int(number)]
    frames = len(row["codes"]) // 3
    assert frames == -(-round((activity[1] - activity[0]) * 24000) // codec.hop_length)
    start = round(activity[0] * 24000)
    expected = codec.encode(torch.from_numpy(wave[None, start : start + round(row["duration"] * 24000)]))[0].T
    same = (torch.tensor(row["codes"]).view(-1, 3) == expected)[1:-1]
    assert same.float().mean() > 0.9  # but for the resampler, who hears no neighbours
    assert not (prepared / "problems.jsonl").read_text()


def test_speakers_of_evaluation_and_test_are_never_in_training(prepared):
    speakers = {split: {row["speaker"] for row in part} for split, part in rows(prepared).items()}
    assert speakers["test"] == {"101"} and len(speakers["eval"]) == 2 and len(speakers["train"]) == 5
    assert not speakers["train"] & (speakers["eval"] | speakers["test"]) and not speakers["eval"] & speakers["test"]


def test_datasets_reads_it_streaming_or_not(prepared, tmp_path):
    whole = datasets.load_dataset(str(prepared), cache_dir=str(tmp_path))
    found = rows(prepared)
    assert {split: len(part) for split, part in whole.items()} == {split: len(part) for split, part in found.items()}
    assert whole["train"].features["codes"] == datasets.List(datasets.Value("uint16"))
    stream = datasets.load_dataset(str(prepared), split="train", streaming=True)
    assert next(iter(stream))["codes"] == found["train"][0]["codes"]


def test_training_reads_shards_and_keeps_them_on_disk_where_asked(prepared, tmp_path):
    found = rows(prepared)["train"]
    assert len(shards(prepared / "train.parquet")) > 1
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        dataset = CodesDataset(prepared / "train.parquet", 3, 50.0, cache)
        assert len(dataset) == len(found) and dataset.speakers == [row["speaker"] for row in found]
        for index, row in enumerate(found):
            text, codes, *_ = dataset[(index,)]
            assert text == row["text"] and np.array_equal(codes.flatten(), row["codes"])
    with pytest.raises(ValueError, match="must match the codec"):
        CodesDataset(prepared / "train.parquet", 4, 75.0)
    with pytest.raises(ValueError, match="nor shards of that name"):
        CodesDataset(prepared / "dev.parquet", 3, 50.0)
    for name in "train.parquet", "train-00000.parquet":
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="delete the old one"):
        shards(tmp_path / "train.parquet")


def test_processes_that_would_do_the_same_are_refused(arguments, tmp_path):
    with pytest.raises(ValueError, match="use --engine ray"):
        call(*arguments, "--output", tmp_path / "codes", RANK=0, WORLD_SIZE=2)


def test_a_killed_run_goes_on_with_nothing_lost_and_nothing_twice(arguments, prepared, tmp_path):
    out = tmp_path / "codes"
    process = start(*arguments, "--output", out)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert 2 <= len(done) < len(list(prepared.glob("*.parquet"))) and not (out / "README.md").exists()
    call(*arguments, "--output", out)
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    assert rows(out) == rows(prepared)


@pytest.fixture(scope="module")
def ray_of_two_cores():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def files(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_ray_writes_the_files_of_one_process_although_a_worker_is_killed(
    arguments, prepared, tmp_path, ray_of_two_cores
):
    out = tmp_path / "codes"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        run = pool.submit(call, *arguments, "--output", out, "--engine", "ray")
        while not list(out.glob("*.parquet")) and not run.done():
            time.sleep(0.001)
        workers = [x for x in psutil.Process().children(recursive=True) if "MapWorker" in " ".join(x.cmdline())]
        workers[0].kill()
        done = len(list(out.glob("*.parquet")))
        run.result(300)
    assert 1 <= done < len(list(prepared.glob("*.parquet")))  # it died in the middle
    assert files(out) == files(prepared)


def test_a_plan_that_was_not_finished_is_made_again(arguments, prepared, tmp_path):
    (tmp_path / "codes" / "plan.partial").mkdir(parents=True)
    (tmp_path / "codes" / "plan.partial" / "train-00099.jsonl").write_text("{")
    call(*arguments, "--output", tmp_path / "codes")
    assert rows(tmp_path / "codes") == rows(prepared)


def test_unreadable_files_are_listed_with_their_reason_and_skipped(work, tmp_path):
    work, _ = work
    voiced = make_librilight(tmp_path / "unlab", speakers=("7", "8", "9"), chapters=1)
    texts = make_cuts(tmp_path / "cuts.jsonl.gz", voiced)
    flacs = sorted((tmp_path / "unlab").rglob("*.flac"))
    flacs[0].write_bytes(b"nothing")
    flacs[1].write_bytes(flacs[1].read_bytes()[: flacs[1].stat().st_size // 2])
    call(
        tmp_path / "unlab",
        "--libriheavy-cuts",
        tmp_path / "cuts.jsonl.gz",
        "--codec",
        work / "codec",
        "--output",
        tmp_path / "codes",
        "--eval-clips",
        1,
        "--threads",
        1,
    )
    found = rows(tmp_path / "codes")
    good = {row["id"] for part in found.values() for row in part}
    problems = [json.loads(line) for line in (tmp_path / "codes" / "problems.jsonl").read_text().splitlines()]
    bad = {problem["id"] for problem in problems}
    assert good | bad == set(texts) and not good & bad and all(problem["reason"] for problem in problems)
    names = list(voiced)
    assert {source for source in texts if source.startswith(names[0])} <= bad
    assert {source for source in texts if source.startswith(names[2])} <= good
    assert any(source.startswith(names[1]) for source in bad)


def test_other_wishes_for_a_folder_that_was_begun_are_refused(arguments, prepared):
    with pytest.raises(ValueError, match="a different max_seconds"):
        call(*arguments, "--output", prepared, "--max-seconds", 20)
    with pytest.raises(ValueError, match="no speakers named"):
        call(*arguments, "--output", prepared.parent / "other", "--test-speakers", "nobody")
    with pytest.raises(ValueError, match="none would be left"):
        call(*arguments, "--output", prepared.parent / "other", "--eval-speakers", 7)


def test_a_corpus_that_is_all_evaluation_is_refused(work, tmp_path):
    work, _ = work
    corpus = tmp_path / "few"
    corpus.mkdir()
    for name in "ab":
        shutil.copy(next(work.rglob("*.flac")), corpus / f"{name}.flac")
        (corpus / f"{name}.txt").write_text("Hello.")
    with pytest.raises(ValueError, match="--eval-clips 600: the corpus has 2 clips"):
        call(corpus, "--codec", work / "codec", "--output", tmp_path / "codes", "--threads", 1)
    assert not (tmp_path / "codes" / "plan").exists()


def test_a_recognizer_writes_down_what_has_no_text(work, tmp_path):
    work, _ = work
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: n for n, letter in enumerate(letters)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    processor = transformers.Wav2Vec2Processor(transformers.Wav2Vec2FeatureExtractor(), tokenizer)
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            vocab_size=len(letters),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8, 8),
            conv_stride=(20, 16),
            conv_kernel=(40, 32),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            pad_token_id=0,
        )
    ).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    model.lm_head.bias.data[:5] = -100  # letters alone
    for part in (processor, model):
        part.save_pretrained(tmp_path / "asr")
    make_librilight(tmp_path / "unlab", speakers=("7", "8"), chapters=1)
    call(
        tmp_path / "unlab",
        "--asr",
        tmp_path / "asr",
        "--codec",
        work / "codec",
        "--output",
        tmp_path / "codes",
        "--eval-speakers",
        "7",
        "--threads",
        1,
    )
    found = rows(tmp_path / "codes")
    assert [row["speaker"] for row in found["eval"]] == ["7"] and [row["speaker"] for row in found["train"]] == ["8"]
    (row,), wave = found["train"], read_audio(next((tmp_path / "unlab" / "small" / "8").rglob("*.flac")), 16000)
    start, seconds = int(row["id"].rsplit("_", 1)[1]) / 1000, row["duration"]
    wave = wave[round(start * 16000) : round((start + seconds) * 16000)]
    inputs = processor(wave, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        heard = processor.batch_decode(model(**inputs).logits.argmax(-1))[0]
    same = difflib.SequenceMatcher(None, heard, row["text"]).ratio()
    assert len(row["text"]) > 3 and same > 0.7  # it was resampled to and fro


def test_another_speed_is_another_speaker(work, tmp_path):
    folder, tone = tmp_path / "tones", np.sin(2 * np.pi * 300 * np.arange(24000) / 24000).astype(np.float32) / 2
    lines = []
    folder.mkdir()
    for name in "anna", "ben":
        write_wav(folder / f"{name}.wav", torch.from_numpy(tone), 24000)
        lines.append({"file_name": f"{name}.wav", "text": "la la", "speaker": name, "words": [[0.1, 0.4], [0.5, 0.8]]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call(
        folder,
        "--codec",
        work[0] / "codec",
        "--output",
        tmp_path / "codes",
        "--eval-speakers",
        "ben",
        "--threads",
        1,
        "--speeds",
        1,
        1.25,
    )
    found = rows(tmp_path / "codes")
    assert [row["speaker"] for row in found["eval"]] == ["ben"]
    slow, fast = sorted(found["train"], key=lambda row: row["speaker"])
    assert (slow["speaker"], fast["speaker"]) == ("anna", "anna x1.25")
    assert (slow["duration"], fast["duration"]) == (1.0, pytest.approx(0.8))
    assert np.allclose(fast["words"], np.array(slow["words"]) / 1.25)
    clip = Clip("anna", str(folder / "anna.wav"), "anna").at_speed(1.25)
    ((_, wave),) = read_ahead([clip], 24000, threads=1)
    assert np.abs(np.fft.rfft(wave)).argmax() / (len(wave) / 24000) == pytest.approx(375, abs=2)
    with pytest.raises(ValueError, match="do not sound human"):
        call(folder, "--codec", work[0] / "codec", "--output", tmp_path / "other", "--speeds", 3)


def test_batches_stay_within_their_budget_and_hold_little_back():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 50, 300).tolist()
    seen, most = 0, 0

    def pairs():
        nonlocal seen
        for index, length in enumerate(lengths):
            seen += length
            yield index, np.zeros(length)

    given, out = [], 0
    for batch in make_batches(pairs(), 200):
        assert len(batch) == 1 or len(batch) * max(len(wave) for _, wave in batch) <= 200
        most = max(most, seen - out)
        out += sum(len(wave) for _, wave in batch)
        given += [index for index, _ in batch]
    assert sorted(given) == list(range(300)) and most <= 5 * 200 + 50


def test_codes_of_a_batch_are_those_of_each_waveform(tiny_codec):
    waves = [np.random.default_rng(n).normal(0, 0.1, 500 + 700 * n).astype(np.float32) for n in range(4)]
    for wave, codes in zip(waves, encode(tiny_codec, waves)):
        assert torch.equal(codes, encode(tiny_codec, [wave])[0])
