// The first page that the search of a built site finds for each word: `node search.js SITE WORD …` prints JSON.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [site, ...words] = process.argv.slice(2);
const nothing = { addEventListener() {}, getElementById: () => null, documentElement: { dataset: {} } };
const stored = { setItem() {}, getItem: () => null, removeItem() {} };
const world = { document: nothing, localStorage: stored, URLSearchParams, console, location: { search: "" } };
world.window = world;
vm.createContext(world);
const run = (text) => vm.runInContext(text, world);
run("var SPHINX_HIGHLIGHT_ENABLED = false; const _ = (text) => text; const _ready = () => {};");
for (const name of ["_static/searchtools.js", "_static/language_data.js", "searchindex.js"])
  run(fs.readFileSync(path.join(site, name), "utf-8").replace(/^_ready\(.*$/m, ""));
const found = {};
for (const word of words) {
  world.location.search = "?q=" + encodeURIComponent(word);
  const results = run(`Search._performSearch(...Search._parseQuery(${JSON.stringify(word)}))`);
  found[word] = results.length ? results[results.length - 1][0] : null;
}
process.stdout.write(JSON.stringify(found));
