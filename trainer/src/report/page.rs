//! The page around the charts.

use std::fmt::Write as _;

use numclip::metrics::Metrics;

use super::{RunReport, figures, plot::escape};

/// The whole page.
pub(crate) fn render(report: &RunReport) -> String {
    let mut page = results(report);
    let figures = figures::all(report);
    if !figures.is_empty() {
        let _ = write!(page, r#"<div class="figures">{}</div>"#, figures.concat());
    }
    page += &provenance(&report.provenance);
    if !report.config.is_empty() {
        let config = escape(&report.config);
        let _ = write!(
            page,
            "<h2>Task file, resolved</h2><details><summary>show</summary><pre>{config}</pre></details>"
        );
    }
    document(&report.title, &report.subtitle, &page)
}

/// A page with its title around `body` (HTML).
pub(crate) fn document(title: &str, subtitle: &str, body: &str) -> String {
    let (title, subtitle) = (escape(title), escape(subtitle));
    format!(
        r#"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p class="subtitle">{subtitle}</p>
{body}</body></html>
"#
    )
}

/// A table with its heading; the first cell of a row is its name.
pub(crate) fn table(heading: &str, columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = format!(
        r#"<h2>{}</h2><div class="scroll"><table><tr>"#,
        escape(heading)
    );
    for column in columns {
        let _ = write!(table, "<th>{}</th>", escape(column));
    }
    for row in rows {
        table += "</tr><tr>";
        for (place, cell) in row.iter().enumerate() {
            let tag = if place == 0 { "th" } else { "td" };
            let _ = write!(table, "<{tag}>{}</{tag}>", escape(cell));
        }
    }
    table + "</tr></table></div>"
}

/// One row for each measure, one column for each model.
fn results(report: &RunReport) -> String {
    if report.results.is_empty() {
        return String::new();
    }
    let mut table = String::from(r#"<h2>Results</h2><div class="scroll"><table><tr><th></th>"#);
    for result in &report.results {
        let _ = write!(table, "<th>{}</th>", escape(&result.name));
    }
    table += "</tr>";
    let columns: Vec<Vec<(String, String)>> = report
        .results
        .iter()
        .map(|r| measures(&r.metrics, &report.unit))
        .collect();
    for (name, _) in &columns[0] {
        let _ = write!(table, "<tr><th>{}</th>", escape(name));
        for column in &columns {
            let value = column
                .iter()
                .find(|(n, _)| n == name)
                .map_or("", |(_, v)| v);
            let _ = write!(table, "<td>{}</td>", escape(value));
        }
        table += "</tr>";
    }
    table + "</table></div>"
}

fn measures(metrics: &Metrics, unit: &str) -> Vec<(String, String)> {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let quantity = |value: f64| format!("{value:.3} {unit}").trim_end().to_owned();
    let mut rows = vec![
        ("Mean absolute error".to_owned(), quantity(metrics.mae)),
        ("Root mean square error".to_owned(), quantity(metrics.rmse)),
        (
            "Bin of the value right".to_owned(),
            percent(metrics.accuracy_expectation),
        ),
        (
            "Most probable bin right".to_owned(),
            percent(metrics.accuracy_argmax),
        ),
    ];
    for score in &metrics.cumulative_score {
        let name = format!("Error at most {} {unit}", score.k)
            .trim_end()
            .to_owned();
        rows.push((name, percent(score.score)));
    }
    if let Some(coverage) = metrics.interval_coverage {
        rows.push(("Label inside the interval".to_owned(), percent(coverage)));
    }
    rows.push(("Images".to_owned(), metrics.count.to_string()));
    rows
}

fn provenance(facts: &[(String, String)]) -> String {
    if facts.is_empty() {
        return String::new();
    }
    let rows = facts.iter().fold(String::new(), |mut rows, (name, value)| {
        let _ = write!(rows, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        rows
    });
    format!("<h2>Provenance</h2><dl>{rows}</dl>")
}

const STYLE: &str = "
:root{color-scheme:light dark;--page:#f7f7f5;--card:#fff;--ink:#1d2127;--soft:#5d6570;--edge:#e2e2de;--grid:#ecece8;--first:#2569bd;--second:#c8601a;--faint:#9fb6d3}
@media(prefers-color-scheme:dark){:root{--page:#15181c;--card:#1d2126;--ink:#e8eaed;--soft:#9aa3ad;--edge:#30363d;--grid:#2a2f36;--first:#6ea8f0;--second:#f0a060;--faint:#4a6486}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:28px 20px 60px;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{margin:0;font-size:26px}h2{margin:34px 0 10px;font-size:17px}
.subtitle{margin:2px 0 18px;color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:16px;margin-top:26px;align-items:start}
figure{margin:0;padding:14px 16px 10px;background:var(--card);border:1px solid var(--edge);border-radius:10px}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:2px 16px;margin-bottom:8px;font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:14px;color:var(--soft);font-size:13px;font-weight:400}
.legend i{display:inline-block;width:16px;height:3px;margin:0 6px 4px 0;border-radius:2px;background:currentColor}
.legend i.first{color:var(--first)}.legend i.second{color:var(--second)}.legend i.faint{color:var(--faint)}.legend i.rule{color:var(--soft)}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:11.5px}
.grid{stroke:var(--grid)}.axis{stroke:var(--edge)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.line.first{stroke:var(--first)}.line.second{stroke:var(--second)}.line.faint{stroke:var(--faint);stroke-width:1.5}.line.rule{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:5 4}
.dot.first{fill:var(--first);fill-opacity:.45}.dot.second{fill:var(--second)}
.band.first{fill:var(--first);fill-opacity:.28}.band.faint{fill:var(--faint);fill-opacity:.28}
.bar.first,.cell{fill:var(--first)}
svg .count.off{fill:var(--ink)}svg .count.on{fill:var(--card)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;background:var(--card);border:1px solid var(--edge);border-radius:10px;font-variant-numeric:tabular-nums}
th,td{padding:7px 16px;white-space:nowrap;border-top:1px solid var(--edge);text-align:right}tr:first-child th{border-top:0}
th:first-child{text-align:left;font-weight:400;color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px}
.sheet figure{padding:8px}.sheet img{display:block;width:100%;aspect-ratio:1;object-fit:contain;border-radius:6px}
.sheet figcaption{display:block;margin:6px 0 0;font-weight:400;font-size:13px;overflow-wrap:anywhere}.sheet small{color:var(--soft)}
summary{cursor:pointer;color:var(--soft)}
pre{padding:14px 16px;overflow-x:auto;background:var(--card);border:1px solid var(--edge);border-radius:10px;font:13px/1.5 ui-monospace,monospace}
";
