// Theme, filters, column groups and sorting; all but the theme is kept in the address after the '#'.
(() => {
  "use strict";

  const root = document.documentElement;
  const FACETS = ["track", "family", "attack", "profile", "status", "method", "source", "certainty"];
  const controls = [...document.querySelectorAll("[data-control]")];
  const tables = [...document.querySelectorAll("table[data-sortable]")];
  let restoring = false;

  function initTheme() {
    const button = document.querySelector("[data-theme-toggle]");
    if (!button) return;
    const system = matchMedia("(prefers-color-scheme: dark)");
    const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
    const tell = () => button.setAttribute("aria-pressed", String(dark()));
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try {
        localStorage.setItem("immunebench-theme", root.dataset.theme);
      } catch {
        // Then the choice holds for this page only.
      }
      tell();
    });
    system.addEventListener("change", tell);
    tell();
  }

  // A hash with '=' is a state; one without is the id of a section.
  function readState() {
    const hash = location.hash.slice(1);
    return new URLSearchParams(hash.includes("=") ? hash : "");
  }

  function writeState(change) {
    if (restoring) return;
    const state = readState();
    for (const [name, value] of Object.entries(change)) {
      if (value) state.set(name, value);
      else state.delete(name);
    }
    state.sort();
    const hash = state.toString();
    // '#' alone would scroll to the top.
    history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
  }

  function initTables() {
    for (const table of tables) {
      new Tablesort(table, { descending: true });
      for (const head of table.tHead.rows[table.tHead.rows.length - 1].cells) {
        head.addEventListener("keydown", (event) => {
          if (event.key !== " ") return;
          event.preventDefault();
          head.click();
        });
      }
      table.addEventListener("afterSort", () => {
        const head = table.querySelector("th[aria-sort]");
        if (head) writeState({ sort: `${table.id}.${head.dataset.key}.${head.getAttribute("aria-sort")}` });
      });
    }
  }

  function sortBy(text) {
    const match = /^([a-z]+)\.(.+)\.(ascending|descending)$/.exec(text || "");
    const table = match && tables.find((one) => one.id === match[1]);
    const head = table && [...table.querySelectorAll("th[data-key]")].find((one) => one.dataset.key === match[2]);
    if (!head) return;
    // The script turns the direction round at each click.
    for (let clicks = 0; clicks < 2 && head.getAttribute("aria-sort") !== match[3]; clicks += 1) head.click();
  }

  function filterRows(chosen, query) {
    let shown = 0;
    for (const row of document.querySelectorAll("tr[data-row], figure[data-row]")) {
      const fits = FACETS.every((facet) => {
        const values = row.getAttribute("data-" + facet);
        return !chosen[facet] || values === null || values.split(" ").includes(chosen[facet]);
      });
      row.hidden = !(fits && (row.dataset.text || "").toLowerCase().includes(query));
      shown += row.hidden || row.tagName !== "TR" ? 0 : 1;
    }
    for (const block of document.querySelectorAll("[data-block]")) block.hidden = !block.querySelector("[data-row]:not([hidden])");
    return shown;
  }

  function filterColumns(chosen, groups) {
    for (const table of tables) {
      const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
      const hide = heads.map((head) => {
        const { group, member } = head.dataset;
        if (!group) return false;
        if (member && chosen[group]) return member !== chosen[group];
        return groups !== null && !groups.has(group);
      });
      for (const row of table.rows) {
        if (row.cells.length === heads.length) [...row.cells].forEach((cell, index) => (cell.hidden = hide[index]));
      }
    }
  }

  function apply() {
    const chosen = {};
    let query = "";
    const boxes = controls.filter((control) => control.type === "checkbox");
    for (const control of controls) {
      if (control.type === "search") query = control.value.trim().toLowerCase();
      else if (control.type !== "checkbox") chosen[control.dataset.control] = control.value;
    }
    const groups = boxes.length ? new Set(boxes.filter((box) => box.checked).map((box) => box.value)) : null;
    const shown = filterRows(chosen, query);
    filterColumns(chosen, groups);
    const count = document.querySelector("[data-count]");
    if (count) count.textContent = `${shown} shown`;
    const standard = boxes.filter((box) => box.defaultChecked).map((box) => box.value);
    const columns = groups && [...groups].join(" ") !== standard.join(" ") ? [...groups].join(" ") || "none" : "";
    writeState({ ...chosen, q: query, columns });
  }

  function restore() {
    const state = readState();
    restoring = true;
    const columns = state.get("columns");
    for (const control of controls) {
      if (control.type === "checkbox") {
        control.checked = columns === null ? control.defaultChecked : columns.split(" ").includes(control.value);
      } else if (control.type === "search") {
        control.value = state.get("q") || "";
      } else {
        const value = state.get(control.dataset.control) || "";
        control.value = [...control.options].some((option) => option.value === value) ? value : "";
      }
    }
    apply();
    sortBy(state.get("sort"));
    restoring = false;
  }

  initTheme();
  initTables();
  for (const bar of document.querySelectorAll("[data-needs-script]")) bar.hidden = false;
  for (const control of controls) control.addEventListener(control.type === "search" ? "input" : "change", apply);
  document.querySelector("[data-reset]")?.addEventListener("click", () => {
    history.replaceState(null, "", location.pathname + location.search);
    restore();
  });
  addEventListener("hashchange", restore);
  if (controls.length || tables.length) restore();
})();
