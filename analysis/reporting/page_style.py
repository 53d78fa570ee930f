"""The style of the report's page: wide and narrow, light and dark, on a screen and on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #fff; --faint: #5a6068;
        --line: #d8dbdf; --code: #f4f5f6; --told: #eef4f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --paper: #14171a; --faint: #a3abb4; --line: #363c43; --code: #1e2327;
          --told: #1b2833; }
  figure svg { filter: brightness(1.3); }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1180px; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.verdict { font-size: 1.1rem; background: var(--told); border-left: 4px solid #0072B2;
           padding: 0.7rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
                                 background: var(--paper); }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
.two, .many { display: grid; gap: 1rem; }
.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.two svg { max-width: 640px; }
.many { grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); }
.long { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
figcaption, .note { color: var(--faint); font-size: 0.88rem; }
pre { background: var(--code); padding: 0.7rem; overflow-x: auto; font-size: 0.82rem; }
summary { cursor: pointer; }
@media (max-width: 600px) {
  body { padding: 0.6rem; } th, td { padding: 0.2rem 0.45rem; } table { font-size: 0.8rem; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --faint: #444; --line: #bbb;
          --code: #f4f5f6; --told: #fff; }
  body { font-size: 10pt; max-width: none; padding: 0; }
  .two { grid-template-columns: 1fr 1fr; } .many { grid-template-columns: repeat(3, 1fr); }
  .long { grid-template-columns: 1fr 1fr; }
  figure svg { filter: none; }
  figure svg, tr, .verdict { break-inside: avoid; } h2 { break-after: avoid; }
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: 0.1rem 0.35rem; }
  pre { white-space: pre-wrap; }
}
"""
