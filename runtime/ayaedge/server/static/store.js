// What this browser keeps: conversations, and their pictures as files. Where it may keep nothing, for as long as the
// page is open.

const NAME = "ayaedge";

function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore("conversations", { keyPath: "id" });
      opening.result.createObjectStore("pictures", { keyPath: "id" });
    };
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

class Kept {
  keeps = true;

  constructor(database) {
    this.database = database;
    database.onversionchange = () => database.close(); // when another tab deletes it, or has a newer form
  }

  #store(name, mode = "readonly") {
    return this.database.transaction(name, mode).objectStore(name);
  }

  all = () => done(this.#store("conversations").getAll());
  put = (conversation) => done(this.#store("conversations", "readwrite").put(conversation));
  remove = (id) => done(this.#store("conversations", "readwrite").delete(id));
  picture = (id) => done(this.#store("pictures").get(id));
  putPicture = (picture) => done(this.#store("pictures", "readwrite").put(picture));
  pictureIds = () => done(this.#store("pictures").getAllKeys());
  removePicture = (id) => done(this.#store("pictures", "readwrite").delete(id));
}

class Passing {
  keeps = false;
  conversations = new Map();
  pictures = new Map();

  all = async () => [...this.conversations.values()];
  put = async (conversation) => this.conversations.set(conversation.id, conversation);
  remove = async (id) => this.conversations.delete(id);
  picture = async (id) => this.pictures.get(id);
  putPicture = async (picture) => this.pictures.set(picture.id, picture);
  pictureIds = async () => [...this.pictures.keys()];
  removePicture = async (id) => this.pictures.delete(id);
}

export async function openStore() {
  try {
    return new Kept(await open());
  } catch {
    return new Passing();
  }
}

// Pictures that no conversation shows any more go with the last that did.
export async function sweep(store, besides = []) {
  const used = new Set(besides);
  for (const conversation of await store.all()) {
    for (const turn of Object.values(conversation.turns)) for (const picture of turn.pictures ?? []) used.add(picture.id);
  }
  for (const id of await store.pictureIds()) if (!used.has(id)) await store.removePicture(id);
}
