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
