// Words are buttons; a press tells the server which answer and which word. Runs once per answer panel.
element.addEventListener("click", (event) => {
  const word = event.target.closest(".vg-word[data-word]");
  if (!word || !element.contains(word)) return;
  trigger("select", { side: word.dataset.side, word: Number(word.dataset.word) });
});

// On a phone the answers are below the fold: bring them into view when the first word of an asked answer is there.
const narrow = window.matchMedia("(max-width: 900px)");
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
let asked = false;
new MutationObserver(() => {
  const card = element.querySelector(".vg-card-plain");
  if (!card) return;
  if (card.querySelector(".vg-waits")) {
    asked = true;
    return;
  }
  const answered = card.querySelector(".vg-growing, .vg-word");
  if (!asked || !answered) return;
  asked = false;
  const place = card.getBoundingClientRect();
  const seen = place.top >= 0 && place.top < window.innerHeight * 0.6;
  if (narrow.matches && !seen) {
    card.scrollIntoView({ block: "start", behavior: still.matches ? "auto" : "smooth" });
  }
}).observe(element, { childList: true, subtree: true });
