// Before anything is drawn: the theme that was chosen, so that the page never flashes in the other one.
try {
  const theme = localStorage.getItem("longtake.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // no storage: the system's theme
}
