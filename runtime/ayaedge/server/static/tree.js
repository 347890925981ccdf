// A conversation as a tree: a question that was edited and an answer that was drawn again stand beside the earlier ones.

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export function newConversation() {
  return { id: newId(), title: "", updated: Date.now(), turns: {}, shown: {} };
}

export function addTurn(conversation, parent, role, fields) {
  const turn = { id: newId(), parent, role, text: "", order: Object.keys(conversation.turns).length, ...fields };
  conversation.turns[turn.id] = turn;
  conversation.shown[parent ?? "root"] = turn.id;
  conversation.updated = Date.now();
  if (!conversation.title && role === "user") conversation.title = fields.text.slice(0, 80);
  return turn;
}

export function siblings(conversation, turn) {
  const all = Object.values(conversation.turns).filter((one) => one.parent === turn.parent);
  return all.sort((a, b) => a.order - b.order);
}

// The turns that are shown, from the first to the last.
export function path(conversation) {
  const turns = [];
  let next = conversation.shown.root;
  while (next && conversation.turns[next]) {
    turns.push(conversation.turns[next]);
    next = conversation.shown[next];
  }
  return turns;
}

export function upTo(conversation, turn) {
  const turns = [];
  for (let one = turn; one; one = conversation.turns[one.parent]) turns.unshift(one);
  return turns;
}

// As the API takes them. An answer that never came says nothing, and neither does its question.
export async function messages(turns, dataUrl) {
  const found = [];
  for (const turn of turns) {
    if (turn.role === "assistant") {
      if (turn.text) found.push({ role: "assistant", content: turn.text });
      else found.pop();
      continue;
    }
    const images = await Promise.all((turn.pictures ?? []).map((one) => dataUrl(one)));
    const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
    found.push({ role: "user", content: [...parts, { type: "text", text: turn.text }] });
  }
  return found;
}

export async function markdown(conversation, dataUrl) {
  const parts = [`# ${conversation.title}\n`];
  for (const turn of path(conversation)) {
    parts.push(turn.role === "user" ? "## Question\n" : "## Answer\n");
    for (const picture of turn.pictures ?? []) parts.push(`![${picture.name}](${await dataUrl(picture)})\n`);
    parts.push(`${turn.text}\n`);
  }
  return parts.join("\n");
}
