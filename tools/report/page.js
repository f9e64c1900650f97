// Draws the charts of the page, again when the colours of the system change, and lets the one
// switch set the axis of all. The page says in data-drawn how many charts are drawn, in data-axis
// against what, and in data-failed what went wrong.
const specs = JSON.parse(document.getElementById('charts').textContent);
const dark = window.matchMedia('(prefers-color-scheme: dark)');
const page = document.documentElement;
const choices = [...document.querySelectorAll('input[name=axis]')];
let views = [];

// An axis that a chart has no rows for is not offered; index.html#seconds opens with that axis.
const against = Object.values(specs).filter((spec) => spec.params);
for (const choice of choices) {
  const known = (spec) => spec.data.values.some((row) => row[choice.value] > 0);
  choice.disabled = !against.every(known);
  if (!choice.disabled && choice.value === location.hash.slice(1)) choice.checked = true;
}

function axis() {
  return document.querySelector('input[name=axis]:checked')?.value ?? 'flops';
}

// Vega-Lite takes no parameter for a title, so that of the axis is set in the chart's layers.
function against_axis(spec) {
  if (!spec.params) return spec;
  const title = document.querySelector('input[name=axis]:checked')?.dataset.title;
  const x = (layer) => ({ ...layer.encoding.x, title });
  return {
    ...spec,
    params: spec.params.map((p) => (p.name === 'axis' ? { ...p, value: axis() } : p)),
    layer: spec.layer.map((layer) => ({ ...layer, encoding: { ...layer.encoding, x: x(layer) } })),
  };
}

async function draw() {
  const options = { renderer: 'svg', actions: false, theme: dark.matches ? 'dark' : undefined };
  const drawn = Object.entries(specs).map(([name, spec]) => {
    const config = { ...spec.config, background: 'transparent' };
    return vegaEmbed(document.getElementById(name), { ...against_axis(spec), config }, options);
  });
  views = (await Promise.all(drawn)).map((result) => result.view);
  page.dataset.drawn = views.length;
  page.dataset.axis = axis();
}

function redraw() {
  draw().catch((error) => { page.dataset.failed = String(error); console.error(error); });
}

for (const choice of choices) {
  choice.addEventListener('change', redraw);
}
dark.addEventListener('change', redraw);
redraw();
