// The words of a speech: highlighted as they are said, and as a caption file.

const NEAR = 12; // words of the text among which the next one is looked for
const fold = (word) => word.toLowerCase().replace(/’/g, "'").replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "");

// How the words of a speech are written in its text, one after the other; "5" is not found and shown as it is said.
class Spelling {
  constructor(text) {
    this.unsaid = text.split(/\s+/);
  }

  of(word) {
    const place = this.unsaid.slice(0, NEAR).findIndex((written) => fold(written) === fold(word));
    return place < 0 ? word : this.unsaid.splice(0, place + 1).at(-1);
  }
}

export class Captions {
  constructor(text, place, audio) {
    this.spelling = new Spelling(text);
    this.place = place;
    this.audio = audio;
    this.words = [];
    place.replaceChildren();
    this.follow();
  }

  add(words) {
    for (const { word, start, end } of words) {
      const span = document.createElement("span");
      span.textContent = this.spelling.of(word);
      span.addEventListener("click", () => (this.audio.currentTime = start));
      this.words.push({ word: span.textContent, start, end, span });
      this.place.append(span, " ");
    }
  }

  // Marks the word that is said now; again with every frame, until the captions are closed.
  follow() {
    const time = this.audio.currentTime;
    for (const { span, start, end } of this.words) {
      const now = start <= time && time < end && !this.audio.ended;
      if (now && !span.classList.contains("now")) this.show(span);
      span.classList.toggle("now", now);
      span.classList.toggle("said", start <= time);
    }
    this.frame = requestAnimationFrame(() => this.follow());
  }

  // Scrolls inside of the captions, not the page.
  show(span) {
    const { place } = this;
    const below = span.offsetTop - place.offsetTop - place.clientHeight / 2;
    place.scrollTop = Math.max(0, below);
  }

  close() {
    cancelAnimationFrame(this.frame);
  }
}

const LONGEST = { characters: 42, pause: 0.6 };
const SENTENCE_END = /(?:[\p{L}\p{N}]{2}\.|[!?])["'”’)]*$/u; // not "J."
const ABBREVIATION = /^(?:Mrs?|Ms|Dr|St|Prof|No|Capt|Col|Gen|Rev)\.$/;

// A SubRip file of words {word, start, end}; sentences end a caption.
export function toSrt(words) {
  const lines = [];
  for (const word of words) {
    const line = lines.at(-1);
    const fits = line && line.text.length + word.word.length < LONGEST.characters;
    if (fits && !line.ended && word.start - line.end < LONGEST.pause) {
      line.text += ` ${word.word}`;
      line.end = word.end;
    } else {
      lines.push({ text: word.word, start: word.start, end: word.end });
    }
    lines.at(-1).ended = SENTENCE_END.test(word.word) && !ABBREVIATION.test(word.word);
  }
  return lines.map((x, n) => `${n + 1}\n${stamp(x.start)} --> ${stamp(x.end)}\n${x.text}\n`).join("\n");
}

function stamp(seconds) {
  const milliseconds = Math.round(seconds * 1000);
  const time = new Date(milliseconds).toISOString().slice(11, 23);
  return time.replace(".", ",");
}
