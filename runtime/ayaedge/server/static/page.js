// The page: what is asked, what is kept, and what each button does.

import { answer, health, modelName } from "./api.js";
import { $, announce, h, icon, iconButton } from "./dom.js";
import { Pictures, filesOf, takePhoto } from "./pictures.js";
import { SAMPLES } from "./samples.js";
import { SchemaForm } from "./schema.js";
import { Stage } from "./stage.js";
import { openStore, sweep } from "./store.js";
import { Thread } from "./thread.js";
import { addTurn, markdown, messages, newConversation, path, upTo } from "./tree.js";

const LANGUAGE = "ayaedge-language";
const ANOTHER = 0.7; // the temperature of another answer: at 0 it would be the same one
const STATES = { ready: "ready", busy: "at work", loading: "is being loaded", asleep: "asleep until the next question" };

class App {
  constructor(store) {
    this.store = store;
    this.pictures = new Pictures(store);
    this.conversation = newConversation();
    this.thread = new Thread($("thread"), this);
    this.stage = new Stage($("stage"), this.pictures, () => this.refresh());
    this.schema = new SchemaForm($("form"));
    this.dataUrl = (picture) => this.pictures.dataUrl(picture);
    this.running = null;
    this.model = null;
  }

  say(text) {
    announce(text);
  }

  // What is shown and what may be pressed, by what there is.
  refresh() {
    const turns = path(this.conversation);
    $("welcome").hidden = turns.length > 0 || this.stage.held.length > 0;
    $("downloads").hidden = !turns.length;
    $("title").textContent = this.conversation.title || "New conversation";
    $("samples").hidden = turns.length > 0 || !this.stage.held.length;
    $("send").disabled = !$("question").value.trim();
    $("send").hidden = this.running !== null;
    $("stop").hidden = this.running === null;
  }

  async add(files) {
    for (const file of files) void this.stage.add(await this.pictures.take(file));
    if (files.length) $("question").focus();
    this.#down();
  }

  async ask() {
    const text = $("question").value.trim();
    if (!text || this.running) return;
    let schema = null;
    if (!$("form").hidden) {
      try {
        schema = this.schema.schema;
      } catch {
        return $("form").querySelector(".wrong").scrollIntoView();
      }
    }
    const last = path(this.conversation).at(-1);
    const failed = last?.role === "assistant" && !last.text ? this.conversation.turns[last.parent] : null;
    const carried = last?.code === "invalid_image" ? [] : failed?.pictures ?? [];
    const costs = this.stage.costs;
    const fresh = this.stage.held.map((picture, number) => ({ ...picture, cost: costs[number] }));
    const pictures = [...carried, ...fresh];
    if (fresh.length) this.conversation.maxTiles = this.stage.maxTiles;
    const question = addTurn(this.conversation, failed ? failed.parent : last?.id ?? null, "user", { text, pictures, json: schema });
    $("question").value = "";
    this.#fit();
    this.stage.clear();
    return this.#answer(question, {});
  }

  // An earlier question in other words: a branch beside it, with the same pictures.
  branch(turn, text) {
    if (this.running) return undefined;
    const question = addTurn(this.conversation, turn.parent, "user", { text, pictures: turn.pictures, json: turn.json });
    return this.#answer(question, {});
  }

  again(turn, another) {
    if (this.running) return undefined;
    const drawn = another ? { temperature: ANOTHER, seed: crypto.getRandomValues(new Uint32Array(1))[0] } : {};
    return this.#answer(this.conversation.turns[turn.parent], drawn);
  }

  show(turn, focus) {
    this.conversation.shown[turn.parent ?? "root"] = turn.id;
    void this.#keep();
    this.thread.render(focus);
  }

  async #answer(question, drawn) {
    const { conversation } = this;
    const turn = addTurn(conversation, question.id, "assistant", { state: "running", json: question.json, ...drawn });
    const stopping = new AbortController();
    this.running = stopping;
    location.hash = conversation.id;
    this.thread.render();
    this.refresh();
    this.#down();
    this.say("Asking.");
    void this.#keep(conversation);
    setTimeout(() => void this.#status(), 300);
    try {
      const body = await this.#body(conversation, question, drawn);
      await this.#follow(turn, answer(body, stopping.signal), question);
    } catch (error) {
      turn.state = error.name === "AbortError" ? "stopped" : "failed";
      if (turn.state === "failed") Object.assign(turn, { error: error.message, code: error.code });
    }
    this.running = null;
    await this.#keep(conversation);
    if (conversation === this.conversation) this.thread.render();
    this.refresh();
    this.#down();
    this.say(turn.error ?? (turn.state === "stopped" ? "Stopped." : `Answer: ${turn.text}`));
    setTimeout(() => void this.#status(), 500);
  }

  async #body(conversation, question, drawn) {
    const schema = question.json && { type: "json_schema", json_schema: { name: "answer", schema: question.json } };
    return {
      messages: await messages(upTo(conversation, question), this.dataUrl),
      ...(conversation.maxTiles ? { max_tiles: conversation.maxTiles } : {}),
      ...(schema ? { response_format: schema } : {}),
      ...drawn,
    };
  }

