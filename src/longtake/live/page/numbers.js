// The figures beside the video.

import { find, make, setText } from "./dom.js";
import { clock, span } from "./format.js";

const FIGURES = {
  speed: ["Made at", "Frames per second, waiting not counted"],
  realTime: ["Speed", "How many times faster it is made than it plays"],
  shown: ["Shown", "Seconds of video"],
  latency: ["Prompt to picture", "From sending a prompt to its first frame on the screen"],
};

export class Numbers {
  /** @type {Record<string, {value: any, more: any}>} */
  #fields = {};
  #times = /** @type {number[]} */ ([]);

  constructor() {
    const list = find("#numbers");
    list.replaceChildren();
    for (const [key, [name, meaning]] of Object.entries(FIGURES)) {
      const value = make("span", { class: "value" }, "–");
      const more = make("span", { class: "more" });
      this.#fields[key] = { value, more };
      list.append(make("div", { title: meaning, "data-figure": key }, make("dt", {}, name), make("dd", {}, value, more)));
    }
  }

  /**
   * @param {string} key
   * @param {string} value
   * @param {string} more
   */
  #set(key, value, more) {
    setText(this.#fields[key].value, value);
    setText(this.#fields[key].more, more);
  }

  /** @param {any} take */
  take(take) {
    const { speed } = take;
    this.#set("speed", speed ? speed.frames_per_second.toFixed(speed.frames_per_second < 9.95 ? 1 : 0) : "–", speed ? "frames/s" : "");
    this.#set("realTime", speed ? `${speed.real_time.toFixed(speed.real_time < 9.95 ? 1 : 0)}×` : "–", speed ? "real time" : "");
  }

  /**
   * A frame was drawn.
   * @param {number} seconds
   * @param {number} now milliseconds
   */
  frame(seconds, now) {
    this.#times.push(now);
    while (now - this.#times[0] > 2000) this.#times.shift();
    const spent = (now - this.#times[0]) / 1000;
    const rate = spent > 0.5 ? `at ${Math.round((this.#times.length - 1) / spent)} frames/s` : "";
    this.#set("shown", clock(seconds), rate);
  }

  /**
   * @param {number | null} seen seconds from sending to the screen
   * @param {number | null} made seconds from the server's getting it to the first frame
   */
  latency(seen, made) {
    if (seen === null && made === null) return this.#set("latency", "–", "no change yet");
    if (seen === null) return this.#set("latency", span(made), "until it was made");
    this.#set("latency", span(seen), made === null ? "" : `made after ${span(made)}`);
  }
}
