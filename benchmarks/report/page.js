// Draws the charts of the page, again when the colours of the system change, and lets the one
// switch set the axis of all. The page says in data-drawn how many charts are drawn, and in
// data-failed what went wrong.
const specs = JSON.parse(document.getElementById('charts').textContent);
const dark = window.matchMedia('(prefers-color-scheme: dark)');
const page = document.documentElement;
let views = [];

// index.html#seconds opens with that axis.
const asked = [...document.querySelectorAll('input[name=axis]')]
  .find((choice) => choice.value === location.hash.slice(1));
if (asked) asked.checked = true;

function axis() {
  return document.querySelector('input[name=axis]:checked')?.value ?? 'flops';
}

async function draw() {
  const options = { renderer: 'svg', actions: false, theme: dark.matches ? 'dark' : undefined };
  const drawn = Object.entries(specs).map(([name, spec]) => {
    const params = spec.params?.map((p) => (p.name === 'axis' ? { ...p, value: axis() } : p));
    const config = { ...spec.config, background: 'transparent' };
    return vegaEmbed(document.getElementById(name), { ...spec, params, config }, options);
  });
  views = (await Promise.all(drawn)).map((result) => result.view);
  page.dataset.drawn = views.length;
}

function redraw() {
  draw().catch((error) => { page.dataset.failed = String(error); console.error(error); });
}

for (const choice of document.querySelectorAll('input[name=axis]')) {
  choice.addEventListener('change', redraw);
}
dark.addEventListener('change', redraw);
redraw();
