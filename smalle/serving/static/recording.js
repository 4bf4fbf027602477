// Recordings of a microphone, and sound files, as wav files that the server reads.

const RATE = 24000;

// Records until `stop` is called on what this resolves to; that resolves to a wav.
export async function startRecording() {
  if (!navigator.mediaDevices) throw new Error("Browsers record only on https:// and localhost: choose a file.");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true }).catch(() => {
    throw new Error("There is no microphone, or this page may not use it: choose a file.");
  });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.start();
  const stopped = new Promise((done) => recorder.addEventListener("stop", done, { once: true }));
  return {
    async stop() {
      recorder.stop();
      await stopped;
      for (const track of stream.getTracks()) track.stop();
      return toWav(new Blob(parts, { type: recorder.mimeType }));
    },
  };
}

// A mono wav of any sound that the browser reads; the file itself, for the server to judge, where it cannot.
export async function toWav(file) {
  const context = new OfflineAudioContext(1, 1, RATE); // decodes to this rate
  let sound;
  try {
    sound = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    return file;
  }
  const channels = Array.from({ length: sound.numberOfChannels }, (_, n) => sound.getChannelData(n));
  const samples = channels[0].map((_, n) => channels.reduce((sum, x) => sum + x[n], 0) / channels.length);
  return wavFile(samples);
}

function wavFile(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (position, value) => [...value].forEach((c, n) => view.setUint8(position + n, c.charCodeAt(0)));
  text(0, "RIFF");
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // mono
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  samples.forEach((x, n) => view.setInt16(44 + 2 * n, 32767 * Math.max(-1, Math.min(1, x)), true));
  return new Blob([withSizes(view.buffer)], { type: "audio/wav" });
}

// A wav whose header names its sizes; the header of a stream cannot.
export function withSizes(buffer) {
  const view = new DataView(buffer);
  view.setUint32(4, buffer.byteLength - 8, true);
  view.setUint32(40, buffer.byteLength - 44, true);
  return buffer;
}
