// The questions and answers that are shown.

import { count, h, icon, iconButton, seconds } from "./dom.js";
import { render } from "./markdown.js";
import { PictureView } from "./pictures.js";
import { shown } from "./schema.js";
import { path, siblings } from "./tree.js";

const STEPS = { loading: "The model is being loaded", waiting: "Waiting for its turn", vision: "Looking at the picture", prefill: "Reading the question" };

export class Thread {
  constructor(place, app) {
    this.place = place;
    this.app = app;
    this.views = new Map();
  }

  // Everything anew; `focus` names what shall have the focus then.
  render(focus = null) {
    this.views.clear();
    const turns = path(this.app.conversation);
    let question = 0;
    const parts = turns.map((turn) => {
      if (turn.role === "user") question++;
      return turn.role === "user" ? this.#question(turn, question) : this.#answer(turn, question);
    });
    this.place.replaceChildren(...parts);
    if (focus) this.place.querySelector(`[data-focus="${focus}"]`)?.focus();
  }

  #question(turn, number) {
    const views = (turn.pictures ?? []).map((one) => new PictureView(this.app.pictures, one, one.cost));
    this.views.set(turn.id, views);
    const text = h("p", { class: "asked", dir: "auto" }, turn.text);
    const edit = iconButton("edit", "Edit this question", () => this.#edit(turn, article), { "data-focus": `edit-${turn.id}` });
    const copy = this.#copy(() => turn.text, "Copy this question");
    const row = h("div", { class: "actions" }, this.#branches(turn), edit, copy);
    const article = h("article", { class: "question", "aria-label": `Question ${number}` });
    article.append(...(views.length ? [h("div", { class: "figures" }, ...views.map((view) => view.element))] : []), text, row);
    return article;
  }

  #edit(turn, article) {
    const text = h("textarea", { rows: "2", dir: "auto", "aria-label": "The question, edited" });
    text.value = turn.text;
    const cancel = () => this.render(`edit-${turn.id}`);
    const form = h("form", { class: "edit", onsubmit: (event) => {
      event.preventDefault();
      if (text.value.trim()) void this.app.branch(turn, text.value.trim());
    } }, text, h("p", { class: "row" }, h("button", { type: "submit", class: "main" }, "Ask"), h("button", { type: "button", onclick: cancel }, "Cancel")));
    text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    article.querySelector(".asked").replaceWith(form);
    article.querySelector(".actions").remove();
    text.focus();
    text.setSelectionRange(text.value.length, text.value.length);
  }

