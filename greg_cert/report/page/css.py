"""The page's style sheet: one column, light and dark, tables that become cards on a phone."""

CSS = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--paper:#fff;--card:#f6f8fa;
--rule:#d0d7de;--alarm:#a40e26}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa4af;--paper:#0f1318;
--card:#191f26;--rule:#343c45;--alarm:#ff8a8a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1200px;margin:0 auto;padding:28px 24px 56px}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .2rem}
h2{font-size:1.2rem;margin:2.2rem 0 .7rem;border-bottom:1px solid var(--rule);padding-bottom:.25rem}
h3{font-size:1rem;margin:1.4rem 0 .5rem}h4{font-size:.9rem;margin:1rem 0 .3rem}
h5{font-size:.86rem;margin:.8rem 0 .2rem}figure h3{margin-top:0}
.sub,.note,figcaption{color:var(--soft)}.sub{margin:0}
.note,figcaption{font-size:.86rem}
.result{background:var(--card);border-left:4px solid #0072b2;padding:.9rem 1.1rem;
margin:1.2rem 0;border-radius:0 6px 6px 0;max-width:78ch}
.result.alarm{border-color:var(--alarm)}.result.caution{border-color:#e69f00}
main{overflow-wrap:anywhere}table{overflow-wrap:normal}tbody th{overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
table.runs{width:100%}
th,td{padding:.4rem .42rem;text-align:right;vertical-align:top}
thead th{font-weight:600;vertical-align:bottom;line-height:1.3}
thead tr:last-child th{border-bottom:2px solid var(--rule)}
tbody tr+tr>*{border-top:1px solid var(--rule)}
.runs tr>th:first-child{text-align:left;min-width:7.5rem;max-width:16rem}
.runs td{white-space:nowrap}
.runs .key{text-align:left}
.runs td.key{white-space:normal;overflow-wrap:anywhere;min-width:8.5rem;max-width:16rem}
.runs td.brief{min-width:0;overflow-wrap:normal}
.wide{font-size:.8rem}.wide th,.wide td{padding:.4rem .26rem}
.runs .group{text-align:center;color:var(--soft);font-weight:400;font-style:italic;
border-bottom:1px solid var(--rule)}
.samples{white-space:nowrap}.samples thead th{white-space:normal}
.samples td,.samples th{vertical-align:middle}.samples .long{min-width:11rem}
.bad{color:var(--alarm);font-weight:700}
.figures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:22px}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:14px}
figure img{display:block;width:100%;height:auto;background:#fff;border-radius:4px}
figcaption{margin-top:.6rem}
details{border:1px solid var(--rule);border-radius:8px;padding:.55rem .9rem;margin:.6rem 0}
summary{cursor:pointer;font-weight:600}
details>.scroll{margin-top:.5rem}details details{margin:.5rem 0 .1rem}
.cards{display:flex;gap:12px;align-items:flex-start;padding:2px 2px 10px}
.sample{flex:0 0 276px;background:var(--card);border:1px solid var(--rule);border-radius:8px;
padding:10px 12px;align-self:stretch}
.sample h5{margin:0 0 .4rem;font-size:.88rem}
.sample .note{margin:.5rem 0 0;font-size:.78rem;line-height:1.4}
.sample dl{font-size:.82rem;gap:.1rem .8rem;grid-template-columns:max-content minmax(0,1fr)}
.sample dd{text-align:right;font-variant-numeric:tabular-nums}
.strip{display:flex;gap:6px;margin-bottom:.5rem}
.strip figure{flex:0 1 33.3%;background:none;border:0;padding:0;margin:0}
.strip img{width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;border-radius:2px}
.strip figcaption{margin:.15rem 0 0;font-size:.72rem;line-height:1.25;text-align:center}
.plain{list-style:none;margin:0;padding:0}
.kinds dt{font-weight:600;color:var(--ink)}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.3rem 1.2rem;margin:0;
font-size:.9rem}
dt{color:var(--soft)}dd{margin:0}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
pre{background:var(--card);padding:.8rem;border-radius:6px;overflow-x:auto;margin:.6rem 0 .2rem}
@media (max-width:860px){.figures{grid-template-columns:minmax(0,1fr)}}
@media (max-width:760px){
main{padding:18px 14px 40px}h1{font-size:1.35rem}
.few thead{display:none}.few,.few tbody,.few tr,.few th,.few td{display:block}
.few tr{border:1px solid var(--rule);border-radius:8px;padding:.5rem .8rem;margin-bottom:.8rem}
.few tbody tr+tr>*{border-top:0}
.few tr>th:first-child{max-width:none;font-size:1rem;padding:.2rem 0 .4rem}
.few td{display:flex;justify-content:space-between;gap:1rem;padding:.22rem 0;
border-top:1px solid var(--rule)!important}
.few td.key{max-width:none}.few.wide{font-size:.88rem}.few.wide td{padding:.22rem 0}
.few td::before{content:attr(data-title);color:var(--soft);text-align:left;white-space:normal}
.many th:first-child{position:sticky;left:0;background:var(--paper);min-width:0;max-width:7rem}
dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:.5rem}
figure{padding:8px}
.sample dl{grid-template-columns:max-content minmax(0,1fr);gap:.1rem .8rem}.sample dd{margin:0}}
@media print{details,.sample,figure{break-inside:avoid}main{max-width:none}.cards{flex-wrap:wrap}}
"""
