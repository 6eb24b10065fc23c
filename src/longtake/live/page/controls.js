// The buttons under the picture and what lies over it: they show how things are, and say what was pressed.

import { address } from "./api.js";
import { find, setIcon, setName, setText } from "./dom.js";
import { clock } from "./format.js";
import { veilOf } from "./status.js";

const ACTIONS = { continue: "Continue", new: "New take", replay: "Play from the beginning" };

/**
 * @typedef {object} Pressed
 * @property {() => void} play
 * @property {() => void} stop
 * @property {() => void} live
 * @property {() => void} sharpness
 * @property {() => void} repeat
 * @property {() => void} full
 * @property {(action: "continue" | "new" | "replay") => void} veil
 *
 * How things are.
 * @typedef {object} Now
 * @property {any} take
 * @property {import("./player.js").Player} player
 * @property {boolean} making whether the take is being made, or will be
 * @property {boolean} atEnd whether everything that was made has been shown
 * @property {boolean} moving whether it is just being stopped or continued
 * @property {number} ahead seconds that the server makes ahead
 * @property {string} prompt of what is on the screen
 */

export class Controls {
  #play = find("#play");
  #stop = find("#stop");
  #live = find("#live");
  #sharpness = find("#sharpness");
  #download = find("#download");
  #canvas = find("#screen");
  #veil = find("#veil");

  /** @param {Pressed} pressed */
  constructor(pressed) {
    const repeat = find("#repeat");
    const full = find("#full");
    this.#play.addEventListener("click", pressed.play);
    this.#stop.addEventListener("click", pressed.stop);
    this.#live.addEventListener("click", pressed.live);
    this.#sharpness.addEventListener("click", pressed.sharpness);
    repeat.addEventListener("click", pressed.repeat);
    full.addEventListener("click", pressed.full);
    setName(repeat, "The command that makes this take again", "C");
    setName(full, "Full screen", "F");
    const action = find(".veil-action", this.#veil);
    action.addEventListener("click", () => pressed.veil(action.dataset.action));
  }

  /** @param {boolean} sharp */
  set sharp(sharp) {
    setIcon(this.#sharpness, sharp ? "smooth" : "sharp");
    setName(this.#sharpness, sharp ? "Show it smooth" : "Show its pixels", "X");
  }

  /** @param {Now} now */
  update(now) {
    const { take, player, making, atEnd, prompt } = now;
    const playing = player.playing && (making || !atEnd);
    setIcon(this.#play, playing ? "pause" : "play");
    setName(this.#play, playing ? "Pause" : "Play", "Space");
    setIcon(this.#stop, making ? "stop" : "continue");
    setName(this.#stop, making ? "Stop making this take" : "Continue making this take", "S");
    this.#stop.disabled = now.moving || (!making && !take.can_continue);
    this.#showLive(now, playing);
    this.#showDownload(now);
    this.#showVeil(now);
    setText(find("#made"), clock(take.seconds));
    setText(find("#watch-title"), `Take: ${take.prompt.prompt}`);
    const label = `The video: ${prompt}`;
    if (this.#canvas.getAttribute("aria-label") !== label) this.#canvas.setAttribute("aria-label", label);
    const title = `${take.prompt.prompt} – Longtake`;
    if (document.title !== title) document.title = title;
  }

  /**
   * @param {Now} now
   * @param {boolean} playing
   */
  #showLive({ take, player, making, ahead }, playing) {
    const behind = player.shown ? take.frames - 1 - player.shown.frame : 0;
    const live = playing && making && (player.live || behind < take.fps * (ahead + 2));
    this.#live.setAttribute("aria-pressed", String(live));
    this.#live.disabled = !making;
    setText(find(".live-text", this.#live), live || !making || !player.shown ? "Live" : `−${clock(behind / take.fps)}`);
    setName(this.#live, live ? "Live: shows what is being made" : "Live: go to what is being made", "L");
  }

  /** @param {Now} now */
  #showDownload({ take, player }) {
    const link = this.#download;
    const until = player.seen >= 0 ? player.seen : take.frames - 1;
    if (until < 0) {
      link.removeAttribute("href");
      link.setAttribute("aria-disabled", "true");
      setName(link, "Nothing to download yet");
      return;
    }
    link.removeAttribute("aria-disabled");
    link.setAttribute("href", address.video(take.id, until));
    link.setAttribute("download", `longtake-${take.id}.mp4`);
    setName(link, `Download what was seen, ${clock((until + 1) / take.fps)}`, "D");
  }

  /** @param {Now} now */
  #showVeil({ take, player, atEnd }) {
    const { connected, trouble, playing, waiting } = player;
    const veil = veilOf({ take, connected, trouble, playing, atEnd, waiting });
    this.#veil.hidden = veil === null;
    this.#veil.classList.toggle("busy", Boolean(veil?.busy));
    this.#veil.classList.toggle("small", Boolean(veil?.small));
    if (!veil) return;
    setText(find(".veil-title", this.#veil), veil.title);
    setText(find(".veil-text", this.#veil), veil.text ?? "");
    const button = find(".veil-action", this.#veil);
    button.hidden = !veil.action;
    button.dataset.action = veil.action ?? "";
    setText(button, veil.action ? ACTIONS[veil.action] : "");
  }
}
