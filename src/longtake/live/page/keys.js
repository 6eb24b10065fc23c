// Keyboard shortcuts, and the list of them.

import { find, make, remember, remembered } from "./dom.js";

/**
 * @typedef {object} Shortcut
 * @property {string[]} keys as KeyboardEvent.key has them
 * @property {string} shown
 * @property {string} name
 * @property {() => void} act
 * @property {() => boolean} [when] whether it applies now
 */

const TEXT = new Set(["text", "search", "number", "url", "email", "password", "tel"]);

/** @param {EventTarget | null} target */
export function isTextField(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return TEXT.has(target.type);
  return target instanceof HTMLTextAreaElement || target.isContentEditable;
}

/**
 * What the browser itself does with Space and the arrows on this element.
 * @param {EventTarget | null} target
 * @param {string} key
 */
function hasOwnUse(target, key) {
  if (!(target instanceof Element)) return false;
  if (key === " ") return target.closest("button, a[href], select, summary, input") !== null;
  if (key.startsWith("Arrow") || key === "Home" || key === "End") return target.closest("select, input, .strip, pre") !== null;
  return target.closest("select") !== null;
}

/** @param {Shortcut[]} shortcuts */
export function setUpKeys(shortcuts) {
  const dialog = find("#keys-dialog");
  const single = find("#single-keys");
  single.checked = remembered("keys") !== "off";
  single.addEventListener("change", () => remember("keys", single.checked ? "on" : "off"));

  const open = () => {
    if (!dialog.open) dialog.showModal();
  };
  const all = [...shortcuts, { keys: ["?"], shown: "?", name: "This list", act: open }];
  const rows = [
    ...all.map(({ shown, name }) => [shown, name]),
    ["Enter", "Say the prompt"],
    ["↑ ↓", "Prompts said before"],
    ["Esc", "Leave the prompt"],
  ];
  find("#keys").append(
    ...rows.map(([shown, name]) => make("div", {}, make("dt", {}, ...shown.split(" ").map((key) => make("kbd", {}, key))), make("dd", {}, name))),
  );
  find("#help").addEventListener("click", open);

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && isTextField(event.target)) {
      /** @type {HTMLElement} */ (event.target).blur();
      return;
    }
    if (!single.checked && event.key !== " ") return;
    if (isTextField(event.target) || document.querySelector("dialog[open]") || hasOwnUse(event.target, event.key)) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const found = all.find((shortcut) => shortcut.keys.includes(key) && (!("when" in shortcut) || !shortcut.when || shortcut.when()));
    if (!found) return;
    event.preventDefault();
    found.act();
  });

  // After a click with a pointer, Space is for the video again; who uses the keyboard stays where he is.
  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? event.target.closest("button, summary") : null;
    if (button && event.detail > 0) /** @type {HTMLElement} */ (button).blur();
  });

  for (const window_ of document.querySelectorAll("dialog")) {
    window_.addEventListener("click", (event) => {
      if (event.target === window_) window_.close(); // beside it
    });
  }
}
