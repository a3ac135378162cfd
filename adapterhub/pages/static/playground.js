// Streams the answers of the playground into its columns. Without this script the form waits for them.
"use strict";
(() => {
  const form = document.getElementById("play");
  if (!form) return;
  const stop = document.getElementById("stop"), state = document.getElementById("state");
  const warnings = document.getElementById("warnings"), asked = document.getElementById("asked");
  const of = (kind, number) => form.querySelector(`[data-${kind}="${number}"]`);
  const keep = (kind, number, text) => { form.elements[`${kind}-${number}`].value = text; }; // the form brings it back
  let running = null;

  const show = (event) => {
    if (event.kind === "begun") {
      state.textContent = "The adapters answer.";
      warnings.replaceChildren(...event.warnings.map((text) => {
        const item = document.createElement("li");
        item.textContent = text;
        return item;
      }));
    } else if (event.kind === "piece") {
      of("column", event.column).append(event.text);
    } else if (event.kind === "ended") {
      const about = of("about", event.column);
      about.textContent = event.about;
      about.classList.toggle("bad", event.failed);
      about.classList.toggle("quiet", !event.failed);
      keep("answer", event.column, of("column", event.column).textContent);
      keep("about", event.column, event.about);
      keep("label", event.column, event.failed ? "" : event.label);
      document.dispatchEvent(new Event("answered"));
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
    if (submitted.submitter && submitted.submitter.value !== "answer") {
      if (running) running.abort();
      return;
    }
    submitted.preventDefault();
    if (running) running.abort();
    const mine = running = new AbortController();
    const prompt = form.elements.prompt.value;
    for (const part of form.querySelectorAll("[data-column], [data-about]")) part.textContent = "";
    for (const field of form.querySelectorAll("input[type=hidden]"))
      if (/^(answer|about|label)-/.test(field.name)) field.value = "";
    form.elements.asked.value = asked.textContent = prompt;
    asked.parentElement.hidden = false;
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
  document.getElementById("base").addEventListener("change", () => {
    const button = document.createElement("button");
    button.name = "do";
    button.value = "show";
    button.hidden = true;
    form.append(button);
    form.requestSubmit(button);
  });
})();
