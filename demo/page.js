// Words are buttons; a press tells the server which answer and which word. Runs once per answer panel.
element.addEventListener("click", (event) => {
  const word = event.target.closest(".vg-word[data-word]");
  if (!word || !element.contains(word)) return;
  trigger("select", { side: word.dataset.side, word: Number(word.dataset.word) });
});
