"""The style sheet of the page: light and dark, from a phone to a desk, and on paper."""

CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --soft: #59636e; --line: #d5dae0;
  --tint: #f4f6f8; --good: #00694b; --bad: #a03c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #16191d; --soft: #9aa4af;
  --line: #343b43; --tint: #1f242a; --good: #4fd0a6; --bad: #f59a62; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1.1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; padding-top: .7rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 46rem; }
.answer { font-size: 1.15rem; line-height: 1.45; margin: 0 0 1rem; padding-left: .9rem;
  border-left: 4px solid #0072b2; }
.meta, figcaption, caption, .note { color: var(--soft); font-size: .88rem; }
.warning { background: var(--tint); border-left: 4px solid #d55e00; padding: .5rem .9rem; }
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; margin: .6rem 0 1.1rem; }
table { border-collapse: collapse; font-size: .88rem; line-height: 1.35; min-width: 60%; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { text-align: left; vertical-align: top; padding: .32rem .75rem .32rem 0; border-bottom: 1px solid var(--line);
  font-weight: normal; white-space: nowrap; }
thead th { font-size: .8rem; color: var(--soft); vertical-align: bottom; white-space: normal; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.wide { white-space: normal; min-width: 16rem; }
.better { color: var(--good); font-weight: 600; }
.worse { color: var(--bad); }
.better small, .worse small { color: inherit; font-weight: normal; }
.stacked small { display: block; }
.control { font-style: italic; }
small { color: var(--soft); font-size: .92em; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .88em; }
pre { background: var(--tint); padding: .7rem .9rem; overflow-x: auto; border-radius: 4px; }
code { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr); gap: .15rem 1rem;
  margin: .4rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; }
@media (max-width: 34rem) { body { padding: 1rem .8rem 3rem; } small { display: block; }
  tbody th { position: sticky; left: 0; background: var(--paper); white-space: normal; min-width: 6.5rem;
  max-width: 8rem; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; } .figure { overflow-x: auto; } figure img { min-width: 40rem; } }
@media print { details > * { display: block; } .scroll { overflow: visible; } }
""".strip()
