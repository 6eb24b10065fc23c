// A take that is being watched: ties the player to everything around the picture.

import { address, api } from "./api.js";
import { Composer } from "./composer.js";
import { find, make, remember, remembered, setIcon, setName, setText } from "./dom.js";
import { clock, spoken } from "./format.js";
import { MemoryView } from "./memory.js";
import { announce, attempt, notify } from "./notices.js";
import { Numbers } from "./numbers.js";
import { Player } from "./player.js";
import { openRepeat } from "./repeat.js";
import { Said } from "./said.js";
import { Screen } from "./screen.js";
import { stateText, veilOf } from "./status.js";
import { Strip } from "./strip.js";

const STEP = 5; // seconds that the arrow keys go
const GENERATING = new Set(["running", "starting", "queued"]);

export class Watch {
  #info;
  #composer;
  #screen = new Screen(find("#screen"));
  #view = find("#watch");
  #canvas = find("#screen");
  #buttons = Object.fromEntries(["play", "stop", "live", "sharpness", "repeat", "download", "full"].map((id) => [id, find(`#${id}`)]));
  #veil = find("#veil");
  #change;

  /** @type {any} */
  #take = null;
  /** @type {Player | null} */
  #player = null;
  /** @type {Said | any} */
  #said;
  /** @type {Strip | any} */
  #strip;
  /** @type {MemoryView | any} */
  #memory;
  /** @type {Numbers | any} */
  #numbers;
  /** Paused here, and only for this viewer: to be continued when it is played again. */
  #pausedHere = false;
  /** The newest change that was sent from here. @type {{id: number, sent: number} | null} */
  #sent = null;
  /** @type {number | null} seconds from sending a prompt to seeing it */
  #seenAfter = null;
  #timer = 0;
  #opening = 0;

