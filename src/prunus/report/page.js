// Two conveniences; the page is complete without them.
"use strict";
// Tooltips at once, and on touch, from the titles that the marks carry.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
function hide() { tip.hidden = true; }
function show(event) {
  const mark = event.target.closest("svg [data-tip], .spread[data-tip], .value[data-tip], .nothing[data-tip]");
  if (!mark) { hide(); return; }
  tip.textContent = mark.dataset.tip;
  tip.hidden = false;
  const box = mark.getBoundingClientRect(), room = document.documentElement.clientWidth;
  const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), room - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${left + window.scrollX}px`;
  tip.style.top = `${(above > 4 ? above : box.bottom + 8) + window.scrollY}px`;
}
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();  // else the browser's own tooltip would show as well
}
for (const part of document.querySelectorAll("main [title]")) {
  part.dataset.tip = part.title;
  part.removeAttribute("title");
}
document.addEventListener("pointerover", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", hide, { passive: true });
// On paper nothing is folded away.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
