import { createVoice, deleteVoice, getHealth, getVoices, requestSpeech, streamSpeech } from "./api.js";
import { Captions, toSrt } from "./captions.js";
import { StreamingPlayer } from "./player.js";
import { startRecording, toWav, withSizes } from "./recording.js";

const SAMPLE = "Hello! This is how I sound when I read a sentence to you.";
const LONGEST_RECORDING = 15; // seconds; then it stops by itself
const at = (id) => document.getElementById(id);

function say(message) {
  at("status").textContent = message;
  at("error").textContent = "";
}

function fail(error) {
  at("status").textContent = "";
  at("error").textContent = error.message;
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- voices

const chosenVoice = () => document.querySelector("input[name=voice]:checked")?.value;

function button(text, label, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.title = label;
  made.addEventListener("click", action);
  return made;
}

function voiceCard({ id, name, type }, chosen) {
  const card = document.createElement("div");
  const label = document.createElement("label");
  const radio = document.createElement("input");
  const title = document.createElement("span");
  card.className = "voice";
  Object.assign(radio, { type: "radio", name: "voice", value: id, checked: id === chosen });
  title.textContent = title.title = name;
  label.append(radio, title);
  card.append(label, button("▶", `Hear ${name}`, () => speak({ input: SAMPLE, voice: id, speed: 1 })));
  if (type !== "preset") card.append(button("✕", `Delete ${name}`, () => removeVoice(id, name)));
  return card;
}

async function showVoices(chosen = chosenVoice()) {
  const { data, default: standard } = await getVoices();
  const wanted = data.some((voice) => voice.id === chosen) ? chosen : (standard ?? data[0]?.id);
  at("voices").replaceChildren(...data.map((voice) => voiceCard(voice, wanted)));
}

async function removeVoice(id, name) {
  if (!confirm(`Delete the voice ${name}?`)) return;
  try {
    await deleteVoice(id);
    await showVoices();
    say(`The voice ${name} was deleted.`);
  } catch (error) {
    fail(error);
  }
}

// --- speech

let current = null; // the speech that is made or was made last: {speech, abort, captions, file}

async function speak(speech) {
  stop();
  const abort = new AbortController();
  const captions = new Captions(speech.input, at("words"), at("audio"));
  const mine = (current = { speech, abort, captions, file: null });
  at("result").hidden = false;
  showBusy(true);
  say("Speaking…");
  try {
    const player = new StreamingPlayer(at("audio"));
    for await (const { data, words } of streamSpeech(speech, abort.signal)) {
      if (words) captions.add(words);
      if (data) await player.append(data);
    }
    mine.file = await player.end();
    say("The speech is complete.");
  } catch (error) {
    if (abort.signal.aborted) return; // somebody pressed Stop, or another speech began
    at("result").hidden = !at("audio").duration;
    fail(error);
  } finally {
    if (mine === current) showBusy(false);
  }
}

function stop() {
  current?.abort.abort();
  current?.captions.close();
  at("audio").pause();
}

function showBusy(busy) {
  at("speak").textContent = busy ? "Stop" : "Speak";
  at("speak").classList.toggle("busy", busy);
  for (const format of ["wav", "mp3", "srt"]) at(`download-${format}`).disabled = busy || !current?.file;
}

function onSpeak(event) {
  event.preventDefault();
  if (at("speak").classList.contains("busy")) {
    stop();
    showBusy(false);
    say("Stopped.");
    return;
  }
  const input = at("text").value.trim();
  if (!input) {
    fail(new Error("Type what shall be said."));
    at("text").focus();
    return;
  }
  speak({ input, voice: chosenVoice(), speed: Number(at("speed").value) });
}

async function downloadWav() {
  try {
    say("The wav is being made…");
    const response = await requestSpeech({ ...current.speech, response_format: "wav" });
    download(new Blob([withSizes(await response.arrayBuffer())], { type: "audio/wav" }), "speech.wav");
    say("The wav is complete.");
  } catch (error) {
    fail(error);
  }
}

// --- one's own voice

let recorder = null;
let sample = null; // the recording to send

function takeSample(file, what) {
  sample = file;
  at("recording").textContent = what;
  at("preview").src = URL.createObjectURL(file);
  at("preview").hidden = false;
  at("clone-error").textContent = "";
}

async function takeFile(file) {
  if (file) takeSample(await toWav(file), `Recording: ${file.name}`);
}

async function toggleRecording() {
  try {
    if (recorder) {
      const running = recorder;
      recorder = null;
      takeSample(await running.stop(), "Recording: from the microphone");
    } else {
      recorder = await startRecording();
      at("recording").textContent = `Recording… it stops after ${LONGEST_RECORDING} s.`;
      const mine = recorder;
      setTimeout(() => mine === recorder && toggleRecording(), LONGEST_RECORDING * 1000);
    }
  } catch (error) {
    at("clone-error").textContent = error.message;
  }
  at("record").setAttribute("aria-pressed", Boolean(recorder));
  at("record").textContent = recorder ? "Stop" : "Record";
}

async function onClone(event) {
  event.preventDefault();
  at("clone-error").textContent = "";
  if (!sample) {
    at("clone-error").textContent = "Record something or choose a file first.";
    return;
  }
  showPreparing(true);
  try {
    const fields = { name: at("name").value, consent: "yes" };
    const voice = await createVoice({ ...fields, audio_sample: sample });
    at("clone").reset();
    at("preview").hidden = true;
    at("recording").textContent = "No recording yet.";
    sample = null;
    await showVoices(voice.id);
    say(`The voice ${voice.name} is ready.`);
  } catch (error) {
    at("clone-error").textContent = error.message;
  } finally {
    showPreparing(false);
  }
}

function showPreparing(preparing) {
  at("create").disabled = preparing;
  at("preparing").hidden = !preparing;
  at("clone-status").textContent = preparing
    ? "The voice is being prepared, for 10 to 20 seconds or, on a busy server, longer. You can go on listening."
    : "";
}

// --- the page

function listen() {
  at("speech").addEventListener("submit", onSpeak);
  at("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("speech").requestSubmit();
  });
  at("text").addEventListener("input", showCount);
  at("speed").addEventListener("input", () => (at("speed-value").textContent = `${at("speed").value}×`));
  at("download-wav").addEventListener("click", downloadWav);
  at("download-mp3").addEventListener("click", () => download(current.file, "speech.mp3"));
  at("download-srt").addEventListener("click", () => {
    download(new Blob([toSrt(current.captions.words)], { type: "application/x-subrip" }), "speech.srt");
  });
  at("record").addEventListener("click", toggleRecording);
  at("file").addEventListener("change", () => takeFile(at("file").files[0]));
  at("clone").addEventListener("submit", onClone);
  const drop = at("drop");
  drop.addEventListener("dragover", (event) => (event.preventDefault(), drop.classList.add("over")));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    takeFile(event.dataTransfer.files[0]);
  });
  at("key").value = sessionStorage.getItem("api-key") ?? "";
  at("key-form").addEventListener("submit", (event) => event.preventDefault());
  at("key").addEventListener("change", () => {
    sessionStorage.setItem("api-key", at("key").value);
    showVoices().then(() => say(""), fail);
  });
}

function showCount() {
  at("count").textContent = `${at("text").value.length} characters`;
}

listen();
showCount();
try {
  const { needs_key, can } = await getHealth();
  at("key-form").hidden = !needs_key;
  at("own-voice").hidden = !can.clone;
  at("download-srt").hidden = !can.words;
  await showVoices();
} catch (error) {
  fail(error);
}
