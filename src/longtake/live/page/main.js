// Begins: learns what the server has, then shows the take in the address, or the list of takes.

import { api } from "./api.js";
import { find, setText, storage } from "./dom.js";
import { PromptHistory } from "./history.js";
import { Home } from "./home.js";
import { setUpKeys } from "./keys.js";
import { setUpTheme } from "./theme.js";
import { Watch } from "./watch.js";

const AGAIN = 2000; // milliseconds between questions to a server that is not ready

const nextTheme = setUpTheme();
const waiting = find("#waiting");
const info = await learn();
const history = new PromptHistory(storage());
const home = new Home(info, history);
const watch = new Watch(info, history);
/** @type {Home | Watch | null} */
let view = null;

const model = info.models[0];
setText(find("#model"), `${model.name} · ${model.width}×${model.height} · ${model.fps} frames/s`);
waiting.hidden = true;
setUpKeys([
  { keys: [" ", "k"], shown: "Space", name: "Play, pause", act: () => watch.togglePlay(), when: watching },
  { keys: ["/", "p"], shown: "/", name: "Write a prompt", act: () => view?.focus() },
  { keys: ["l"], shown: "L", name: "To what is being made", act: () => watch.goLive(), when: watching },
  { keys: ["ArrowLeft"], shown: "←", name: "Five seconds back", act: () => watch.step(-1), when: watching },
  { keys: ["ArrowRight"], shown: "→", name: "Five seconds on", act: () => watch.step(1), when: watching },
  { keys: ["Home"], shown: "Home", name: "To the beginning", act: () => watch.jump(0), when: watching },
  { keys: ["s"], shown: "S", name: "Stop or continue the take", act: () => watch.toggleMaking(), when: watching },
  { keys: ["n"], shown: "N", name: "New take", act: () => (window.location.hash = "") },
  { keys: ["f"], shown: "F", name: "Full screen", act: () => watch.toggleFull(), when: watching },
  { keys: ["x"], shown: "X", name: "Pixels or smooth", act: () => watch.toggleSharp(), when: watching },
  { keys: ["c"], shown: "C", name: "Command that makes it again", act: () => watch.repeat(), when: watching },
  { keys: ["d"], shown: "D", name: "Download what was seen", act: () => find("#download").click(), when: watching },
  { keys: ["t"], shown: "T", name: "Theme", act: nextTheme },
]);
find("[data-skip]").addEventListener("click", (/** @type {Event} */ event) => {
  event.preventDefault(); // the address says which take is shown
  view?.focus();
});
window.addEventListener("hashchange", route);
await first();

function watching() {
  return view === watch;
}

/** What the server has; asks until it answers. */
async function learn() {
  for (;;) {
    let told;
    try {
      const found = await api.info();
      if (found.devices.some((/** @type {any} */ device) => device.ready)) return found;
      told = "The model is being loaded.";
    } catch (problem) {
      told = /** @type {Error} */ (problem).message;
      if (/** @type {any} */ (problem).status === 401) {
        setText(find("#waiting-text"), told);
        await new Promise(() => {}); // asking again would not help
      }
    }
    setText(find("#waiting-text"), told);
    await new Promise((resolve) => window.setTimeout(resolve, AGAIN));
  }
}

/** Whoever opens the page while a take runs wants to see it. */
async function first() {
  if (!takeInAddress()) {
    const takes = await api.takes().catch(() => []);
    const running = takes.find((/** @type {any} */ take) => ["running", "starting", "queued"].includes(take.state));
    if (running) {
      window.location.replace(`#${running.id}`);
      return; // and hashchange shows it
    }
  }
  route();
}

function takeInAddress() {
  const id = window.location.hash.slice(1);
  return /^[0-9a-f]{16}$/.test(id) ? id : null;
}

function route() {
  view?.close();
  const id = takeInAddress();
  if (id) {
    view = watch;
    watch.open(id);
  } else {
    view = home;
    home.open();
  }
  window.scrollTo(0, 0);
}
