// What the page does by itself in the browser; runs once, before the page is built.

// A number field moves what is out of its range to the nearest limit without a word; this says so beneath the field.
const moved = (field, text) => {
  const block = field.closest(".block") ?? field.parentElement;
  let note = block.querySelector(".vg-moved");
  if (!note && text) {
    note = document.createElement("span");
    note.className = "vg-moved";
    note.setAttribute("role", "status");
    block.append(note);
  }
  if (note) note.textContent = text;
};
document.addEventListener(
  "input",
  (event) => {
    const field = event.target;
    if (!(field instanceof HTMLInputElement) || field.type !== "number" || field.value === "") return;
    const [value, low, high] = [Number(field.value), Number.parseFloat(field.min), Number.parseFloat(field.max)];
    if (value > high) moved(field, `${value} is above the limit; it becomes ${high}.`);
    else if (value < low) moved(field, `${value} is below the limit; it becomes ${low}.`);
    else if (event.isTrusted) moved(field, "");
  },
  true,
);

// After Compare the answers may be out of view: on a phone below the fold, on a desk above a long list of options. They
// are brought into view with their first word, or the error is.
const asking = { pressed: false, waiting: false };
const press = () => Object.assign(asking, { pressed: true, waiting: false });
const reveal = (element, block) => {
  const place = element.getBoundingClientRect();
  if (place.top < 0 || place.top > window.innerHeight * 0.6) element.scrollIntoView({ block });
};
document.addEventListener("click", (event) => event.target.closest?.("#vg-run, #vg-search") && press(), true);
document.addEventListener(
  "keydown",
  (event) => event.key === "Enter" && !event.shiftKey && event.target.closest?.("#vg-prompt") && press(),
  true,
);
new MutationObserver((changes) => {
  if (!asking.pressed) return;
  const card = document.querySelector("#vg-plain .vg-card");
  if (card?.querySelector(".vg-waits")) {
    asking.waiting = true;
    return;
  }
  const error = document.querySelector("#vg-below .vg-error");
  const told = error && changes.some((change) => change.target.closest?.("#vg-below"));
  if (!told && !asking.waiting) return;
  Object.assign(asking, { pressed: false, waiting: false });
  if (told) reveal(error, "center");
  else if (card) reveal(card, "start");
}).observe(document.body, { childList: true, subtree: true });
