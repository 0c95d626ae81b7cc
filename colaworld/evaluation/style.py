"""The report's style sheet, kept in Python so that it is installed with the package.

Two schemes (light, dark) and paper. Not here: any content.
"""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --paper:#fcfbf8; --panel:#ffffff; --ink:#23272d; --soft:#5d646d; --faint:#858b93; --rule:#e5e2da;
  --accent:#1c6a74; --inferred:#1c6a74; --random:#bf5b2c; --shuffled:#7a5ea8; --constant:#9a7f1e;
  --copy:#868c94; --b0:#e9f0ee; --b1:#f6eee2; --b2:#eeebf5; --b3:#e8eef6; --good:#2c7a4b;
  --fair:#9a7413; --poor:#b0412f; }
@media (prefers-color-scheme: dark) { :root {
  --paper:#15181b; --panel:#1b1f23; --ink:#e7e5df; --soft:#a9afb6; --faint:#7e858d; --rule:#31363c;
  --accent:#6cc0c6; --inferred:#6cc0c6; --random:#e8945f; --shuffled:#b59ae0; --constant:#d6bb58;
  --copy:#8f959c; --b0:#1d2a2b; --b1:#2b2620; --b2:#252230; --b3:#1f2733; --good:#74c690;
  --fair:#d9b24c; --poor:#ee8674; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,
  sans-serif; font-variant-numeric:lining-nums tabular-nums; }
main { max-width:1128px; margin:0 auto; padding:56px 28px 72px; }
h1,h2 { font-family:"Iowan Old Style","Palatino Linotype",Palatino,"Book Antiqua",
  "Liberation Serif",Georgia,serif; font-weight:600; line-height:1.2; text-wrap:balance; }
h1 { font-size:2.3rem; letter-spacing:-.012em; margin:0 0 .35rem; }
h2 { font-size:1.4rem; margin:3.2rem 0 .3rem; padding-top:1.1rem;
  border-top:1px solid var(--rule); }
h3 { font-size:.95rem; font-weight:600; margin:1.4rem 0 .2rem; }
p { margin:.3rem 0 .8rem; max-width:68ch; text-wrap:pretty; }
.meta { color:var(--soft); font-size:.9rem; margin:0 0 1.6rem; }
.meta code { font-size:.86em; }
.lead { font-size:1.13rem; line-height:1.55; max-width:66ch; }
.sub, .none, figcaption { color:var(--soft); font-size:.92rem; }
code, pre { font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace; }
.verdict { border-left:3px solid var(--accent); padding:.15rem 0 .15rem 1.1rem;
  margin:1.5rem 0 2rem;
  font-family:"Iowan Old Style","Palatino Linotype",Palatino,"Liberation Serif",Georgia,serif;
  font-size:1.28rem; line-height:1.45; max-width:60ch; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(184px,1fr)); gap:14px;
  padding:0; margin:0; list-style:none; }
.card { background:var(--panel); border:1px solid var(--rule); border-radius:10px;
  padding:14px 16px 12px; display:flex; flex-direction:column; }
.card h3 { margin:0; font-size:.82rem; line-height:1.3; color:var(--soft); font-weight:600;
  min-height:2.6em; }
.big { font-size:1.95rem; font-weight:600; letter-spacing:-.02em; line-height:1.2;
  margin-top:.15rem; white-space:nowrap; }
