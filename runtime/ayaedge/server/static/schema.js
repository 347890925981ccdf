// The form of a JSON answer: fields by name and type, or a schema that is written by hand.

import { h, iconButton } from "./dom.js";

const TYPES = {
  text: ["Text", { type: "string" }],
  number: ["Number", { type: "number" }],
  whole: ["Whole number", { type: "integer", minimum: -1e9, maximum: 1e9 }], // or a model that is lost writes digits for ever
  flag: ["Yes or no", { type: "boolean" }],
  date: ["Date", { type: "string", format: "date" }],
  texts: ["List of texts", { type: "array", items: { type: "string" } }],
  numbers: ["List of numbers", { type: "array", items: { type: "number" } }],
  choice: ["One of these", {}],
};
const FIRST = [["description", "text"], ["objects", "texts"]];

export class SchemaForm {
  constructor(place) {
    this.rows = h("div", { class: "rows", role: "group", "aria-label": "Fields of the answer" });
    this.text = h("textarea", { rows: "7", spellcheck: "false", dir: "ltr", "aria-label": "JSON schema", oninput: () => this.#typed() });
    this.fault = h("p", { class: "wrong", role: "alert", hidden: true });
    this.byHand = false;
    const own = h("details", {}, h("summary", {}, "Write the schema yourself"), this.text, this.fault);
    const add = h("button", { type: "button", class: "quiet", onclick: () => this.#add("", "text").focus() }, "Add a field");
    place.append(h("p", { class: "label" }, "The answer shall have these fields"), this.rows, add, own);
    for (const [name, type] of FIRST) this.#add(name, type);
    this.#write();
  }

  // The schema; an error that says what is wrong with it.
  get schema() {
    const schema = JSON.parse(this.text.value);
    if (schema === null || typeof schema !== "object" || Array.isArray(schema)) throw new Error("a schema is an object of JSON");
    return schema;
  }

  #add(name, type) {
    const input = h("input", { type: "text", value: name, "aria-label": "Name of the field", placeholder: "name", dir: "auto", oninput: () => this.#write() });
    const choices = Object.entries(TYPES).map(([value, [label]]) => h("option", { value, selected: value === type }, label));
    const select = h("select", { "aria-label": "Type of the field" }, ...choices);
    const values = h("input", { type: "text", "aria-label": "What it may be, with commas between", placeholder: "red, green, …", dir: "auto", hidden: true, oninput: () => this.#write() });
    select.addEventListener("change", () => {
      values.hidden = select.value !== "choice";
      this.#write();
    });
    const row = h("div", { class: "row" }, input, select, values);
    row.append(iconButton("close", "Remove this field", () => {
      row.remove();
      this.#write();
    }));
    this.rows.append(row);
    return input;
  }

  #write() {
    const properties = {};
    for (const row of this.rows.children) {
      const [name, type, values] = Array.from(row.children).map((one) => one.value?.trim());
      const choices = values?.split(/[,،、，]/).map((one) => one.trim()).filter(Boolean);
      if (name) properties[name] = type === "choice" ? { enum: choices } : TYPES[type][1];
    }
    const schema = { type: "object", properties, required: Object.keys(properties), additionalProperties: false };
    this.text.value = JSON.stringify(schema, null, 2);
    this.#typed();
  }

  #typed() {
    try {
      void this.schema;
      this.fault.hidden = true;
    } catch (error) {
      this.fault.textContent = `This is not a schema yet: ${error.message}`;
      this.fault.hidden = false;
    }
  }
}

// A value of JSON as a table of its fields, each text laid out in its own direction.
export function shown(value) {
  if (Array.isArray(value)) return h("ul", {}, ...value.map((one) => h("li", { dir: "auto" }, shown(one))));
  if (value !== null && typeof value === "object") {
    const rows = Object.entries(value).map(([name, one]) => h("div", { class: "field" }, h("dt", { dir: "auto" }, name), h("dd", { dir: "auto" }, shown(one))));
    return h("dl", {}, ...rows);
  }
  if (typeof value === "boolean") return value ? "yes" : "no";
  return value === null ? "–" : String(value);
}
