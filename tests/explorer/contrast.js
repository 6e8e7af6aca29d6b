// Texts in sight whose contrast is less than WCAG 2's AA asks for: 4.5, or 3 for large letters.
() => {
  const numbers = (colour) => {
    const found = colour.match(/[\d.]+/g).map(Number);
    const scale = colour.startsWith("color(") ? 255 : 1;
    return [found[0] * scale, found[1] * scale, found[2] * scale, found[3] ?? 1];
  };
  const over = (top, under) => [0, 1, 2].map((part) => top[part] * top[3] + under[part] * (1 - top[3])).concat(1);
  const luminance = (colour) => {
    const [red, green, blue] = colour.slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const line = (node) => {
    const nodes = [];
    for (let one = node; one; one = one.parentElement) nodes.unshift(one);
    return nodes;
  };
  const failures = [];
  const check = (node, colour, style, text) => {
    let behind = [255, 255, 255, 1];
    let opacity = 1;
    for (const one of line(node)) {
      const own = getComputedStyle(one);
      behind = over(numbers(own.backgroundColor), behind);
      opacity *= Number(own.opacity);
    }
    const ink = numbers(colour);
    const front = over([ink[0], ink[1], ink[2], ink[3] * opacity], behind);
    const [high, low] = [luminance(front), luminance(behind)].sort((one, other) => other - one);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) failures.push(`${ratio.toFixed(2)}: ${node.tagName} .${node.getAttribute("class") || ""} "${text.trim().slice(0, 40)}"`);
  };
  const seen = (node) => node.checkVisibility({ opacityProperty: false, visibilityProperty: true }) && !node.closest(".visually-hidden, :disabled");

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !seen(node)) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    if (![...range.getClientRects()].some((box) => box.width > 1 && box.height > 1)) continue;
    const style = getComputedStyle(node);
    check(node, node.closest("svg") ? style.fill : style.color, style, text.data);
  }
  for (const node of document.querySelectorAll("input:not([type=range], [type=checkbox], [type=file]), select, textarea")) {
    if (!seen(node)) continue;
    const style = getComputedStyle(node);
    if (node.value) check(node, style.color, style, node.value);
    else if (node.placeholder) check(node, getComputedStyle(node, "::placeholder").color, style, node.placeholder);
  }
  return failures;
};