  /**
   * @param {any} info
   * @param {import("./history.js").PromptHistory} history
   */
  constructor(info, history) {
    this.#info = info;
    this.#composer = new Composer(find("#steer"), info.models[0], info.limits, history, {
      id: "prompt",
      label: "What it should show next",
      button: "Say",
      examples: false,
      send: (prompt) => this.#say(prompt),
    });
    this.#change = make("select", { id: "change" });
    this.#composer.extras.append(
      make("label", { class: "field inline" }, make("span", { class: "field-name" }, "The past"), this.#change),
      make("p", { class: "quiet change-about", id: "change-about" }),
    );
    this.#change.setAttribute("aria-describedby", "change-about");
    this.#change.addEventListener("change", () => this.#explainChange());
    this.#buttons.play.addEventListener("click", () => this.togglePlay());
    this.#buttons.stop.addEventListener("click", () => this.toggleMaking());
    this.#buttons.live.addEventListener("click", () => this.goLive());
    this.#buttons.sharpness.addEventListener("click", () => this.toggleSharp());
    this.#buttons.full.addEventListener("click", () => this.toggleFull());
    this.#buttons.repeat.addEventListener("click", () => this.repeat());
    find(".veil-action", this.#veil).addEventListener("click", () => this.#act());
    setName(this.#buttons.repeat, "The command that makes this take again", "C");
    setName(this.#buttons.full, "Full screen", "F");
    this.#setSharp(remembered("sharp") === "yes");
  }

  /** @param {string} id */
  async open(id) {
    this.#opening += 1;
    const opening = this.#opening;
    this.#screen.clear();
    let take;
    try {
      take = await api.take(id);
    } catch (problem) {
      notify(problem);
      if (opening === this.#opening) window.location.hash = "";
      return;
    }
    if (opening !== this.#opening) return; // somebody went on meanwhile
    this.#take = take;
    this.#pausedHere = false;
    this.#sent = null;
    this.#seenAfter = null;
    this.#view.hidden = false;
    this.#view.style.setProperty("--shape", String(take.width / take.height));
    this.#composer.refresh();
    this.#composer.text = take.prompt.prompt;
    this.#fillChanges();
    const jump = (/** @type {number} */ seconds) => this.jump(seconds);
    this.#said = new Said(take.on_change, jump);
    this.#said.update(take.timeline, true);
    this.#strip = new Strip(take, this.#info.thumbnail_every, jump);
    this.#strip.mark(this.#said.entries);
    this.#memory = new MemoryView(take);
    if (take.memory_state) this.#memory.update(take.memory_state, true);
    this.#numbers = new Numbers();
    this.#setFacts();
    if (take.frames && !GENERATING.has(take.state)) this.#still(take.frames - 1);
    this.#player = new Player(take, this.#info, this.#screen, {
      frame: (frame) => this.#frame(frame),
      take: (changed) => this.#takeChanged(changed),
      entries: (entries, all) => this.#entries(entries, all),
      memory: (memory) => this.#memory.update(memory, !this.#player?.live || !this.#player.playing),
      changed: () => this.#refresh(),
      problem: notify,
    });
    this.#takeChanged(take);
    this.#timer = window.setInterval(() => this.#refresh(), 250);
    announce(`${stateText(take)}: ${take.prompt.prompt}`);
  }

  close() {
    this.#opening += 1;
    window.clearInterval(this.#timer);
    this.#player?.close();
    this.#player = null;
    this.#strip?.close();
    this.#take = null;
    this.#view.hidden = true;
  }

  focus() {
    this.#composer.focus();
  }

  // What can be done

  async togglePlay() {
    const player = this.#player;
    if (!player) return;
    const take = this.#take;
    if (player.playing && !(this.#atEnd && !GENERATING.has(take.state))) {
      player.pause();
      announce("Paused");
      // Others go on watching; who is alone does not let it run on without him.
      if (player.live && take.state === "running" && take.viewers <= 1) {
        this.#pausedHere = true;
        await attempt(() => this.#move("pause"));
      }
      return;
    }
    if (this.#pausedHere || (this.#atEnd && take.state === "paused" && take.can_continue)) {
      this.#pausedHere = false;
      player.play();
      await attempt(() => this.#move("resume"));
    } else if (this.#atEnd && !GENERATING.has(take.state)) {
      player.play();
      player.seek(0);
    } else {
      const lag = player.live && player.shown && take.frames - player.shown.frame > take.fps * (this.#info.ahead + 3);
      player.play();
      if (lag && player.shown) player.seek(player.shown.frame + 1); // goes on where it was, behind what is made
    }
    announce("Playing");
  }

  /** Stops making the take, for everybody, or goes on with it. */
  async toggleMaking() {
    const take = this.#take;
    if (!take) return;
    this.#pausedHere = false;
    if (GENERATING.has(take.state)) {
      if (await attempt(() => this.#move("pause"))) announce("Stopped");
    } else if (await attempt(() => this.#move("resume"))) {
      this.#player?.play();
      this.#player?.seek("live");
      announce("Continued");
    }
  }

  goLive() {
    if (!this.#player) return;
    this.#player.play();
    this.#player.seek("live");
    announce("Live");
  }

  /** @param {number} seconds of video */
  jump(seconds) {
    const { fps } = this.#take;
    this.#player?.play();
    this.#player?.seek(Math.max(0, Math.round(seconds * fps)));
    announce(`Playing from ${spoken(seconds)}`);
  }

  /** @param {number} direction -1 or 1 */
  step(direction) {
    const at = this.#player?.shown?.time;
    if (at === undefined) return;
    const to = at + direction * STEP;
    if (to * this.#take.fps >= this.#take.frames - this.#take.fps * this.#info.ahead) this.goLive();
    else this.jump(Math.max(0, to));
  }

  toggleSharp() {
    this.#setSharp(!this.#screen.sharp);
    remember("sharp", this.#screen.sharp ? "yes" : "no");
  }

  toggleFull() {
    if (document.fullscreenElement) document.exitFullscreen();
    else find("#stage").requestFullscreen?.().catch(notify);
  }

  repeat() {
    if (this.#take) openRepeat(this.#take.id);
  }

  // What happens

  /** @param {string} prompt */
  async #say(prompt) {
    const sent = performance.now();
    const entry = await api.steer(this.#take.id, prompt, this.#change.value || null);
    this.#sent = { id: entry.id, sent };
    this.#entries([entry], false);
    announce(`Said: ${prompt}`);
    if (!this.#player?.live) this.goLive();
  }

  /** @param {import("./player.js").Shown} frame */
  #frame(frame) {
    const now = performance.now();
    this.#strip.show(frame.time);
    this.#said.show(frame.prompt);
    this.#memory.at(frame.frame);
    this.#numbers.frame(frame.time, now);
    setText(find("#position"), clock(frame.time, true));
    if (this.#sent && frame.prompt === this.#sent.id) {
      this.#seenAfter = (now - this.#sent.sent) / 1000;
      this.#sent = null;
      this.#showLatency();
      announce(`Now: ${this.#said.prompt(frame.prompt)}`);
    }
  }

  /** @param {any} take */
  #takeChanged(take) {
    const before = this.#take;
    this.#take = { ...before, ...take };
    this.#strip.update(take);
    this.#numbers.take(take);
    this.#showLatency();
    setText(find("#made"), clock(take.seconds));
    if (before.state !== take.state || before.place !== take.place) announce(stateText(take));
    this.#refresh();
  }

  #showLatency() {
    this.#numbers.latency(this.#seenAfter, this.#take.latency);
  }

  /**
   * @param {any[]} entries
   * @param {boolean} all
   */
  #entries(entries, all) {
    this.#said.update(entries, all);
    this.#strip.mark(this.#said.entries);
    for (const entry of entries) {
      if (entry.id === this.#sent?.id && entry.state !== "waiting" && entry.state !== "holds") this.#sent = null;
      if (entry.state === "refused" && entry.message && !all) notify(entry.message);
    }
  }

  /** @param {"pause" | "resume"} how */
  async #move(how) {
    const take = await api[how](this.#take.id);
    if (this.#take?.id === take.id) this.#takeChanged(take);
    return take;
  }

  get #atEnd() {
    const player = this.#player;
    if (!player) return true;
    return player.empty && (!player.shown || player.shown.frame >= this.#take.frames - 1 || player.waiting);
  }

  /** Buttons, and what lies over the picture. */
  #refresh() {
    const player = this.#player;
    const take = this.#take;
    if (!player || !take) return;
    const making = GENERATING.has(take.state);
    const behind = player.shown ? take.frames - 1 - player.shown.frame : 0;
    const ended = this.#atEnd && !making;
    const playing = player.playing && !ended;
    const live = playing && making && (player.live || behind < take.fps * (this.#info.ahead + 2));
    setIcon(this.#buttons.play, playing ? "pause" : "play");
    setName(this.#buttons.play, playing ? "Pause" : "Play", "Space");
    setIcon(this.#buttons.stop, making ? "stop" : "continue");
    setName(this.#buttons.stop, making ? "Stop making this take" : "Continue making this take", "S");
    this.#buttons.stop.disabled = !making && !take.can_continue;
    this.#buttons.live.setAttribute("aria-pressed", String(live));
    this.#buttons.live.disabled = !making;
    setText(find(".live-text", this.#buttons.live), live || !making || !player.shown ? "Live" : `−${clock(behind / take.fps)}`);
    setName(this.#buttons.live, live ? "Live: shows what is being made" : "Go to what is being made", "L");
    this.#refreshDownload();
    const veil = veilOf({ take, connected: player.connected, trouble: player.trouble, playing: player.playing, atEnd: this.#atEnd, waiting: player.waiting });
    this.#showVeil(veil);
    const shown = player.shown ? this.#said.prompt(player.shown.prompt) : take.prompt.prompt;
    const label = `The video: ${shown}`;
    if (this.#canvas.getAttribute("aria-label") !== label) this.#canvas.setAttribute("aria-label", label);
    const title = `${take.prompt.prompt} – Longtake`;
    if (document.title !== title) document.title = title;
    setText(find("#watch-title"), `Take: ${take.prompt.prompt}`);
  }

  #refreshDownload() {
    const link = this.#buttons.download;
    const seen = Math.max(this.#player?.seen ?? -1, 0);
    const until = this.#player && this.#player.seen >= 0 ? seen : this.#take.frames - 1;
    if (until < 0) {
      link.removeAttribute("href");
      link.setAttribute("aria-disabled", "true");
      setName(link, "Nothing to download yet");
      return;
    }
    link.removeAttribute("aria-disabled");
    link.setAttribute("href", address.video(this.#take.id, until));
    link.setAttribute("download", `longtake-${this.#take.id}.mp4`);
    setName(link, `Download what was seen, ${clock((until + 1) / this.#take.fps)}`, "D");
  }

  /** @param {import("./status.js").Veil | null} veil */
  #showVeil(veil) {
    this.#veil.hidden = veil === null;
    this.#veil.classList.toggle("busy", Boolean(veil?.busy));
    if (!veil) return;
    setText(find(".veil-title", this.#veil), veil.title);
    setText(find(".veil-text", this.#veil), veil.text ?? "");
    const names = { continue: "Continue", resume: "Continue", new: "New take", replay: "Play from the beginning" };
    const button = find(".veil-action", this.#veil);
    button.hidden = !veil.action;
    button.dataset.action = veil.action ?? "";
    setText(button, veil.action ? names[veil.action] : "");
  }

  #act() {
    switch (find(".veil-action", this.#veil).dataset.action) {
      case "new":
        window.location.hash = "";
        break;
      case "replay":
        this.jump(0);
        break;
      case "resume":
        this.togglePlay();
        break;
      default:
        this.toggleMaking();
    }
  }

  /**
   * Shows one frame of a take that does not run.
   * @param {number} frame
   */
  #still(frame) {
    const opening = this.#opening;
    const image = new Image();
    image.addEventListener("load", () => {
      if (opening === this.#opening && !this.#player?.shown) this.#screen.show(image);
    });
    image.src = address.frame(this.#take.id, frame);
    this.#strip.show(frame / this.#take.fps);
    setText(find("#position"), clock(frame / this.#take.fps, true));
  }

  #fillChanges() {
    const usual = this.#info.changes.find((/** @type {any} */ change) => change.name === this.#take.on_change);
    this.#change.replaceChildren(
      make("option", { value: "" }, `${usual?.name ?? this.#take.on_change} (as the take)`),
      ...this.#info.changes.filter((/** @type {any} */ { name }) => name !== usual?.name).map((/** @type {any} */ { name }) => make("option", { value: name }, name)),
    );
    this.#explainChange();
  }

  #explainChange() {
    const name = this.#change.value || this.#take.on_change;
    setText(find("#change-about"), this.#info.changes.find((/** @type {any} */ change) => change.name === name)?.description ?? "");
  }

  #setFacts() {
    const { model, memory, seed, width, height, fps, device } = this.#take;
    setText(find("#facts"), [model, memory, `seed ${seed}`, `${width}×${height}`, `${fps} frames/s`, device].filter(Boolean).join(" · "));
  }

  /** @param {boolean} sharp */
  #setSharp(sharp) {
    this.#screen.sharp = sharp;
    setIcon(this.#buttons.sharpness, sharp ? "smooth" : "sharp");
    setName(this.#buttons.sharpness, sharp ? "Show smooth" : "Show pixels", "X");
  }
}
