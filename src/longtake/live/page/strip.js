// One picture for every few seconds of the take, to look back on. Only those in sight are in the document, so that a
// take of a day costs no more than one of a minute.

import { address } from "./api.js";
import { find, make, setText, thumbnail } from "./dom.js";
import { clock, spoken } from "./format.js";

const FOLLOW_AFTER = 6000; // milliseconds after somebody has scrolled
const HIGH = 2.75; // of a picture, in rem
const GAP = 3; // between pictures, in pixels
const SPARE = 4; // pictures on both sides of what is in sight

/**
 * Which pictures are in sight.
 * @param {number} left where the view begins
 * @param {number} width of the view
 * @param {number} step width of a picture
 * @param {number} count of all
 * @returns {[number, number]} first, and the one after the last
 */
export function inSight(left, width, step, count) {
  const first = Math.max(0, Math.floor(left / step) - SPARE);
  return [Math.min(first, count), Math.min(count, Math.ceil((left + width) / step) + SPARE)];
}

export class Strip {
  #strip;
  #track;
  #marks;
  #playhead;
  #id;
  #every;
  #step; // from one picture to the next, in pixels
  #count = 0;
  #seconds = 0;
  #current = -1;
  #focused = 0;
  #touched = -Infinity;
  /** @type {Map<number, any>} */
  #buttons = new Map();
  /** @type {any[]} */
  #entries = [];
  #play;

  /**
   * @param {any} take
   * @param {number} every seconds between pictures
   * @param {(seconds: number) => void} play from there
   */
  constructor(take, every, play) {
    this.#strip = find("#strip");
    this.#track = find(".strip-track", this.#strip);
    this.#marks = find(".strip-marks", this.#strip);
    this.#playhead = find(".playhead", this.#strip);
    this.#id = take.id;
    this.#every = every;
    this.#play = play;
    const high = HIGH * parseFloat(getComputedStyle(document.documentElement).fontSize);
    const wide = Math.round(high * Math.max(1, take.width / take.height));
    this.#step = wide + GAP;
    this.#strip.style.setProperty("--high", `${high}px`);
    this.#strip.style.setProperty("--wide", `${wide}px`);
    this.#strip.scrollLeft = 0;
    this.#clear();
    const controller = new AbortController();
    const { signal } = controller;
    this.close = () => {
      controller.abort();
      this.#resize.disconnect();
      this.#clear();
    };
    this.#strip.addEventListener("scroll", () => this.#draw(), { passive: true, signal });
    for (const touch of ["wheel", "pointerdown", "touchmove"]) {
      this.#strip.addEventListener(touch, () => (this.#touched = performance.now()), { passive: true, signal });
    }
    this.#strip.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event), { signal });
    this.#resize = new ResizeObserver(() => this.#draw());
    this.#resize.observe(this.#strip);
    this.#draw();
  }

  #resize;

  #clear() {
    for (const button of this.#buttons.values()) button.remove();
    this.#buttons.clear();
    this.#marks.replaceChildren();
  }

  /** @param {number} seconds */
  #x(seconds) {
    return (seconds / this.#every) * this.#step;
  }

  /**
   * How much there is.
   * @param {any} take
   */
  update(take) {
    if (take.thumbnails === this.#count) return;
    this.#count = take.thumbnails;
    this.#draw();
  }

  /**
   * Where prompts took effect.
   * @param {any[]} entries
   */
  mark(entries) {
    this.#entries = entries.filter((entry) => entry.state === "holds" && entry.id > 0);
    this.#draw();
  }

  /**
   * What is on the screen.
   * @param {number} seconds
   */
  show(seconds) {
    this.#seconds = seconds;
    this.#playhead.style.transform = `translateX(${this.#x(seconds).toFixed(1)}px)`;
    const current = Math.floor(seconds / this.#every);
    if (current !== this.#current) {
      this.#buttons.get(this.#current)?.removeAttribute("aria-current");
      this.#buttons.get(current)?.setAttribute("aria-current", "true");
      this.#current = current;
      if (!this.#strip.contains(document.activeElement)) this.#rove(current);
    }
    this.#follow();
  }

  #follow() {
    if (performance.now() - this.#touched < FOLLOW_AFTER || this.#strip.contains(document.activeElement)) return;
    const { scrollLeft, clientWidth } = this.#strip;
    const at = this.#x(this.#seconds) - scrollLeft;
    if (at > clientWidth * 0.9 || at < clientWidth * 0.05) this.#strip.scrollLeft += at - clientWidth * 0.7;
  }

  #draw() {
    this.#track.style.width = `${Math.max(this.#count, 1) * this.#step}px`;
    const [first, end] = inSight(this.#strip.scrollLeft, this.#strip.clientWidth, this.#step, this.#count);
    for (const [k, button] of this.#buttons) {
      if ((k < first || k >= end) && button !== document.activeElement) {
        button.remove();
        this.#buttons.delete(k);
      }
    }
    for (let k = first; k < end; k += 1) if (!this.#buttons.has(k)) this.#add(k);
    const from = first * this.#every;
    const to = end * this.#every;
    const marks = this.#entries.filter((entry) => entry.seconds >= from && entry.seconds <= to);
    this.#marks.replaceChildren(
      ...marks.map((entry) => {
        const mark = make("span", { class: "strip-mark", title: `${clock(entry.seconds, true)} ${entry.prompt}` });
        mark.style.left = `${this.#x(entry.seconds)}px`;
        return mark;
      }),
    );
  }

  /** @param {number} k */
  #add(k) {
    const seconds = k * this.#every;
    const label = make("span", { class: "strip-time", "aria-hidden": "true" });
    setText(label, clock(seconds));
    const button = make(
      "button",
      {
        type: "button",
        class: "strip-picture",
        tabindex: k === this.#focused ? "0" : "-1",
        "aria-label": `${clock(seconds)}, play from ${spoken(seconds)}`,
        "aria-current": k === this.#current ? "true" : null,
        click: () => this.#play(seconds),
        focus: () => this.#rove(k),
      },
      thumbnail(address.thumbnail(this.#id, k)),
      label,
    );
    button.style.left = `${k * this.#step}px`;
    this.#buttons.set(k, button);
    this.#track.append(button);
  }

  /**
   * The one picture that Tab comes to.
   * @param {number} k
   */
  #rove(k) {
    this.#buttons.get(this.#focused)?.setAttribute("tabindex", "-1");
    this.#focused = Math.max(0, Math.min(k, this.#count - 1));
    this.#buttons.get(this.#focused)?.setAttribute("tabindex", "0");
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const page = Math.max(1, Math.floor(this.#strip.clientWidth / this.#step) - 1);
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
    const move = moves[/** @type {keyof typeof moves} */ (event.key)];
    if (move === undefined) return;
    event.preventDefault();
    const k = Math.max(0, Math.min(this.#count - 1, this.#focused + move));
    const x = k * this.#step;
    const { scrollLeft, clientWidth } = this.#strip;
    if (x < scrollLeft) this.#strip.scrollLeft = x;
    if (x + this.#step > scrollLeft + clientWidth) this.#strip.scrollLeft = x + this.#step - clientWidth;
    this.#draw();
    this.#rove(k);
    this.#buttons.get(k)?.focus();
  }
}
