// The page's beginning: a new take with its settings, and the takes there are.

import { api } from "./api.js";
import { Composer } from "./composer.js";
import { find, make, remember, remembered, setText } from "./dom.js";
import { drawSlots } from "./memory.js";
import { memorySpec } from "./status.js";
import { Takes } from "./takes.js";

/**
 * A labelled field.
 * @param {string} label
 * @param {...HTMLElement} inside
 */
function field(label, ...inside) {
  return make("label", { class: "field" }, make("span", { class: "field-name" }, label), ...inside);
}

export class Home {
  #info;
  #view = find("#home");
  #takes = new Takes();
  #composer;
  #memory;
  #seed;
  #change;
  #width;
  #height;
  #length;
  /** @type {any} */
  #kind; // the memory that is chosen

  /**
   * @param {any} info
   * @param {import("./history.js").PromptHistory} history
   */
  constructor(info, history) {
    this.#info = info;
    const model = info.models[0];
    const { defaults, limits } = info;
    this.#composer = new Composer(find("#create"), model, limits, history, {
      id: "new-prompt",
      label: "Prompt of the new take",
      button: "Start",
      examples: true,
      send: (prompt) => this.#create(prompt),
    });

    this.#memory = make("select", { id: "memory-choice", "aria-describedby": "memory-about" }, ...info.memories.map((/** @type {any} */ memory) =>
      make("option", { value: memory.name, disabled: !memory.available }, memory.available ? memory.name : `${memory.name} (needs trained weights)`),
    ));
    this.#memory.value = defaults.memory.split(":")[0];
    this.#seed = make("input", { type: "number", min: "0", max: String(limits.seed), step: "1", inputmode: "numeric", placeholder: "any" });
    this.#change = make("select", {}, ...info.changes.map((/** @type {any} */ { name, description }) => make("option", { value: name, title: description }, name)));
    this.#change.value = remembered("on_change") ?? defaults.on_change;
    if (!this.#change.value) this.#change.value = defaults.on_change;
    const side = { type: "number", min: String(model.size_step), step: String(model.size_step), inputmode: "numeric" };
    this.#width = make("input", { ...side, value: String(defaults.width), "aria-label": "Width in pixels" });
    this.#height = make("input", { ...side, value: String(defaults.height), "aria-label": "Height in pixels" });
    this.#length = make("input", { type: "number", min: "1", step: "1", max: String(limits.max_seconds), inputmode: "numeric", placeholder: "never" });

    const about = make("p", { class: "quiet", id: "memory-about" });
    const drawing = make("div", { class: "memory-drawing" });
    const settings = make("div", { class: "fields memory-settings" });
    const changeAbout = make("p", { class: "quiet" });
    const choose = () => {
      this.#kind = info.memories.find((/** @type {any} */ memory) => memory.name === this.#memory.value);
      setText(about, sentence(this.#kind.description) + (this.#kind.paper ? ` ${this.#kind.paper}.` : ""));
      drawing.replaceChildren(drawSlots(this.#kind));
      settings.replaceChildren(...this.#kind.settings.map(memoryField));
    };
    const explain = () => {
      const chosen = info.changes.find((/** @type {any} */ change) => change.name === this.#change.value);
      setText(changeAbout, sentence(chosen.description));
    };
    this.#memory.addEventListener("change", choose);
    this.#change.addEventListener("change", () => {
      remember("on_change", this.#change.value);
      explain();
    });
    choose();
    explain();

    const fold = make(
      "details",
      { class: "fold settings" },
      make("summary", {}, "Memory, seed and size"),
      make(
        "div",
        { class: "settings-body" },
        make("div", { class: "fields" }, field("Memory", this.#memory), drawing),
        about,
        make("details", { class: "fold inner" }, make("summary", {}, "Its settings"), settings),
        make(
          "div",
          { class: "fields" },
          field("Seed", this.#seed),
          make("div", { class: "field", role: "group", "aria-label": "Size in pixels" }, make("span", { class: "field-name" }, "Size"), make("span", { class: "pair" }, this.#width, make("span", { "aria-hidden": "true" }, "×"), this.#height)),
          field("Ends after (seconds)", this.#length),
          field("A new prompt", this.#change),
        ),
        changeAbout,
      ),
    );
    fold.open = remembered("settings") === "open";
    fold.addEventListener("toggle", () => remember("settings", fold.open ? "open" : "closed"));
    this.#composer.extras.append(fold);
  }

  open() {
    this.#view.hidden = false;
    document.title = "Longtake";
    this.#composer.refresh();
    this.#takes.open();
    if (window.matchMedia("(hover: hover)").matches) this.#composer.focus(); // no keyboard that covers half a phone
  }

  close() {
    this.#view.hidden = true;
    this.#takes.close();
  }

  focus() {
    this.#composer.focus();
  }

  /** @param {string} prompt */
  async #create(prompt) {
    const { defaults } = this.#info;
    /** @type {Record<string, unknown>} */
    const wanted = { prompt, on_change: this.#change.value };
    const chosen = Object.fromEntries([...this.#view.querySelectorAll("[data-setting]")].map((input) => [input.dataset.setting, input.value]));
    const memory = memorySpec(this.#kind, chosen);
    if (memory !== defaults.memory) wanted.memory = memory;
    for (const [name, input, usual] of /** @type {[string, any, number | null][]} */ ([
      ["seed", this.#seed, null],
      ["width", this.#width, defaults.width],
      ["height", this.#height, defaults.height],
      ["max_seconds", this.#length, null],
    ])) {
      if (input.validity.badInput) throw new Error(`The ${name.replace("max_seconds", "length")} must be a number.`);
      if (input.value !== "" && Number(input.value) !== usual) wanted[name] = Number(input.value);
    }
    const take = await api.create(wanted);
    window.location.hash = take.id;
  }
}

/** @param {any} setting of a memory */
function memoryField(setting) {
  const usual = String(setting.value);
  const choices = setting.type === "bool" ? ["true", "false"] : setting.choices;
  if (choices) {
    const select = make("select", { "data-setting": setting.name }, ...choices.map((/** @type {string} */ choice) => make("option", { value: choice }, choice)));
    select.value = usual;
    return field(setting.name, select);
  }
  const number = setting.type === "int" || setting.type === "float";
  const input = make("input", { type: number ? "number" : "text", step: setting.type === "int" ? "1" : "any", value: usual, "data-setting": setting.name });
  return field(setting.name, input);
}

/** @param {string} text */
function sentence(text) {
  const whole = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
