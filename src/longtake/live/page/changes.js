// The choice of what a new prompt does to the past.

import { make, setText } from "./dom.js";

export class ChangeChoice {
  #select = make("select", { id: "change", "aria-describedby": "change-about" });
  #about = make("p", { class: "quiet change-about", id: "change-about" });
  #changes;
  #usual = "";

  /**
   * @param {HTMLElement} place
   * @param {{name: string, description: string}[]} changes
   */
  constructor(place, changes) {
    this.#changes = changes;
    place.append(make("label", { class: "field inline" }, make("span", { class: "field-name" }, "The past"), this.#select), this.#about);
    this.#select.addEventListener("change", () => this.#explain());
  }

  /** What was chosen; null for what the take does anyway. @returns {string | null} */
  get value() {
    return this.#select.value || null;
  }

  /**
   * Begins with what the take does anyway.
   * @param {string} usual
   */
  reset(usual) {
    this.#usual = usual;
    const others = this.#changes.filter(({ name }) => name !== usual);
    this.#select.replaceChildren(
      make("option", { value: "" }, `${usual} (as the take)`),
      ...others.map(({ name }) => make("option", { value: name }, name)),
    );
    this.#explain();
  }

  #explain() {
    const name = this.value ?? this.#usual;
    setText(this.#about, this.#changes.find((change) => change.name === name)?.description ?? "");
  }
}
