// Dark, light, or as the system has it.

import { find, remember, remembered, setIcon, setName } from "./dom.js";

const NEXT = { auto: "light", light: "dark", dark: "auto" };
const NAMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

export function setUpTheme() {
  const button = find("#theme");
  let theme = /** @type {keyof typeof NEXT} */ (remembered("theme") ?? "auto");
  if (!(theme in NEXT)) theme = "auto";

  const apply = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    setIcon(button, theme);
    setName(button, NAMES[theme], "T");
  };
  const next = () => {
    theme = /** @type {keyof typeof NEXT} */ (NEXT[theme]);
    remember("theme", theme);
    apply();
  };
  button.addEventListener("click", next);
  apply();
  return next;
}
