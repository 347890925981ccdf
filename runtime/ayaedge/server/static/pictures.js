// Pictures: taking them in, showing them with the tiles that the model reads, and taking photos.

import { $, h } from "./dom.js";
import { newId } from "./tree.js";

async function identify(blob) {
  if (!globalThis.crypto?.subtle) return newId(); // pages of other computers without TLS have none
  const digest = await crypto.subtle.digest("SHA-256", await blob.arrayBuffer());
  return Array.from(new Uint8Array(digest).slice(0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Pictures {
  #urls = new Map();

  constructor(store) {
    this.store = store;
  }

  // A file as what turns and the stage hold: {id, name, shown}, and {page} of a document. What this browser cannot
  // show may still be asked about: the server draws its preview.
  async take(file) {
    const id = await identify(file);
    if (isDocument(file)) {
      await this.store.putPicture({ id, name: file.name, blob: new Blob([file], { type: "application/pdf" }) });
      return { id, name: file.name, shown: false, page: 1 };
    }
    await this.store.putPicture({ id, name: file.name || "picture", blob: file });
    const bitmap = await createImageBitmap(file).catch(() => null);
    bitmap?.close();
    return { id, name: file.name || "picture", shown: bitmap !== null };
  }

  async dataUrl({ id, page }) {
    const found = await this.store.picture(id);
    if (!found) throw new Error("A picture of this conversation is not kept any more: add it again.");
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(`data:${found.blob.type || "image/any"};base64,${reader.result.split(",")[1]}${page ? `#page=${page}` : ""}`);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(found.blob);
    });
  }

  async url(id) {
    if (!this.#urls.has(id)) {
      const found = await this.store.picture(id);
      if (!found) return null;
      this.#urls.set(id, URL.createObjectURL(found.blob));
    }
    return this.#urls.get(id);
  }
}

// A picture under its grid of tiles. `cost` has width, height, columns and rows, once they are known.
export class PictureView {
  constructor(pictures, picture, cost = null) {
    this.grid = h("div", { class: "grid", "aria-hidden": "true" });
    this.frame = h("div", { class: "frame" });
    this.element = h("figure", { class: "picture" }, this.frame);
    this.name = picture.page ? `${picture.name}, page ${picture.page}` : picture.name;
    if (picture.shown) pictures.url(picture.id).then((url) => url && this.#image(url));
    else if (picture.preview) this.#image(picture.preview);
    else {
      this.frame.classList.add("blind");
      this.frame.append(h("p", {}, this.name));
    }
    this.frame.append(this.grid);
    if (cost) this.setCost(cost);
  }

  #image(url) {
    const { cost } = this;
    this.frame.prepend(h("img", { alt: this.name, src: url, ...(cost ? { width: String(cost.width), height: String(cost.height) } : {}) }));
  }

  // What the server has drawn of a file that this browser cannot show.
  setPreview(url) {
    this.frame.classList.remove("blind");
    this.frame.querySelector("img, p")?.remove();
    this.#image(url);
  }

  setCost(cost) {
    const { width, height, columns, rows } = cost;
    this.cost = cost;
    this.frame.style.setProperty("--ratio", `${width} / ${height}`);
    this.frame.querySelector("img")?.setAttribute("width", width);
    this.frame.querySelector("img")?.setAttribute("height", height);
    this.grid.style.setProperty("--columns", columns);
    this.grid.style.setProperty("--rows", rows);
    const wanted = columns * rows;
    this.grid.replaceChildren(...Array.from({ length: wanted }, () => h("i")));
    this.grid.classList.toggle("whole", wanted === 1);
  }

  // So many tiles of it are read; the last one is a small view of all of it.
  setRead(tiles) {
    this.grid.classList.add("reading");
    Array.from(this.grid.children).forEach((cell, number) => cell.classList.toggle("read", number < tiles));
  }

  finish() {
    this.grid.classList.remove("reading");
  }
}

const isDocument = (file) => file.type === "application/pdf" || /\.pdf$/i.test(file.name);

export function filesOf(transfer) {
  const files = Array.from(transfer?.files ?? []);
  return files.filter((file) => file.type.startsWith("image/") || isDocument(file) || /\.(heic|heif|tiff?|avif|jp2)$/i.test(file.name));
}

// A photo of this computer's or telephone's camera, as a file; null if nobody took one.
export async function takePhoto() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch {
    $("photo").click(); // a telephone's own camera, or a file
    return null;
  }
  const dialog = $("camera");
  const video = dialog.querySelector("video");
  video.srcObject = stream;
  $("shoot").disabled = true; // until there is something to see
  video.onplaying = () => {
    $("shoot").disabled = false;
    video.dataset.playing = "yes";
  };
  dialog.showModal();
  const file = await new Promise((resolve) => {
    const options = { once: true };
    $("shoot").addEventListener("click", () => resolve(still(video)), options);
    dialog.querySelector(".close").addEventListener("click", () => resolve(null), options);
    dialog.addEventListener("close", () => resolve(null), options);
  });
  stream.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  delete video.dataset.playing;
  dialog.close();
  return file;
}

async function still(video) {
  const canvas = h("canvas", {});
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return new File([blob], "photo.jpg", { type: "image/jpeg" });
}
