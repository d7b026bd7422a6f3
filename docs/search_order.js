// The order of the search results. Sphinx's own points, which depend on where a word was found; many pages get the same
// number of them. What tells you what to do then comes before what we measured and what changed.
"use strict";

var Scorer = {
  score: ([page, title, anchor, , points]) => {
    const ofFolder = {"choose": 6, "get-started": 5, "guides": 4, "api": 2, "how-it-works": 1, "measured": -4};
    const query = (new URLSearchParams(location.search).get("q") || "").trim().toLowerCase();
    points += ofFolder[page.split("/")[0]] || 0;
    if (/(^|\/)index$|changelog|contributing/.test(page)) points -= 6;
    // A title with the whole query: of a page, or a section's with several words.
    if (query && title.toLowerCase().includes(query)) points += !anchor ? 6 : query.includes(" ") ? 12 : 0;
    return points;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
