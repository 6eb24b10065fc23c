// The command that makes a take again.

import { api } from "./api.js";
import { find, make, setText } from "./dom.js";
import { clock } from "./format.js";
import { announce, attempt, notify } from "./notices.js";

/** @param {string} id of the take */
export async function openRepeat(id) {
  const found = await attempt(() => api.repeat(id));
  if (!found) return;
  // lines break between words only, never after the hyphens of an option
  const words = found.command.split(" ").flatMap((/** @type {string} */ word, /** @type {number} */ i) => [i ? " " : "", make("span", {}, word)]);
  find("#repeat-command").replaceChildren(...words);
  setText(
    find("#repeat-text"),
    `This command makes the first ${clock(found.seconds, true)} of the take again${found.exact ? ", byte for byte on this computer" : ""}.`,
  );
  const note = find("#repeat-note");
  note.hidden = !found.note;
  setText(note, found.note ?? "");
  const copy = find("#repeat-copy");
  setText(find("span", copy), "Copy");
  copy.onclick = async () => {
    if (await copyText(found.command, find("#repeat-command"))) {
      setText(find("span", copy), "Copied");
      announce("Copied");
    } else notify("The browser allows no copying here; the command is selected.");
  };
  const dialog = find("#repeat-dialog");
  if (!dialog.open) dialog.showModal();
  copy.focus();
}

/**
 * @param {string} text
 * @param {HTMLElement} shown where it stands, to select it
 */
async function copyText(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Only secure pages have a clipboard, and http on another address is none.
    window.getSelection()?.selectAllChildren(shown);
    return document.execCommand("copy");
  }
}
