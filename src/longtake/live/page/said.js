// What was said when, the newest first, with the moment each change took effect.

import { find, make, setText } from "./dom.js";
import { clock, span } from "./format.js";

export class Said {
  #list;
  #note;
  #onChange;
  #play;
  /** @type {Map<number, {entry: any, item: any}>} */
  #rows = new Map();
  #current = -1;

  /**
   * @param {string} onChange what a prompt does that says nothing about it
   * @param {(seconds: number) => void} play from there
   */
  constructor(onChange, play) {
    this.#list = find("#said");
    this.#note = find("#said-note");
    this.#onChange = onChange;
    this.#play = play;
    this.#list.replaceChildren();
  }

  /** Entries in the order of their ids. */
  get entries() {
    return [...this.#rows.values()].map(({ entry }) => entry).sort((a, b) => a.id - b.id);
  }

  /**
   * @param {any[]} entries new or changed ones
   * @param {boolean} all whether there are no others
   */
  update(entries, all) {
    if (all) {
      this.#rows.clear();
      this.#list.replaceChildren();
    }
    for (const entry of entries) {
      const before = this.#rows.get(entry.id);
      const item = this.#item(entry);
      this.#rows.set(entry.id, { entry, item });
      if (before) before.item.replaceWith(item);
      else this.#insert(entry.id, item);
    }
    const said = this.#rows.size - 1;
    setText(this.#note, said > 0 ? `${said} ${said === 1 ? "change" : "changes"}` : "");
  }

  /**
   * @param {number} id
   * @param {any} item
   */
  #insert(id, item) {
    const next = [...this.#list.children].find((other) => Number(/** @type {HTMLElement} */ (other).dataset.id) < id);
    this.#list.insertBefore(item, next ?? null);
  }

  /**
   * The prompt of what is on the screen.
   * @param {number} id
   */
  show(id) {
    if (id === this.#current) return;
    this.#rows.get(this.#current)?.item.removeAttribute("aria-current");
    this.#rows.get(id)?.item.setAttribute("aria-current", "true");
    this.#current = id;
  }

  /** @param {number} id */
  prompt(id) {
    return this.#rows.get(id)?.entry.prompt ?? "";
  }

  /** @param {any} entry */
  #item(entry) {
    const when =
      entry.state === "holds"
        ? make("button", {
            type: "button",
            class: "when",
            "aria-label": `${clock(entry.seconds, true)}, play from there: ${entry.prompt}`,
            click: () => this.#play(entry.seconds),
          }, clock(entry.seconds, true))
        : make("span", { class: "when" }, entry.state === "waiting" ? "next" : "–");
    return make(
      "li",
      { "data-id": String(entry.id), "data-state": entry.state, "aria-current": entry.id === this.#current ? "true" : null },
      when,
      make("div", {}, make("p", { class: "what" }, entry.prompt), make("p", { class: "how" }, this.#how(entry))),
    );
  }

  /** @param {any} entry */
  #how(entry) {
    const change = entry.change ?? this.#onChange;
    switch (entry.state) {
      case "waiting": return `${change} · takes effect with the next chunk`;
      case "replaced": return "replaced before it took effect";
      case "refused": return entry.message ?? "refused";
      default:
        if (entry.id === 0) return "the beginning";
        return entry.latency === null ? change : `${change} · first frame after ${span(entry.latency)}`;
    }
  }
}
