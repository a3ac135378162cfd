// Streams the answers of the playground into its columns. Without this script the form waits for them.
"use strict";
(() => {
  const form = document.getElementById("play");
  if (!form) return;
  const stop = document.getElementById("stop"), state = document.getElementById("state");
  const warnings = document.getElementById("warnings");
  const of = (kind, number) => form.querySelector(`[data-${kind}="${number}"]`);
  let running = null;

  for (const number of form.querySelectorAll("input.weight")) {
    const slider = document.createElement("input");
    slider.type = "range";
    for (const name of ["min", "max", "step", "value"]) slider[name] = number[name];
    slider.setAttribute("aria-label", number.getAttribute("aria-label") + ", slider");
    slider.addEventListener("input", () => { number.value = slider.value; });
    number.addEventListener("input", () => { slider.value = number.value; });
    number.after(slider);
  }

  const show = (event) => {
    if (event.kind === "begun") {
      state.textContent = "The adapters answer.";
      warnings.replaceChildren(...event.warnings.map((text) => {
        const item = document.createElement("li");
        item.textContent = text;
        return item;
      }));
    } else if (event.kind === "piece") {
      of("column", event.column).textContent += event.text;
    } else if (event.kind === "ended") {
      of("about", event.column).textContent = event.about;
      of("about", event.column).classList.toggle("bad", event.failed);
    } else if (event.kind === "failed") {
      state.textContent = event.message;
    }
    return event.kind !== "failed";
  };

  const answer = async (signal) => {
    const response = await fetch("/playground-stream", {
      method: "POST", body: new URLSearchParams(new FormData(form)), signal, redirect: "error",
    });
    if (!response.ok) {
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      throw new Error(page.querySelector("main")?.textContent.trim() || `status ${response.status}`);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "", whole = true;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return whole;
      held += value;
      const events = held.split("\n\n");
      held = events.pop();
      for (const event of events) whole = show(JSON.parse(event.slice("data: ".length))) && whole;
    }
  };

  form.addEventListener("submit", async (submitted) => {
    if (submitted.submitter && submitted.submitter.value !== "answer") return;
    submitted.preventDefault();
    if (running) running.abort();
    const mine = running = new AbortController();
    for (const part of form.querySelectorAll("[data-column], [data-about]")) part.textContent = "";
    state.textContent = "The base is loading, or answers another question.";
    stop.hidden = false;
    try {
      if (await answer(mine.signal)) state.textContent = "Done.";
    } catch (error) {
      if (mine === running) state.textContent = mine.signal.aborted ? "Stopped." : error.message;
    }
    if (mine === running) stop.hidden = true;
  });
  stop.addEventListener("click", () => running && running.abort());
})();
