// The pictures of the next question: their tiles, what these cost, and the slider that changes both.

import { plan } from "./api.js";
import { announce, count, h, iconButton, seconds } from "./dom.js";
import { PictureView } from "./pictures.js";

const LIMIT = "ayaedge-max-tiles";

export class Stage {
  constructor(place, pictures, changed) {
    this.place = place;
    this.pictures = pictures;
    this.changed = changed;
    this.held = [];
    this.options = [];
    this.chosen = 0;
  }

  // What the question will be asked with: undefined is the model's own rule.
  get maxTiles() {
    const last = this.options.length - 1;
    return this.options.length && this.chosen < last ? this.options[this.chosen].max_tiles : undefined;
  }

  get costs() {
    return this.options[this.chosen]?.images ?? [];
  }

  add(picture) {
    if (!this.held.some((one) => one.id === picture.id)) this.held = [...this.held, picture]; // what was planned for fewer is out of date
    this.#render();
    return this.#plan();
  }

  clear() {
    this.held = [];
    this.options = [];
    this.#render();
  }

  #remove(picture) {
    this.held = this.held.filter((one) => one !== picture);
    this.options = [];
    this.#render();
    if (this.held.length) void this.#plan();
    document.getElementById("question").focus();
  }

  #render() {
    this.place.hidden = !this.held.length;
    this.views = this.held.map((picture) => new PictureView(this.pictures, picture));
    const figures = this.held.map((picture, number) => {
      const figure = this.views[number].element;
      figure.append(iconButton("close", `Remove ${picture.name}`, () => this.#remove(picture)));
      return figure;
    });
    this.slider = h("input", { type: "range", id: "detail", min: "0", max: "0", value: "0", disabled: true, oninput: () => this.#choose(Number(this.slider.value)) });
    this.cost = h("dl", { class: "cost" });
    this.note = h("p", { class: "fine note" }, "Looking at the picture …");
    const budget = h("div", { class: "budget" }, h("label", { for: "detail" }, "How closely to look"), this.slider,
      h("p", { class: "ends", "aria-hidden": "true" }, h("span", {}, "quick"), h("span", {}, "every detail")), this.cost, this.note);
    this.place.replaceChildren(h("div", { class: "figures" }, ...figures), budget);
    this.changed();
  }

  async #plan() {
    const asked = this.held;
    try {
      const images = await Promise.all(asked.map((one) => this.pictures.dataUrl(one)));
      const content = [...images.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text: "?" }];
      const body = { messages: [{ role: "user", content }] };
      const first = await plan({ ...body, preview: asked.some((one) => !one.shown) });
      if (asked !== this.held) return;
      this.#draw(first.previews ?? []);
      this.#show(first);
      if (first.chosen.seconds === null) {
        const measured = await plan({ ...body, measure: true });
        if (asked === this.held) this.#show(measured);
      }
    } catch (error) {
      if (asked !== this.held) return;
      this.note.textContent = error.message;
      this.note.classList.add("wrong");
      announce(error.message);
    }
  }

  // What this browser cannot show, and the pages of documents to choose from.
  #draw(previews) {
    previews.forEach(({ url, pages }, number) => {
      const picture = this.held[number];
      if (picture.shown) return;
      picture.preview = url;
      this.views[number].setPreview(url);
      if (!(pages > 1)) return;
      const input = h("input", { type: "number", min: "1", max: String(pages), value: String(picture.page), "aria-label": `Page of ${picture.name}, of ${pages}` });
      input.addEventListener("change", () => {
        const page = Math.min(Math.max(Math.round(Number(input.value)) || 1, 1), pages);
        this.held = this.held.map((one) => (one === picture ? { ...picture, page, preview: undefined } : one));
        this.options = [];
        this.#render();
        void this.#plan();
      });
      this.views[number].element.append(h("label", { class: "pages" }, "Page ", input, ` of ${pages}`));
    });
  }

  #show({ options, tile_size: side }) {
    const limit = Number(localStorage.getItem(LIMIT) ?? Infinity);
    this.options = options;
    this.side = side;
    this.slider.max = String(options.length - 1);
    this.slider.disabled = options.length < 2;
    const last = options.findLastIndex((one) => one.max_tiles <= limit);
    this.#choose(Math.max(last, 0), false);
  }

  #choose(number, remember = true) {
    const option = this.options[number];
    this.chosen = number;
    this.slider.value = String(number);
    if (remember) {
      if (number === this.options.length - 1) localStorage.removeItem(LIMIT);
      else localStorage.setItem(LIMIT, String(option.max_tiles));
    }
    option.images.forEach((cost, place) => this.views[place]?.setCost(cost));
    const tiles = option.images.reduce((sum, one) => sum + one.tiles, 0);
    const time = option.seconds === null ? "being measured …" : `about ${seconds(option.seconds)}`;
    const figures = [["Tiles", String(tiles)], ["Tokens", option.prompt_tokens.toLocaleString("en")], ["To the first word", time]];
    this.cost.replaceChildren(...figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    const { columns, rows } = option.images[0];
    const grid = columns * rows > 1 ? `${columns} × ${rows} tiles and a small view of all of it` : "one tile";
    this.note.textContent = this.held.length > 1 ? "Each picture has its own grid." : `Read as ${grid}, each of ${this.side} × ${this.side} pixels.`;
    this.slider.setAttribute("aria-valuetext", `${count(tiles, "tile")}, ${count(option.prompt_tokens, "token")}, ${time}`);
    this.changed();
  }
}
