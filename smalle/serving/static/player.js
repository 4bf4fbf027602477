// Plays an mp3 in an <audio> element while it arrives.

const Source = window.ManagedMediaSource ?? window.MediaSource; // iPhones have the managed one alone
const MP3 = "audio/mpeg";

export class StreamingPlayer {
  constructor(audio) {
    this.audio = audio;
    this.parts = [];
    this.streams = Boolean(Source?.isTypeSupported(MP3));
    if (this.streams) this.ready = this.open();
  }

  async open() {
    this.source = new Source();
    this.audio.disableRemotePlayback = true; // the managed source asks for it
    this.audio.src = URL.createObjectURL(this.source);
    await new Promise((opened) => this.source.addEventListener("sourceopen", opened, { once: true }));
    URL.revokeObjectURL(this.audio.src);
    this.buffer = this.source.addSourceBuffer(MP3);
  }

  // Appends bytes and starts to play with the first of them.
  async append(data) {
    this.parts.push(data);
    if (!this.streams) return;
    await this.ready;
    await this.settled(() => this.buffer.appendBuffer(data));
    if (this.parts.length === 1) this.play();
  }

  // The whole file, as a Blob.
  async end() {
    const file = new Blob(this.parts, { type: MP3 });
    if (this.streams && this.source.readyState === "open") this.source.endOfStream();
    if (!this.streams) {
      this.audio.src = URL.createObjectURL(file);
      this.play();
    }
    return file;
  }

  play() {
    this.audio.play().catch(() => {}); // a browser may want a click first: the controls are there
  }

  settled(change) {
    return new Promise((done, failed) => {
      this.buffer.addEventListener("updateend", done, { once: true });
      this.buffer.addEventListener("error", () => failed(new Error("This browser cannot play the speech.")), { once: true });
      change();
    });
  }
}