  async #follow(turn, stream, question) {
    let told = 0;
    for await (const news of stream) {
      if (news.progress) {
        if (news.progress.step === "vision") turn.read = news.progress.of;
        this.thread.progress(turn, news.progress);
        if (Date.now() - told > 5000) {
          told = Date.now();
          this.say($("thread").querySelector(".step")?.textContent ?? "");
        }
      } else if (news.text) {
        turn.text += news.text;
        this.thread.text(turn);
        this.#down();
      } else {
        Object.assign(turn, news, { state: "done" });
      }
    }
    const seen = upTo(this.conversation, question).some((one) => one.pictures?.length);
    turn.known = seen && !turn.read;
  }

  stop() {
    this.running?.abort();
    $("question").focus();
  }

  // --- what is kept ---

  async #keep(conversation = this.conversation) {
    await this.store.put(conversation).catch(() => {
      $("kept").textContent = "This browser has no room left: the conversation is not kept.";
    });
    await this.list();
  }

  async list() {
    const all = (await this.store.all()).sort((a, b) => b.updated - a.updated);
    const items = all.map((one) => {
      const current = one.id === this.conversation.id;
      const link = h("a", { href: `#${one.id}`, dir: "auto", "aria-current": current ? "page" : null }, one.title || "Untitled");
      return h("li", {}, link, iconButton("close", `Delete “${one.title}”`, () => void this.#forget(one.id)));
    });
    $("history").replaceChildren(...(items.length ? [h("ul", {}, ...items)] : []));
    $("forget").hidden = !items.length;
  }

  async open(id) {
    if (id === this.conversation.id) return;
    const found = id && (await this.store.all()).find((one) => one.id === id);
    if (id && id !== location.hash.slice(1)) return; // another was opened meanwhile
    this.running?.abort();
    this.conversation = found || newConversation();
    for (const turn of Object.values(this.conversation.turns)) if (turn.state === "running") turn.state = "stopped";
    this.stage.clear();
    this.thread.render();
    this.refresh();
    await this.list();
    if (found) this.#down();
  }

  async #forget(id) {
    await this.store.remove(id);
    await sweep(this.store, this.stage.held.map((one) => one.id));
    if (id === this.conversation.id) this.fresh();
    await this.list();
  }

  async forgetAll() {
    if (!confirm("Delete all conversations and their pictures from this browser?")) return;
    for (const one of await this.store.all()) await this.store.remove(one.id);
    await sweep(this.store);
    this.fresh();
    await this.list();
  }

  fresh() {
    history.pushState(null, "", location.pathname);
    void this.open(null);
    drawer(false);
    $("question").focus();
  }

  async download(kind) {
    const { conversation } = this;
    const text = kind === "md" ? await markdown(conversation, this.dataUrl) : JSON.stringify({ messages: await messages(path(conversation), this.dataUrl) }, null, 2);
    const url = URL.createObjectURL(new Blob([text], { type: kind === "md" ? "text/markdown" : "application/json" }));
    h("a", { href: url, download: `${conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation"}.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    formats(false);
  }

  // --- around it ---

  async #status() {
    let state;
    try {
      ({ status: state } = await health());
      if (state !== "loading" && this.model === null) {
        this.model = await modelName();
        $("small").hidden = this.model !== "demo";
        this.samples();
      }
      $("status").textContent = `${this.model ?? "The model"} ${STATES[state]}`;
    } catch {
      state = "gone";
      $("status").textContent = "The server does not answer";
    }
    $("dot").className = state;
    return state;
  }

  async watch() {
    for (;;) {
      const state = document.hidden ? "ready" : await this.#status();
      await new Promise((resolve) => setTimeout(resolve, state === "loading" || state === "gone" ? 1500 : 10_000));
    }
  }

  samples() {
    const wanted = localStorage.getItem(LANGUAGE) ?? navigator.language.slice(0, 2);
    const language = wanted in SAMPLES ? wanted : "en";
    const choices = Object.entries(SAMPLES).map(([code, { name }]) => h("option", { value: code, lang: code, selected: code === language }, name));
    const select = h("select", { "aria-label": "Language of the sample questions", onchange: () => {
      localStorage.setItem(LANGUAGE, select.value);
      this.samples();
      $("samples").querySelector("select").focus();
    } }, ...choices);
    const questions = SAMPLES[language][this.model === "demo" ? "demo" : "any"];
    const chips = questions.map((text) => h("button", { type: "button", class: "chip", lang: language, dir: "auto", onclick: () => {
      $("question").value = text;
      void this.ask();
    } }, text));
    $("samples").replaceChildren(select, ...chips);
  }

  #fit() {
    const area = $("question");
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight, 200)}px`;
  }

  #down() {
    requestAnimationFrame(() => $("scroll").scrollTo(0, $("scroll").scrollHeight));
  }

  typed() {
    this.#fit();
    this.refresh();
  }
}

function drawer(open) {
  document.body.classList.toggle("drawer", open);
  $("menu").setAttribute("aria-expanded", String(open));
  $("veil").hidden = !open;
  settleSide();
  if (open) $("new").focus();
}

// A drawer that is shut cannot be tabbed into.
function settleSide() {
  $("side").inert = getComputedStyle($("menu")).display !== "none" && !document.body.classList.contains("drawer");
}

function formats(open) {
  $("formats").hidden = !open;
  $("download").setAttribute("aria-expanded", String(open));
}

function intake(app) {
  const ways = {
    pick: () => $("file").click(),
    camera: async () => {
      const photo = await takePhoto();
      if (photo) await app.add([photo]);
    },
    sample: async () => app.add([new File([await (await fetch("/static/sample.png")).blob()], "sample.png", { type: "image/png" })]),
  };
  for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => void ways[button.dataset.do]());
  for (const input of [$("file"), $("photo")]) {
    input.addEventListener("change", async () => {
      await app.add(Array.from(input.files));
      input.value = "";
    });
  }
  document.addEventListener("paste", (event) => {
    const files = filesOf(event.clipboardData);
    if (!files.length) return;
    event.preventDefault();
    void app.add(files);
  });
  const over = (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    $("dropping").hidden = event.type === "dragleave" && event.relatedTarget === null;
  };
  for (const name of ["dragenter", "dragover", "dragleave"]) document.addEventListener(name, over);
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("dropping").hidden = true;
    void app.add(filesOf(event.dataTransfer));
  });
}