  #answer(turn, number) {
    const body = h("div", { class: "body" });
    const article = h("article", { class: "answer", "aria-label": `Answer ${number}`, "data-turn": turn.id }, body);
    if (turn.state === "running") {
      const bar = h("progress", { max: 1, "aria-label": "Reading" });
      const words = h("p", { class: "fine step" }, "Asking …");
      body.append(h("div", { class: "reading" }, bar, words));
      return article;
    }
    this.#fill(body, turn);
    if (turn.error) body.append(h("p", { class: "wrong error", role: "alert" }, turn.error));
    if (turn.state === "stopped") body.append(h("p", { class: "fine" }, "Stopped."));
    if (turn.finish === "length") body.append(h("p", { class: "fine" }, "The answer reached its longest length."));
    const again = turn.text
      ? iconButton("again", "Another answer", () => void this.app.again(turn, true), { "data-focus": `again-${turn.id}` })
      : h("button", { type: "button", class: "pill", onclick: () => void this.app.again(turn, false) }, "Try again");
    const actions = [this.#branches(turn), turn.text && this.#copy(() => turn.text, "Copy this answer"), again];
    article.append(h("div", { class: "actions" }, ...actions.filter(Boolean), ...this.#told(turn)));
    return article;
  }

  #fill(body, turn) {
    if (!turn.json) return body.replaceChildren(...render(turn.text));
    try {
      const raw = h("details", {}, h("summary", {}, "JSON"), h("pre", { dir: "ltr", tabindex: "0" }, JSON.stringify(JSON.parse(turn.text), null, 2)));
      body.replaceChildren(shown(JSON.parse(turn.text)), raw);
    } catch {
      body.replaceChildren(h("pre", { dir: "ltr", tabindex: "0" }, turn.text));
    }
    return undefined;
  }

  // What the answer took, and why it was quick.
  #told(turn) {
    if (!turn.timings) return [];
    const { timings, usage } = turn;
    const cached = usage.prompt_tokens_details.cached_tokens;
    const parts = [];
    if (turn.known) parts.push(`${cached.toLocaleString("en")} of ${count(usage.prompt_tokens, "token")} were read before`);
    else if (turn.read) parts.push(`${count(turn.read, "tile")} and ${count(usage.prompt_tokens - cached, "token")} read`);
    parts.push(`first word after ${seconds(timings.first_token)}`);
    if (timings.queued > 0.5) parts.push(`waited ${seconds(timings.queued)} for others`);
    if (usage.completion_tokens > 1) parts.push(`${count(usage.completion_tokens, "token")} in ${seconds(timings.decode)}`);
    if (turn.temperature) parts.push(`drawn at temperature ${turn.temperature}`);
    const badge = turn.known ? h("span", { class: "known" }, icon("done"), "Picture known") : null;
    return [h("p", { class: "fine told" }, ...(badge ? [badge, " "] : []), parts.join(" · "))];
  }

  #branches(turn) {
    const all = siblings(this.app.conversation, turn);
    if (all.length < 2) return null;
    const at = all.indexOf(turn);
    const name = turn.role === "user" ? "question" : "answer";
    const to = (step, label, shape) => iconButton(shape, label, () => this.app.show(all[at + step], `${shape}-${turn.parent}`), { disabled: !all[at + step], "data-focus": `${shape}-${turn.parent}` });
    return h("span", { class: "branches" }, to(-1, `Earlier ${name}`, "back"), h("span", {}, `${at + 1} of ${all.length}`), to(1, `Later ${name}`, "next"));
  }

  #copy(text, label) {
    const button = iconButton("copy", label, async () => {
      await copyText(text());
      button.replaceChildren(icon("done"));
      this.app.say("Copied.");
      setTimeout(() => button.replaceChildren(icon("copy")), 1500);
    });
    return button;
  }

  // A step of the reading: the bar, the words, and the tiles of the question's pictures.
  progress(turn, { step, done = 0, of = 0, seconds_left: left }) {
    const article = this.#article(turn);
    const bar = article?.querySelector("progress");
    if (!bar) return;
    if (of) bar.value = done / of;
    else bar.removeAttribute("value");
    const what = step === "vision" ? `tile ${done} of ${of}` : `${done} of ${count(of, "token")}`;
    const words = [STEPS[step] + (of ? `: ${what}` : " …"), left ? `about ${seconds(left)} left` : null];
    article.querySelector(".step").textContent = words.filter(Boolean).join(" · ");
    if (step !== "vision") return;
    let rest = done;
    for (const view of this.views.get(turn.parent) ?? []) {
      const tiles = view.grid.childElementCount + (view.grid.childElementCount > 1);
      view.setRead(Math.min(rest, tiles));
      rest -= Math.min(rest, tiles);
    }
  }

  text(turn) {
    const body = this.#article(turn)?.querySelector(".body");
    if (!body) return;
    for (const view of this.views.get(turn.parent) ?? []) view.finish();
    if (turn.json) body.replaceChildren(h("pre", { dir: "ltr", tabindex: "0" }, turn.text));
    else body.replaceChildren(...render(turn.text));
    body.classList.add("writing");
  }

  #article(turn) {
    return this.place.querySelector(`[data-turn="${turn.id}"]`);
  }
}

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "unseen" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy"); // pages of other computers without TLS have no other way
  area.remove();
  return undefined;
}
