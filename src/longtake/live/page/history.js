// What was said before, to go through with the arrow keys. No DOM.

/**
 * The newest prompts, each once, kept in a storage (localStorage, or none).
 */
export class PromptHistory {
  #storage;
  #key;
  #limit;
  #draft = "";
  #at = -1; // -1 is the draft

  /**
   * @param {Pick<Storage, "getItem" | "setItem"> | null} storage
   * @param {string} [key]
   * @param {number} [limit]
   */
  constructor(storage, key = "longtake.prompts", limit = 100) {
    this.#storage = storage;
    this.#key = key;
    this.#limit = limit;
    /** @type {string[]} newest first */
    this.prompts = [];
    try {
      const kept = JSON.parse(storage?.getItem(key) ?? "[]");
      if (Array.isArray(kept)) this.prompts = kept.filter((text) => typeof text === "string").slice(0, limit);
    } catch {
      // damaged, or the browser allows no storage: begin with none
    }
  }

  /**
   * A prompt was sent.
   * @param {string} prompt
   */
  add(prompt) {
    this.prompts = [prompt, ...this.prompts.filter((other) => other !== prompt)].slice(0, this.#limit);
    this.#at = -1;
    this.#draft = "";
    try {
      this.#storage?.setItem(this.#key, JSON.stringify(this.prompts));
    } catch {
      // full, or not allowed: it is remembered until the page is left
    }
  }

  /**
   * The one before, null if there is none. What is being typed is kept, to come back to.
   * @param {string} typed
   * @returns {string | null}
   */
  older(typed) {
    if (this.#at === -1) this.#draft = typed;
    // what stands in the box already is no step back
    const next = this.#at === -1 && this.prompts[0] === typed ? 1 : this.#at + 1;
    if (next >= this.prompts.length) return null;
    this.#at = next;
    return this.prompts[next];
  }

  /**
   * The one after, at last what was being typed; null if that is what stands there.
   * @returns {string | null}
   */
  newer() {
    if (this.#at === -1) return null;
    this.#at -= 1;
    return this.#at === -1 ? this.#draft : this.prompts[this.#at];
  }
}
