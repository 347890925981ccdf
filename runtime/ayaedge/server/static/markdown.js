// The Markdown that models write, as elements: paragraphs, headings, lists, quotes, code, tables, emphasis.
// Everything else, tags of HTML among it, is shown as the text that it is. Links and images are not followed: they
// stand as their text and address.

import { h } from "./dom.js";

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|(?<![\w*])\*(?=[^\s*])([\s\S]*?[^\s*])\*(?![\w*])|!?\[([^\]\n]*)\]\(([^()\s]*)\)/g;

function inline(text) {
  const found = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > last) found.push(text.slice(last, match.index));
    last = match.index + match[0].length;
    if (match[2] !== undefined) found.push(h("code", { dir: "ltr" }, match[2]));
    else if (match[3] !== undefined) found.push(h("strong", {}, ...inline(match[3])));
    else if (match[4] !== undefined) found.push(h("em", {}, ...inline(match[4])));
    else found.push(match[5] && match[5] !== match[6] ? `${match[5]} (${match[6]})` : match[6]);
  }
  if (last < text.length) found.push(text.slice(last));
  return found;
}

function lines(text) {
  return text.split("\n").flatMap((line, number) => (number ? [h("br"), ...inline(line)] : inline(line)));
}

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const FENCE = /^\s*(```+|~~~+)/;
const HEADING = /^(#{1,6})\s+(.+?)\s*#*$/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const ROW = /^\s*\|.*\|\s*$/;
const DASHES = /^\s*\|[\s:|-]+\|\s*$/;

const begins = (line) => [FENCE, HEADING, RULE, ITEM, /^\s*>/].some((form) => form.test(line)) || ROW.test(line);
const cells = (row) => row.trim().slice(1, -1).split("|").map((cell) => cell.trim());

// From the first line of each kind of block to its element, and how many lines it takes.
function block(all, start) {
  const line = all[start];
  const fence = FENCE.exec(line);
  if (fence) {
    let end = start + 1;
    while (end < all.length && !all[end].trim().startsWith(fence[1])) end++;
    const code = all.slice(start + 1, end).join("\n");
    return [h("pre", { dir: "ltr", tabindex: "0" }, h("code", {}, code)), end + 1 - start];
  }
  const heading = HEADING.exec(line);
  if (heading) return [h("p", { class: "heading", dir: "auto" }, ...inline(heading[2])), 1];
  if (RULE.test(line)) return [h("hr"), 1];
  if (ITEM.test(line)) return list(all, start);
  if (/^\s*>/.test(line)) {
    let end = start;
    while (end < all.length && /^\s*>/.test(all[end])) end++;
    const inner = all.slice(start, end).map((one) => one.replace(/^\s*>\s?/, ""));
    return [h("blockquote", { dir: "auto" }, ...blocks(inner)), end - start];
  }
  if (ROW.test(line) && DASHES.test(all[start + 1] ?? "")) return table(all, start);
  let end = start + 1;
  while (end < all.length && all[end].trim() && !begins(all[end])) end++;
  return [h("p", { dir: "auto" }, ...lines(all.slice(start, end).join("\n"))), end - start];
}

function list(all, start) {
  const [, indent, mark] = ITEM.exec(all[start]);
  const ordered = /\d/.test(mark);
  const element = h(ordered ? "ol" : "ul", { dir: "auto", ...(ordered ? { start: parseInt(mark, 10) } : {}) });
  let at = start;
  while (at < all.length) {
    const item = ITEM.exec(all[at]);
    if (!item || item[1].length < indent.length || /\d/.test(item[2]) !== ordered) break;
    const inner = [item[3]];
    for (at++; at < all.length && all[at].trim(); at++) {
      const deeper = /^\s*/.exec(all[at])[0].length > indent.length;
      if (ITEM.test(all[at]) ? !deeper : begins(all[at]) && !deeper) break;
      inner.push(all[at].replace(new RegExp(`^\\s{0,${indent.length + 2}}`), ""));
    }
    const parts = blocks(inner);
    element.append(h("li", { dir: "auto" }, ...(parts.length === 1 && parts[0].tagName === "P" ? parts[0].childNodes : parts)));
    if (at + 1 < all.length && !all[at].trim() && ITEM.test(all[at + 1])) at++;
  }
  return [element, at - start];
}

function table(all, start) {
  let end = start + 2;
  while (end < all.length && ROW.test(all[end])) end++;
  const row = (kind, text) => h("tr", {}, ...cells(text).map((cell) => h(kind, { dir: "auto" }, ...inline(cell))));
  const body = all.slice(start + 2, end).map((text) => row("td", text));
  const made = h("table", {}, h("thead", {}, row("th", all[start])), h("tbody", {}, ...body));
  return [h("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, made), end - start];
}

function blocks(all) {
  const found = [];
  for (let at = 0; at < all.length; ) {
    if (!all[at].trim()) {
      at++;
      continue;
    }
    const [element, taken] = block(all, at);
    found.push(element);
    at += Math.max(taken, 1);
  }
  return found;
}

export const render = (text) => blocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"));
