// The box that prompts are written in, with what was said before and what the model knows.

import { find, make, remember, remembered, setText } from "./dom.js";
import { findWord, putWord } from "./words.js";

/**
 * @typedef {object} Purpose
 * @property {string} id of the box
 * @property {string} label of the box
 * @property {string} button
 * @property {boolean} examples whether to show some
 * @property {(prompt: string) => Promise<unknown>} send throws what to show
 */

export class Composer {
  #purpose;
  #history;
  #groups;
  #box;
  #send;
  #wrong;
  #before;
  #busy = false;
  /** @type {Map<string, HTMLElement>} words and their buttons */
  #chips = new Map();

  /**
   * @param {HTMLElement} place
   * @param {any} model of /api/info
   * @param {{prompt_characters: number}} limits
   * @param {import("./history.js").PromptHistory} history
   * @param {Purpose} purpose
   */
  constructor(place, model, limits, history, purpose) {
    this.#purpose = purpose;
    this.#history = history;
    this.#groups = model.knows?.groups ?? [];
    place.append(find("#composer-template").content.cloneNode(true));
    this.form = find("form", place);
    this.form.setAttribute("aria-label", purpose.label);
    this.extras = find(".extras", place);
    this.#box = find("textarea", place);
    this.#box.id = purpose.id;
    this.#box.maxLength = limits.prompt_characters;
    this.#box.setAttribute("aria-label", purpose.label);
    this.#box.placeholder = model.examples[0] ?? "";
    this.#send = find(".send", place);
    setText(find(".send-text", place), purpose.button);
    this.#wrong = find(".wrong", place);
    this.#wrong.id = `${purpose.id}-wrong`;
    this.#before = find(".before", place);
    this.form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#box.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    this.#box.addEventListener("input", () => {
      this.#changed();
      this.#complain(null);
    });
    this.#fillWords(model);
    this.#fillBefore();
    const wide = window.matchMedia("(min-width: 60rem)").matches;
    this.#keepOpen(find(".words", place), `${purpose.id}.words`, purpose.examples || wide);
    this.#keepOpen(this.#before, `${purpose.id}.before`, false);
    new ResizeObserver(() => this.#fit()).observe(this.form);
  }

  get text() {
    return this.#box.value.replace(/\s+/g, " ").trim();
  }

  set text(text) {
    this.#box.value = text;
    this.#changed();
  }

  focus() {
    this.#box.focus();
    this.#box.select();
  }

  /** Shows what was said since. */
  refresh() {
    this.#fillBefore();
  }

  async #submit() {
    const prompt = this.text;
    if (this.#busy) return;
    if (!prompt) {
      this.#complain("Write what it should show.");
      this.#box.focus();
      return;
    }
    this.#busy = true;
    this.#send.setAttribute("aria-disabled", "true");
    this.#history.add(prompt); // now: the arrow keys may be pressed before the answer is there
    try {
      await this.#purpose.send(prompt);
      this.#complain(null);
      this.#fillBefore();
      if (document.activeElement === this.#box) this.#box.select();
    } catch (problem) {
      this.#complain(/** @type {Error} */ (problem).message);
    } finally {
      this.#busy = false;
      this.#send.removeAttribute("aria-disabled");
    }
  }

  /** @param {string | null} message */
  #complain(message) {
    setText(this.#wrong, message ?? "");
    this.#wrong.hidden = !message;
    if (message) {
      this.#box.setAttribute("aria-invalid", "true");
      this.#box.setAttribute("aria-describedby", this.#wrong.id);
    } else {
      this.#box.removeAttribute("aria-invalid");
      this.#box.removeAttribute("aria-describedby");
    }
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter") {
      event.preventDefault();
      this.#submit();
      return;
    }
    const { selectionStart, selectionEnd, value } = this.#box;
    const all = selectionStart === 0 && selectionEnd === value.length;
    let found = null;
    if (event.key === "ArrowUp" && (all || !value.slice(0, selectionStart).includes("\n"))) found = this.#history.older(value);
    if (event.key === "ArrowDown") found = this.#history.newer();
    if (found === null) return;
    event.preventDefault();
    this.text = found;
    this.#box.setSelectionRange(found.length, found.length);
    this.#complain(null);
  }

  #changed() {
    this.#fit();
    for (const [word, chip] of this.#chips) chip.classList.toggle("in", findWord(this.#box.value, [word]) !== null);
  }

  /** As high as its text. */
  #fit() {
    this.#box.style.height = "auto";
    this.#box.style.height = `${this.#box.scrollHeight}px`;
  }

  /**
   * Puts a text into the box; a finger has no use for the keyboard that would come up with the focus.
   * @param {string} text
   * @param {PointerEvent} event
   * @param {[number, number]} selection
   */
  #put(text, event, selection) {
    this.text = text;
    this.#complain(null);
    if (event.pointerType !== "touch") this.#box.focus();
    this.#box.setSelectionRange(...selection);
  }

  /** @param {any} model */
  #fillWords(model) {
    const words = find(".words", this.form);
    const groups = find(".groups", words);
    const shown = model.knows ? this.#groups : [];
    for (const { name, words: ways } of shown) {
      const buttons = ways.map((/** @type {string} */ word) =>
        make("button", {
          type: "button",
          class: "chip",
          click: (/** @type {PointerEvent} */ event) => {
            const { text, start, end } = putWord(this.#box.value, word, this.#groups, this.#box.selectionEnd);
            this.#put(text, event, [start, end]);
          },
        }, word),
      );
      ways.forEach((/** @type {string} */ word, /** @type {number} */ i) => this.#chips.set(word, buttons[i]));
      groups.append(group(name, buttons));
    }
    if (this.#purpose.examples || !model.knows) {
      const buttons = model.examples.map((/** @type {string} */ example) =>
        make("button", {
          type: "button",
          class: "chip",
          click: (/** @type {PointerEvent} */ event) => this.#put(example, event, [0, example.length]),
        }, example),
      );
      groups.prepend(group("for example", buttons));
    }
    if (!model.knows) setText(find("summary", words), "Examples");
  }

  #fillBefore() {
    const lines = find(".lines", this.#before);
    this.#before.hidden = this.#history.prompts.length === 0;
    lines.replaceChildren(
      ...this.#history.prompts.slice(0, 30).map((prompt) =>
        make("li", {}, make("button", {
          type: "button",
          class: "line",
          click: (/** @type {PointerEvent} */ event) => this.#put(prompt, event, [0, prompt.length]),
        }, prompt)),
      ),
    );
  }

  /**
   * @param {HTMLDetailsElement} details
   * @param {string} key
   * @param {boolean} open at first
   */
  #keepOpen(details, key, open) {
    const kept = remembered(key);
    details.open = kept ? kept === "open" : open;
    details.addEventListener("toggle", () => remember(key, details.open ? "open" : "closed"));
  }
}

/**
 * @param {string} name
 * @param {HTMLElement[]} buttons
 */
function group(name, buttons) {
  const heading = make("span", { class: "group-name", "aria-hidden": "true" }, name);
  return make("div", { class: "group", role: "group", "aria-label": name }, heading, make("div", { class: "chips" }, ...buttons));
}
