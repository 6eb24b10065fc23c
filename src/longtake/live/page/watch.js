// A take that is being watched: ties the player to everything around the picture.

import { address, api, ApiError } from "./api.js";
import { ChangeChoice } from "./changes.js";
import { Composer } from "./composer.js";
import { Controls } from "./controls.js";
import { find, remember, remembered, setText } from "./dom.js";
import { clock, spoken } from "./format.js";
import { MemoryView } from "./memory.js";
import { announce, attempt, notify } from "./notices.js";
import { Numbers } from "./numbers.js";
import { Player } from "./player.js";
import { openRepeat } from "./repeat.js";
import { Said } from "./said.js";
import { Screen } from "./screen.js";
import { stateText } from "./status.js";
import { Strip } from "./strip.js";

const STEP = 5; // seconds that the arrow keys go
const TELL_AGAIN = 60_000; // milliseconds
const WIDE = 1.3; // shape of a video from which there is room below it
const TWO_COLUMNS = window.matchMedia("(min-width: 60rem)");
const MAKING = new Set(["running", "starting", "queued"]);

export class Watch {
  #info;
  #composer;
  #controls;
  #screen = new Screen(find("#screen"));
  #view = find("#watch");
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
  /** Who watches alone and pauses, pauses the take: it goes on when he plays again. */
  #pausedHere = false;
  /** Stops and continuations, one after the other. @type {Promise<unknown>} */
  #moves = Promise.resolve();
  #moving = 0;
  /** The newest prompt that was sent from here. @type {{id: number, sent: number} | null} */
  #sent = null;
  /** @type {number | null} seconds from sending a prompt to seeing it */
  #seenAfter = null;
  #timer = 0;
  #toldBehind = -Infinity;
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
    this.#change = new ChangeChoice(this.#composer.extras, info.changes);
    this.#controls = new Controls({
      play: () => this.togglePlay(),
      stop: () => this.toggleMaking(),
      live: () => this.goLive(),
      sharpness: () => this.toggleSharp(),
      repeat: () => this.repeat(),
      full: () => this.toggleFull(),
      veil: (action) => this.#act(action),
    });
    this.#setSharp(remembered("sharp") === "yes");
    TWO_COLUMNS.addEventListener("change", () => this.#arrange());
  }

  /** @param {string} id */
  async open(id) {
    this.#opening += 1;
    const opening = this.#opening;
    this.#screen.clear();
    setText(find("#position"), clock(null));
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
    this.#sent = this.#seenAfter = null;
    this.#view.hidden = false;
    this.#view.style.setProperty("--shape", String(take.width / take.height));
    this.#arrange();
    this.#composer.refresh();
    this.#composer.text = take.prompt.prompt;
    this.#change.reset(take.on_change);
    const jump = (/** @type {number} */ seconds) => this.jump(seconds);
    this.#said = new Said(take.on_change, jump);
    this.#said.update(take.timeline, true);
    this.#strip = new Strip(take, this.#info.thumbnail_every, jump);
    this.#strip.mark(this.#said.entries);
    this.#memory = new MemoryView(take);
    if (take.memory_state) this.#memory.update(take.memory_state, true);
    this.#numbers = new Numbers();
    this.#setFacts();
    if (take.frames && !MAKING.has(take.state)) this.#still(take.frames - 1);
    this.#player = new Player(take, this.#info, this.#screen, {
      frame: (frame) => this.#frame(frame),
      take: (changed) => this.#takeChanged(changed),
      entries: (entries, all) => this.#entries(entries, all),
      memory: (memory) => this.#memory.update(memory, !this.#player?.live || !this.#player.playing),
      behind: () => this.#behind(),
      changed: () => this.#refresh(),
      problem: (message) => notify(message),
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

  get #making() {
    return MAKING.has(this.#take.state);
  }

  /** Whether everything that was made has been shown. */
  get #atEnd() {
    const player = this.#player;
    if (!player) return true;
    return player.empty && (!player.shown || player.shown.frame >= this.#take.frames - 1 || player.waiting);
  }

  // What can be done

  togglePlay() {
    const player = this.#player;
    const take = this.#take;
    if (!player) return;
    if (player.playing && (this.#making || !this.#atEnd)) {
      player.pause();
      announce("Paused");
      // Others go on watching; who is alone does not let it run on without him.
      if (player.live && take.state === "running" && take.viewers <= 1) {
        this.#pausedHere = true;
        this.#move("pause");
      }
      return;
    }
    announce("Playing");
    if (this.#pausedHere || (this.#atEnd && take.state === "paused" && take.can_continue)) {
      this.#pausedHere = false;
      player.play();
      this.#move("resume");
    } else if (this.#atEnd && !this.#making) {
      this.jump(0);
    } else {
      // It went on without this viewer, who wants to see what he missed.
      const missed = player.live && player.shown && take.frames - player.shown.frame > take.fps * (this.#info.ahead + 3);
      player.play();
      if (missed && player.shown) player.seek(player.shown.frame + 1);
    }
  }

  /** Stops making the take, for everybody, or goes on with it. */
  async toggleMaking() {
    if (!this.#take) return;
    this.#pausedHere = false;
    if (this.#making) {
      if (await this.#move("pause")) announce("Stopped");
    } else if (await this.#move("resume")) {
      this.#player?.play();
      this.#player?.seek("live");
      announce("Continued");
    }
  }

  goLive() {
    if (!this.#player) return;
    if (this.#pausedHere) {
      this.togglePlay();
      return;
    }
    this.#player.play();
    this.#player.seek("live");
    announce("Live");
  }

  /** @param {number} seconds of video */
  jump(seconds) {
    this.#player?.play();
    this.#player?.seek(Math.max(0, Math.round(seconds * this.#take.fps)));
    announce(`Playing from ${spoken(seconds)}`);
  }

  /** @param {number} direction -1 or 1 */
  step(direction) {
    const at = this.#player?.shown?.time;
    if (at === undefined) return;
    const to = at + direction * STEP;
    if (to < this.#take.seconds - this.#info.ahead) this.jump(Math.max(0, to));
    else if (this.#making) this.goLive();
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
    const entry = await api.steer(this.#take.id, prompt, this.#change.value);
    this.#sent = { id: entry.id, sent };
    this.#entries([entry], false);
    announce(`Said: ${prompt}`);
    if (this.#player && !this.#player.live && this.#making) this.goLive();
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
      this.#numbers.latency(this.#seenAfter, this.#take.latency);
      announce(`Now: ${this.#said.prompt(frame.prompt)}`);
    }
  }

  #behind() {
    const now = performance.now();
    if (now - this.#toldBehind < TELL_AGAIN) return;
    this.#toldBehind = now;
    notify("Some frames came too late and were left out here. They are in the recording.", "remark");
  }

  /** @param {any} take */
  #takeChanged(take) {
    const before = this.#take;
    this.#take = { ...before, ...take };
    this.#strip.update(take);
    this.#numbers.take(take);
    this.#numbers.latency(this.#seenAfter, take.latency);
    if (before.state !== take.state || before.place !== take.place) announce(stateText(take));
    this.#refresh();
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

  /**
   * Stops or continues the take, after what was asked for before has been done.
   * @param {"pause" | "resume"} how
   * @returns {Promise<boolean>} whether it is so now
   */
  #move(how) {
    const { id } = this.#take;
    this.#moving += 1;
    this.#refresh();
    const done = this.#moves.then(() => attempt(async () => {
      let take;
      try {
        take = await api[how](id);
      } catch (problem) {
        // Somebody else was faster.
        take = problem instanceof ApiError && problem.code === "conflict" ? await api.take(id) : null;
        if (!take || MAKING.has(take.state) !== (how === "resume")) throw problem;
      } finally {
        this.#moving -= 1;
      }
      if (this.#take?.id === id) this.#takeChanged(take);
      return true;
    }));
    this.#moves = done;
    return done.then(Boolean);
  }

  /** Buttons, and what lies over the picture. */
  #refresh() {
    const player = this.#player;
    const take = this.#take;
    if (!player || !take) return;
    this.#controls.update({
      take,
      player,
      making: this.#making,
      atEnd: this.#atEnd,
      moving: this.#moving > 0,
      ahead: this.#info.ahead,
      prompt: (player.shown && this.#said.prompt(player.shown.prompt)) || take.prompt.prompt,
    });
  }

  /** @param {"continue" | "new" | "replay"} action */
  #act(action) {
    if (action === "new") window.location.hash = "";
    else if (action === "replay") this.jump(0);
    else this.toggleMaking();
  }

  /**
   * Shows one frame of a take that does not run.
   * @param {number} frame
   */
  #still(frame) {
    const opening = this.#opening;
    const image = new Image();
    image.addEventListener("load", () => {
      if (opening !== this.#opening || this.#player?.shown) return;
      this.#screen.show(image);
      this.#strip.show(frame / this.#take.fps);
      setText(find("#position"), clock(frame / this.#take.fps, true));
    });
    image.src = address.frame(this.#take.id, frame);
  }

  #setFacts() {
    const { model, memory, seed, width, height, fps, device } = this.#take;
    setText(find("#facts"), [model, memory, `seed ${seed}`, `${width}×${height}`, `${fps} frames/s`, device].filter(Boolean).join(" · "));
  }

  /** Below a wide video there is room beside the prompt's column; beside a square one there is more. */
  #arrange() {
    if (!this.#take) return;
    const below = TWO_COLUMNS.matches && this.#take.width / this.#take.height > WIDE;
    const panels = [find(".memory-panel"), find(".now-panel")];
    if (below) find(".view").append(...panels);
    else find(".said-panel").before(...panels.reverse());
  }

  /** @param {boolean} sharp */
  #setSharp(sharp) {
    this.#screen.sharp = sharp;
    this.#controls.sharp = sharp;
  }
}
