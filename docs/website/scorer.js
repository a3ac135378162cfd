// The order of the site's search: pages whose title has the word, the earlier the better; guides before tutorials,
// explanations and reference; sections after pages, and Python names last. Sphinx copies this into `language_data.js`.
var Scorer = {
  score: ([name, title, anchor, , score, , kind]) => {
    if (kind === "object" || name === "reference/api") return score / 100;
    const words = (new URLSearchParams(window.location.search).get("q") || "").toLowerCase().match(/\w+/g) || [];
    const page = anchor ? title.split(" > ")[0].toLowerCase() : title.toLowerCase();
    const places = words.map((word) => page.search(new RegExp("\\b" + word)));
    const part = ["reference", "explanation", "tutorial", "how-to"].indexOf(name.split("/")[0]) + 1;
    const inTitle = words.length > 0 && places.every((place) => place >= 0) ? 1000 - Math.min(900, 8 * Math.max(...places)) : 0;
    return inTitle + 40 * part + (anchor ? 0 : 50) + score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
