// Requests to the server. Paths are relative, so that the page also works behind a proxy's prefix.

function headers(more = {}) {
  const key = sessionStorage.getItem("api-key");
  return key ? { Authorization: `Bearer ${key}`, ...more } : more;
}

// A response; an Error with the server's message where there is none.
async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `The server answered with status ${response.status}.`);
}

export const getHealth = async () => (await request("health")).json();
export const getVoices = async () => (await request("v1/audio/voices")).json();
export const deleteVoice = (id) => request(`v1/audio/voices/${encodeURIComponent(id)}`, { method: "DELETE" });

export async function createVoice(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return (await request("v1/audio/voices", { method: "POST", body })).json();
}

export function requestSpeech(speech, signal) {
  const body = JSON.stringify({ model: "tts-1", ...speech });
  return request("v1/audio/speech", { method: "POST", body, signal, headers: { "Content-Type": "application/json" } });
}

// Yields {data: bytes of an mp3} and {words: [{word, start, end}]} while the server speaks.
export async function* streamSpeech(speech, signal) {
  const events = { response_format: "mp3", stream_format: "sse", timestamp_granularities: ["word"] };
  const response = await requestSpeech({ ...speech, ...events }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  for (let part; !(part = await reader.read()).done; ) {
    const lines = (unread + part.value).split("\n\n");
    unread = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line.slice("data: ".length));
      if (event.type === "error") throw new Error(event.error.message);
      if (event.words) yield { words: event.words };
      if (event.audio) yield { data: Uint8Array.from(atob(event.audio), (c) => c.charCodeAt(0)) };
    }
  }
}
