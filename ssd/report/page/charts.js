// Draws each chart in its place. It is bundled with vegaEmbed.
const charts = JSON.parse(document.getElementById("charts").textContent);
const drawn = charts.map((chart, number) => vegaEmbed(`#chart-${number}`, chart, { actions: false, renderer: "svg" }));
await Promise.all(drawn);
document.body.dataset.drawn = "true";
