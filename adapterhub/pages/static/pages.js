// What the pages do beyond links and forms; each works without this script, less comfortably. Events are heard at the
// document, so that what htmx puts into a page needs no start of its own.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const hear = (kind, selector, act) => document.addEventListener(kind, (event) => {
    const found = event.target.closest?.(selector);
    if (found) act(found, event);
  });
  document.documentElement.classList.add("scripted");

  // Copy buttons: they lie beside the code and keep their place, so nothing moves.
  const said = document.getElementById("said");
  const copy = async (text) => {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const field = document.createElement("textarea"); // a registry on plain http has no clipboard API
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  };
  hear("click", "button.copy", async (button) => {
    await copy(button.parentElement.querySelector("code").textContent.trim());
    const say = (word, message) => {
      button.textContent = word;
      button.setAttribute("aria-label", button.getAttribute("aria-label").replace(/^\w+/, word));
      said.textContent = message;
    };
    say("Copied", "Copied to the clipboard");
    setTimeout(say, 1600, "Copy", "");
  });

  // Menus close on Escape and on a click elsewhere.
  const close = (but) => all("details.drop[open]").forEach((menu) => { if (!menu.contains(but)) menu.open = false; });
  document.addEventListener("click", (event) => close(event.target));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const menu = event.target.closest?.("details.drop[open]");
    close(null);
    if (menu) menu.querySelector("summary").focus();
  });

  // Heat maps: the value under the pointer, or of the cell that the arrow keys chose.
  const show = (map, cell) => {
    if (!cell) return;
    map.querySelector("rect.on")?.classList.remove("on");
    cell.classList.add("on");
    document.getElementById(map.dataset.out).textContent = cell.querySelector("title").textContent;
  };
  hear("pointerover", "svg.heat rect.c", (cell) => show(cell.closest("svg"), cell));
  hear("focusin", "svg.heat", (map) => show(map, map.querySelector("rect.on") ?? map.querySelector("rect.c")));
  hear("keydown", "svg.heat", (map, event) => {
    const wide = Number(map.dataset.columns), cells = all("rect.c", map);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[event.key];
    if (!step) return;
    event.preventDefault();
    show(map, cells[cells.findIndex((cell) => cell.classList.contains("on")) + step]);
  });

  // A slider and its number field hold the same value.
  hear("input", ".term input", (field) => {
    for (const other of all("input", field.closest(".term"))) if (other !== field) other.value = field.value;
  });
  document.addEventListener("htmx:after:swap", () => {
    const count = document.getElementById("count"); // how many adapters match what was typed
    if (count) said.textContent = count.textContent;
  });
  hear("change", "form.at-once select", (select) => { sessionStorage.at = select.name; select.form.requestSubmit(); });
  all("form.at-once select").find((one) => one.name === sessionStorage.at)?.focus(); // so that the keyboard goes on there
  delete sessionStorage.at;

  // Words of an answer that the first column's answer lacks (longest common subsequence, at most 600 words a side).
  const words = (text) => text.split(/(\s+)/).filter(Boolean).slice(0, 1200);
  const differ = (mine, other) => {
    const a = words(mine), b = words(other);
    const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    const parts = [];
    let i = 0, j = 0;
    while (i < a.length) {
      if (j < b.length && a[i] === b[j]) { parts.push([false, a[i++]]); j++; }
      else if (j < b.length && best[i][j + 1] > best[i + 1][j]) j++;
      else parts.push([!/^\s+$/.test(a[i]), a[i++]]);
    }
    // the space within a changed run belongs to it
    parts.forEach((part, k) => { if (parts[k - 1]?.[0] && parts[k + 1]?.[0]) part[0] = true; });
    parts.push([false, mine.slice(a.join("").length)]);
    return parts;
  };
  const toggle = document.getElementById("differences");
  const mark = () => {
    const texts = all(".answer"), first = texts[0]?.textContent ?? "";
    for (const text of texts.slice(1)) {
      const whole = text.textContent;
      text.replaceChildren(...(toggle.checked ? differ(whole, first) : [[false, whole]]).map(([other, word]) => {
        const node = other ? document.createElement("mark") : document.createTextNode(word);
        node.textContent = word;
        return node;
      }));
      text.normalize();
    }
  };
  if (toggle) {
    toggle.addEventListener("change", mark);
    document.addEventListener("answered", mark); // the streaming of the playground tells of each whole answer
    mark();
  }

  // Ctrl+Enter answers; "/" goes to the search field.
  document.addEventListener("keydown", (event) => {
    const field = event.target.closest?.("input, textarea, select");
    if (event.key === "Enter" && event.ctrlKey && field?.name === "prompt") field.form.requestSubmit();
    const search = event.key === "/" && !field && all("input[type=search]").find((one) => one.offsetParent);
    if (search) { event.preventDefault(); search.focus(); }
  });
})();
