"""The report's style sheet: follows the reader's light or dark theme, one column on a telephone, no
font to fetch.
"""

STYLE = """
:root {
  --ground: #fdfdfc; --panel: #f3f3f0; --text: #1b1c1e; --soft: #5a5d63; --rule: #d9d9d4; --mark: #e4eefb;
  --link: #0a58a8; --line0: #0a66c2; --line1: #c2500a; --line2: #2c7a4b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #16181b; --panel: #1f2226; --text: #e8e8e6; --soft: #a9adb4; --rule: #3a3e44; --mark: #1d3350;
    --link: #8cc0ff; --line0: #6cb0ff; --line1: #ff9c5b; --line2: #6fcf97;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
header, main { max-width: 1280px; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.5rem; }
main { padding-bottom: 4rem; }
main:focus { outline: none; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
header p { margin: 0 0 1rem; color: var(--soft); }
p, li { max-width: 75ch; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .4rem 1.1rem; }
:focus-visible { outline: 3px solid var(--line1); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .4rem .8rem; background: var(--ground); }
.note, .missing { padding: .7rem 1rem; background: var(--panel); border-left: 4px solid var(--line1); }
.missing { border-color: var(--soft); }
.grid { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.grid.tables { grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); }
.grid.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); }
.grid > * { min-width: 0; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: .3rem; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 500; }
.words td { white-space: normal; text-align: left; }
.words th { text-align: left; vertical-align: top; }
.marked > * { background: var(--mark); }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--link); }
pre { overflow: auto; max-height: 30rem; padding: 1rem; background: var(--panel); font-size: .85rem; }
figure { margin: 0; }
figcaption { font-size: .9rem; }
figcaption small { display: block; color: var(--soft); }
.videos { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); }
video { display: block; width: 100%; height: auto; min-height: 9.5rem; object-fit: contain; object-position: top;
  background: #16181b; border-radius: 4px; margin-bottom: .4rem; }
svg { display: block; width: 100%; height: auto; }
.wide { max-width: 680px; }
svg text { fill: var(--soft); font-size: 12px; }
.wide text { fill: var(--text); }
line.grid { stroke: var(--rule); }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
polyline.line0 { stroke: var(--line0); }
polyline.line1 { stroke: var(--line1); stroke-dasharray: 6 3; }
polyline.line2 { stroke: var(--line2); stroke-dasharray: 2 3; }
.interval { stroke: var(--line0); stroke-width: 3; stroke-linecap: round; }
circle { fill: var(--line0); }
.key { margin-left: .8rem; color: var(--soft); white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 1.6em; margin-right: .35em; vertical-align: middle;
  border-top: 3px solid; }
.key.line0::before { border-color: var(--line0); }
.key.line1::before { border-color: var(--line1); border-top-style: dashed; }
.key.line2::before { border-color: var(--line2); border-top-style: dotted; }
@media print { nav, .skip { display: none; } section { break-inside: auto; } }
"""
