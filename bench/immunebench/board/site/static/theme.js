// Runs before the page is drawn, so that a chosen theme does not flash. Without a choice the system's holds.
(() => {
  "use strict";
  let chosen = null;
  try {
    chosen = localStorage.getItem("immunebench-theme");
  } catch {
    // Storage may be closed to pages opened as files.
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  document.documentElement.classList.add("js");
})();