function buttons(app) {
  const question = $("question");
  $("menu").append(icon("menu"));
  $("download").append(icon("download"));
  $("send").append(icon("send"));
  $("stop").append(icon("stop"));
  const [pick, camera] = $("composer").querySelectorAll("[data-do]");
  pick.append(icon("picture"));
  camera.append(icon("camera"));
  question.addEventListener("input", () => app.typed());
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void app.ask();
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    void app.ask();
  });
  $("stop").addEventListener("click", () => app.stop());
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // what stands behind the # is a conversation's
    question.focus();
  });
  $("json").addEventListener("click", () => {
    $("form").hidden = !$("form").hidden;
    $("scroll").scrollTo(0, $("scroll").scrollHeight);
    $("json").setAttribute("aria-pressed", String(!$("form").hidden));
  });
  $("new").addEventListener("click", () => app.fresh());
  $("forget").addEventListener("click", () => void app.forgetAll());
  $("menu").addEventListener("click", () => drawer(!document.body.classList.contains("drawer")));
  $("veil").addEventListener("click", () => drawer(false));
  $("download").addEventListener("click", () => formats($("formats").hidden));
  $("as-markdown").addEventListener("click", () => void app.download("md"));
  $("as-json").addEventListener("click", () => void app.download("json"));
  document.addEventListener("click", (event) => {
    if (!$("downloads").contains(event.target)) formats(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (!$("formats").hidden) {
      formats(false);
      $("download").focus();
    } else if (document.body.classList.contains("drawer")) {
      drawer(false);
      $("menu").focus();
    } else {
      app.stop();
    }
  });
  addEventListener("resize", settleSide);
  addEventListener("hashchange", () => {
    drawer(false);
    void app.open(location.hash.slice(1));
  });
}

const app = new App(await openStore());
if (!app.store.keeps) $("kept").textContent = "This browser keeps nothing: conversations end with this tab.";
intake(app);
buttons(app);
settleSide();
app.samples();
await app.list();
await sweep(app.store);
if (location.hash) await app.open(location.hash.slice(1));
app.refresh();
document.body.dataset.ready = "yes";
void app.watch();
