// The server: its state, what a picture would cost, and answers as they come.

import { $ } from "./dom.js";

const KEY = "ayaedge-key";

export class ApiError extends Error {
  constructor(message, { code = null, status = 0 } = {}) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

let asking = null;

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    const form = dialog.querySelector("form");
    $("key-wrong").hidden = !sessionStorage.getItem(KEY);
    const take = (event) => {
      event.preventDefault();
      form.removeEventListener("submit", take);
      sessionStorage.setItem(KEY, $("key-text").value.trim());
      dialog.close();
      asking = null;
      resolve();
    };
    form.addEventListener("submit", take);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.showModal();
  });
  return asking;
}

async function request(path, options = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: headers() });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not answer. Is ayaedge serve still running?");
    }
    if (response.status === 401) {
      await askForKey();
      continue;
    }
    if (response.ok || path === "/health") return response;
    const body = await response.json().catch(() => ({}));
    const wait = response.headers.get("retry-after");
    const message = body.error?.message ?? `The server answered with status ${response.status}.`;
    throw new ApiError(wait ? `${message} (in about ${wait} s)` : message, { code: body.error?.code, status: response.status });
  }
}

const post = (path, body, signal) => request(path, { method: "POST", body: JSON.stringify(body), signal });

export const health = async () => (await request("/health")).json();
export const modelName = async () => (await (await request("/v1/models")).json()).data[0].id;
export const plan = async (body, signal) => (await post("/v1/plan", body, signal)).json();

// Yields {progress}, {text}, and at the end {finish, usage, timings, tiles}.
export async function* answer(body, signal) {
  const wanted = { stream: true, stream_options: { include_usage: true }, progress: true };
  const response = await post("/v1/chat/completions", { ...body, ...wanted }, signal);
  const end = {};
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      yield end;
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, { code: chunk.error.code });
    if (chunk.progress) yield { progress: chunk.progress };
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) end.finish = choice.finish_reason;
    if (chunk.timings) Object.assign(end, { usage: chunk.usage, timings: chunk.timings, tiles: chunk.tiles });
  }
  throw new ApiError("The server ended the answer before it was whole.");
}

async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection to the server was lost.");
  } finally {
    reader.releaseLock();
  }
}