.big small { font-size:.95rem; font-weight:500; color:var(--soft); letter-spacing:0; }
.interval { color:var(--soft); font-size:.84rem; min-height:1.5em; }
.whisker { width:100%; height:auto; margin:.35rem 0 .1rem; overflow:visible; }
.card p { font-size:.87rem; line-height:1.42; margin:.15rem 0 0; }
.card .note { color:var(--soft); margin-top:.3rem; }
.tag { font-weight:650; } .good { color:var(--good); } .fair { color:var(--fair); }
.poor { color:var(--poor); } .open { color:var(--soft); }
.two { display:grid; grid-template-columns:repeat(auto-fit,minmax(430px,1fr)); gap:6px 28px; }
figure { margin:.6rem 0 0; }
.chart { width:100%; height:auto; display:block; font-size:12px; }
.chart text, .whisker text { fill:var(--soft); font-family:inherit; }
.whisker text { font-size:10.5px; }
.chart .name { font-size:12.5px; font-weight:600; }
.chart .band-name { font-size:11.5px; font-weight:600; fill:var(--soft); letter-spacing:.02em; }
.chart .label { fill:var(--faint); }
.grid { stroke:var(--rule); stroke-width:1; } .axis { stroke:var(--faint); stroke-width:1; }
.leader { stroke:var(--rule); fill:none; }
.band-0 { fill:var(--b0); } .band-1 { fill:var(--b1); } .band-2 { fill:var(--b2); }
.band-3 { fill:var(--b3); }
.line { fill:none; stroke-width:2; stroke-linejoin:round; stroke-linecap:round; }
.line.raw { stroke-width:1; opacity:.3; }
.line.c-1, .line.c-inferred { stroke:var(--inferred); }
.line.c-random, .line.c-2 { stroke:var(--random); }
.line.c-shuffled, .line.c-3 { stroke:var(--shuffled); }
.line.c-constant, .line.c-4 { stroke:var(--constant); }
.line.c-copy, .line.c-5 { stroke:var(--copy); stroke-dasharray:5 4; }
.dot.c-1, .dot.c-inferred { fill:var(--inferred); } .dot.c-random, .dot.c-2 { fill:var(--random); }
.dot.c-shuffled, .dot.c-3 { fill:var(--shuffled); }
.dot.c-constant, .dot.c-4 { fill:var(--constant); }
.dot.c-copy, .dot.c-5 { fill:var(--copy); }
.chart .name.c-1, .chart .name.c-inferred { fill:var(--inferred); }
.chart .name.c-random, .chart .name.c-2 { fill:var(--random); }
.chart .name.c-shuffled, .chart .name.c-3 { fill:var(--shuffled); }
.chart .name.c-constant, .chart .name.c-4 { fill:var(--constant); }
.chart .name.c-copy, .chart .name.c-5 { fill:var(--copy); }
.mark { stroke:var(--faint); stroke-width:1; stroke-dasharray:3 3; }
.range { stroke:var(--accent); stroke-width:4; stroke-linecap:round; opacity:.38; }
.value { fill:var(--accent); } .point { fill:var(--accent); fill-opacity:.4; }
.square { max-width:300px; } .cell { fill:var(--accent); }
.cell-text { font-size:11px; } .chart .cell-text.strong { fill:var(--paper); font-weight:600; }
.chart .count { fill:var(--faint); font-size:10.5px; }
.scatter { display:flex; flex-wrap:wrap; gap:8px 24px; }
.scroll { overflow-x:auto; }
.tiles { border-collapse:separate; border-spacing:6px; margin:.6rem 0 1rem -6px; }
.tiles th { font-weight:600; font-size:.84rem; text-align:left; vertical-align:top; padding:0;
  line-height:1.25; }
.tiles th small { display:block; font-weight:400; color:var(--soft); font-size:.78rem; }
.tiles th.row { vertical-align:middle; padding-right:8px; white-space:nowrap; }
.tiles th.row small { margin-left:1.35em; }
.tiles th.edge, .tiles td.edge { padding-right:14px; }
.tiles td { padding:0; }
.tiles img { display:block; border-radius:3px; background:var(--rule); }
.tiles img.small { image-rendering:pixelated; }
.tiles tr.gap th, .tiles tr.gap td { padding-top:14px; }
.given img { opacity:.55; }
.key { display:inline-block; width:.7em; height:.7em; border-radius:2px; margin-right:.45em; }
.key.inferred { background:var(--inferred); } .key.random { background:var(--random); }
.key.truth { background:var(--ink); }
.still { display:none !important; }
table.plain { border-collapse:collapse; margin:.8rem 0; font-size:.92rem; }
table.plain th, table.plain td { text-align:left; padding:.42rem 1.2rem .42rem 0;
  border-bottom:1px solid var(--rule); vertical-align:top; }
table.plain thead th { color:var(--soft); font-weight:600; font-size:.84rem;
  vertical-align:bottom; }
table.plain td { white-space:nowrap; }
details { margin:.7rem 0; } summary { cursor:pointer; font-weight:600; font-size:.95rem; }
pre { background:var(--panel); border:1px solid var(--rule); border-radius:8px; padding:14px 16px;
  font-size:.8rem; line-height:1.5; overflow-x:auto; }
footer { margin-top:3rem; color:var(--faint); font-size:.85rem; }
@media (max-width:560px) { main { padding:32px 16px 48px; } h1 { font-size:1.8rem; }
  .two { grid-template-columns:1fr; } .card h3 { min-height:0; } }
@media (prefers-reduced-motion: reduce) { .moving { display:none !important; }
  .still { display:block !important; } }
@media print { :root { --paper:#fff; --panel:#fff; --ink:#000; --soft:#444; --faint:#666;
  --rule:#ccc; --accent:#1c6a74; --inferred:#1c6a74; --random:#bf5b2c; --shuffled:#7a5ea8;
  --constant:#9a7f1e; --copy:#777; --b0:#e9f0ee; --b1:#f6eee2; --b2:#eeebf5; --b3:#e8eef6; }
  body { font-size:11pt; -webkit-print-color-adjust:exact; print-color-adjust:exact; }
  main { max-width:none; padding:0; } h2 { break-after:avoid; }
  .card, figure, .tiles tr { break-inside:avoid; } .scroll { overflow:visible; }
  .cards { grid-template-columns:repeat(3,1fr); }
  .moving { display:none !important; } .still { display:block !important; }
  .whisker { max-width:200px; } details::details-content { content-visibility:visible; }
  pre { white-space:pre-wrap; } @page { margin:16mm; } }
"""
