// The list of takes: to watch, to continue, to delete.

import { address, api } from "./api.js";
import { find, icon, make, setText, thumbnail } from "./dom.js";
import { ago, bytes, clock, span } from "./format.js";
import { attempt } from "./notices.js";
import { stateText } from "./status.js";

const EVERY = 3000;

export class Takes {
  #list;
  #timer = 0;
  #shown = "";
  /** What is being deleted, or was: the server's list may be from before. @type {Set<string>} */
  #deleted = new Set();

  constructor() {
    this.#list = find("#takes");
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#timer) this.#refresh();
    });
  }

  open() {
    this.#shown = "";
    this.#timer = window.setInterval(() => {
      if (!document.hidden) this.#refresh();
    }, EVERY);
    this.#refresh();
  }

  close() {
    window.clearInterval(this.#timer);
    this.#timer = 0;
  }

  async #refresh() {
    let takes;
    try {
      takes = await api.takes();
    } catch {
      return; // shown when something is asked for; a list that is a little old is no harm
    }
    takes = takes.filter((/** @type {any} */ take) => !this.#deleted.has(take.id));
    find("#no-takes").hidden = takes.length > 0;
    // Drawn again only if something differs: a list that is rebuilt loses the focus and the pointer.
    const now = Date.now() / 1000;
    const text = JSON.stringify(takes.map((/** @type {any} */ take) => [take.id, take.state, take.reason, take.place, take.prompts, take.thumbnails, ago(take.created, now), take.viewers]));
    if (text === this.#shown) return;
    this.#shown = text;
    const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset.focus : undefined;
    this.#list.replaceChildren(...takes.map((/** @type {any} */ take) => this.#card(take, now)));
    if (focused) this.#list.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }

  /**
   * @param {any} take
   * @param {number} now seconds since 1970
   */
  #card(take, now) {
    const face = make("div", { class: "card-face" });
    face.style.setProperty("--shape", String(take.width / take.height));
    if (take.frames) face.append(thumbnail(address.frame(take.id, Math.max(0, take.frames - 1), 320)));
    const facts = [clock(take.seconds), take.memory.split(":")[0], `seed ${take.seed}`, bytes(take.bytes), ago(take.created, now)];
    const others = take.viewers > 0 ? ` · ${take.viewers} watching` : "";
    return make(
      "li",
      { class: "card", "data-take": take.id, "data-state": take.state },
      face,
      make(
        "div",
        { class: "card-text" },
        make("a", { class: "card-prompt", href: `#${take.id}`, "data-focus": take.id }, take.prompt.prompt),
        make("p", { class: "card-state" }, make("span", { class: "state" }, stateText(take)), others),
        make("p", { class: "quiet" }, facts.join(" · ")),
        take.state === "failed" && take.message ? make("p", { class: "wrong" }, take.message) : null,
      ),
      make(
        "div",
        { class: "card-actions" },
        take.can_continue
          ? make("button", { type: "button", class: "button", "data-focus": `${take.id}-continue`, "aria-label": `Continue: ${take.prompt.prompt}`, click: () => this.#continue(take) }, icon("continue"), make("span", {}, "Continue"))
          : null,
        make("button", { type: "button", class: "button bare", title: "Delete", "aria-label": `Delete: ${take.prompt.prompt}`, "data-focus": `${take.id}-delete`, click: () => this.#delete(take) }, icon("trash")),
      ),
    );
  }

  /** @param {any} take */
  async #continue(take) {
    if (await attempt(() => api.resume(take.id))) window.location.hash = take.id;
  }

  /** @param {any} take */
  #delete(take) {
    const dialog = find("#delete-dialog");
    setText(find("#delete-text"), `“${take.prompt.prompt}”, ${take.frames ? span(take.seconds) : "no frames yet"}, with its recording. This cannot be undone.`);
    dialog.returnValue = "keep";
    dialog.addEventListener("close", async () => {
      if (dialog.returnValue !== "delete") return;
      this.#deleted.add(take.id);
      this.#list.querySelector(`[data-take="${take.id}"] img`)?.removeAttribute("src"); // not to wait for what goes
      if (!(await attempt(() => api.remove(take.id).then(() => true)))) {
        this.#deleted.delete(take.id);
        this.#shown = "";
      }
      this.#refresh();
    }, { once: true });
    dialog.showModal();
  }
}
