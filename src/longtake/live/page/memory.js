// What the model remembers: the slots of its memory, each with a picture where it is a frame.

import { find, make, setText, thumbnail } from "./dom.js";
import { clock, span } from "./format.js";

const ROLES = {
  sink: ["sink", "The first frames, kept for good"],
  long: ["long", "Slow running average of all that left"],
  short: ["short", "Fast running average of all that left"],
  memory: ["learned", "Learned memory"],
  recent: ["recent", "The frames before"],
  current: ["current", "The frames that are being made"],
};
const SVG = "http://www.w3.org/2000/svg";

/**
 * What a running average still holds of the past: the weight of what left the window `age` chunks ago.
 * @param {number} rate
 * @param {number} points
 * @param {number} chunks over how many
 * @returns {number[]} in [0, 1], the newest first
 */
export function weights(rate, points, chunks) {
  return Array.from({ length: points }, (_, i) => (1 - rate) ** ((i / (points - 1)) * chunks));
}

/**
 * Slots of one role that stand side by side.
 * @param {any[]} slots
 * @returns {{role: string, slots: any[]}[]}
 */
export function byRole(slots) {
  /** @type {{role: string, slots: any[]}[]} */
  const groups = [];
  for (const slot of slots) {
    const last = groups[groups.length - 1];
    if (last?.role === slot.role) last.slots.push(slot);
    else groups.push({ role: slot.role, slots: [slot] });
  }
  return groups;
}

export class MemoryView {
  #list;
  #note;
  #fps;
  /** @type {any[]} memories of chunks that are not on the screen yet */
  #coming = [];
  /** @type {Map<string, any>} pictures by their address, so that none is loaded twice */
  #pictures = new Map();

  /** @param {any} take */
  constructor(take) {
    this.#list = find("#memory");
    this.#note = find("#memory-note");
    this.#fps = take.fps;
    this.#list.replaceChildren();
    setText(this.#note, "");
    this.#list.style.setProperty("--shape", String(take.width / take.height));
  }

  /**
   * Takes a memory, to be shown with its chunk.
   * @param {any} memory
   * @param {boolean} atOnce
   */
  update(memory, atOnce) {
    this.#coming.push(memory);
    for (const slot of memory.slots) if (slot.picture) this.#picture(slot); // there when its chunk is
    if (atOnce || this.#list.childElementCount === 0) this.#show();
    else if (this.#coming.length > 12) this.#coming.shift();
  }

  /**
   * A frame is on the screen.
   * @param {number} frame
   */
  at(frame) {
    let due = 0;
    while (due < this.#coming.length && this.#coming[due].first_frame <= frame) due += 1;
    if (!due) return;
    this.#show(due);
  }

  /** @param {number} [due] how many of those that are coming are due; all if not given */
  #show(due = this.#coming.length) {
    const memory = this.#coming[due - 1];
    this.#coming.splice(0, due);
    const used = new Set();
    this.#list.replaceChildren(
      ...byRole(memory.slots).map(({ role, slots }) => this.#group(role, slots, used)),
      ...this.#free(memory.capacity - memory.slots.length),
    );
    for (const { slots } of this.#coming) for (const slot of slots) used.add(slot.picture);
    for (const address of [...this.#pictures.keys()]) if (!used.has(address)) this.#pictures.delete(address);
    setText(this.#note, `${memory.slots.length} of ${memory.capacity} slots · chunk ${memory.chunk}`);
  }

  /**
   * @param {string} role
   * @param {any[]} slots
   * @param {Set<string>} used
   */
  #group(role, slots, used) {
    const [name, meaning] = ROLES[/** @type {keyof typeof ROLES} */ (role)] ?? [role, role];
    const tiles = slots.map((slot) => this.#tile(slot, used));
    const label = make("p", { class: "role", title: meaning }, name);
    return make("li", { class: "slots", "data-role": role }, label, make("div", { class: "tiles" }, ...tiles));
  }

  /**
   * @param {any} slot
   * @param {Set<string>} used
   */
  #tile(slot, used) {
    let inside;
    let title;
    if (slot.picture) {
      used.add(slot.picture);
      inside = this.#picture(slot);
      title = `Frame ${slot.frame}, at ${clock(slot.frame / this.#fps, true)}`;
    } else if (slot.latent !== null) {
      inside = ""; // the take ended within its last chunk
      title = "Behind the end of the take";
    } else {
      inside = drawAverage(slot.rate ?? 0.05);
      title = slot.rate ? `Running average with rate ${slot.rate}` : "Learned";
    }
    const age = slot.age === null ? "" : slot.picture ? span(slot.age) : `~${span(slot.age)}`;
    return make("div", { class: "tile", title }, make("div", { class: "face" }, inside), make("p", { class: "age" }, age));
  }

  /** @param {any} slot that is a frame */
  #picture(slot) {
    const known = this.#pictures.get(slot.picture);
    if (known) return known;
    const image = thumbnail(slot.picture, `Frame at ${clock(slot.frame / this.#fps, true)}`);
    this.#pictures.set(slot.picture, image);
    return image;
  }

  /** @param {number} count */
  #free(count) {
    if (count <= 0) return [];
    const tiles = Array.from({ length: count }, () => make("div", { class: "tile" }, make("div", { class: "face" }), make("p", { class: "age" })));
    return [make("li", { class: "slots", "data-role": "free" }, make("p", { class: "role" }, "free"), make("div", { class: "tiles" }, ...tiles))];
  }
}

/**
 * The weights of an average over the last 48 chunks, the newest at the right.
 * @param {number} rate
 */
function drawAverage(rate) {
  const points = weights(rate, 24, 48).map((w, i) => `${(100 - (i / 23) * 100).toFixed(1)},${(88 - w * 70).toFixed(1)}`);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", `M100,100L${points.join("L")}L0,100Z`);
  svg.append(path);
  return svg;
}

/**
 * The slots of a memory as a small drawing, for choosing one.
 * @param {any} memory of /api/info
 */
export function drawSlots(memory) {
  const words = memory.slots.map((/** @type {any} */ { role, count }) => `${count} ${ROLES[/** @type {keyof typeof ROLES} */ (role)]?.[0] ?? role}`);
  const drawing = make("div", { class: "drawn-slots", role: "img", "aria-label": `${memory.capacity} slots: ${words.join(", ")}` });
  for (const { role, count } of memory.slots) {
    for (let i = 0; i < count; i += 1) drawing.append(make("span", { "data-role": role, title: ROLES[/** @type {keyof typeof ROLES} */ (role)]?.[0] ?? role }));
  }
  return drawing;
}
