//! Estimates for a person to read.

use numclip::bins::Bin;
use numclip::bundle::{Manifest, TaskSection};
use numclip::estimate::{Doubt, Estimate};
use numclip::metrics::{Metrics, Part};

/// Widest column of paths.
const MAX_SOURCE: usize = 48;

/// How wide the columns are and how many decimals a value has.
pub struct Layout {
    source: usize,
    number: usize,
    label: usize,
    decimals: usize,
    unit: String,
}

impl Layout {
    /// A layout for estimates of `manifest`'s task for pictures with these names.
    pub fn new<'a>(manifest: &Manifest, sources: impl Iterator<Item = &'a str>) -> Self {
        let longest = sources.map(width).max().unwrap_or(0);
        let labels = manifest.bins.bin.iter().map(|bin| width(&bin.label));
        let decimals = decimals(&manifest.task);
        let numbers = manifest
            .task
            .range
            .map(|end| format!("{end:.decimals$}").len());
        Self {
            source: longest.min(MAX_SOURCE),
            number: numbers[0].max(numbers[1]),
            label: labels.max().unwrap_or(0),
            decimals,
            unit: manifest.task.unit.clone(),
        }
    }

    /// One line: picture, value, interval, most probable bin, true value.
    pub fn row(
        &self,
        source: &str,
        estimate: &Estimate,
        bins: &[Bin],
        label: Option<f32>,
    ) -> String {
        let number = |value: f32| {
            format!(
                "{value:>width$.decimals$}",
                width = self.number,
                decimals = self.decimals
            )
        };
        let mut row = padded(&shortened(source, self.source), self.source);
        row += &format!("  \x1b[1m{}\x1b[0m", number(estimate.value));
        if !self.unit.is_empty() {
            row += &format!(" {}", self.unit);
        }
        if let Some([low, high]) = estimate.interval {
            row += &format!("  \x1b[2m[{}, {}]\x1b[0m", number(low), number(high));
        }
        let bin = padded(&bins[estimate.bin].label, self.label);
        let percent = 100.0 * estimate.probabilities[estimate.bin];
        row += &format!("  {bin}  {percent:>3.0} %");
        if let Some(label) = label {
            row += &format!("  label {}", number(label));
        }
        match estimate.doubt {
            Some(Doubt::Wide) => row + "  \x1b[1;33min doubt: wide interval\x1b[0m",
            Some(Doubt::Unfamiliar) => row + "  \x1b[1;33min doubt: unfamiliar picture\x1b[0m",
            None => row,
        }
    }
}

/// Decimals that suit the task's range: about a thousandth of it is shown.
pub fn decimals(task: &TaskSection) -> usize {
    match task.range[1] - task.range[0] {
        span if span <= 20.0 => 2,
        span if span <= 2000.0 => 1,
        _ => 0,
    }
}

/// `value` with the task's decimals and unit.
pub fn with_unit(task: &TaskSection, value: f64) -> String {
    let number = format!("{value:.*}", decimals(task) + 1);
    match task.unit.as_str() {
        "" => number,
        unit => format!("{number} {unit}"),
    }
}

/// `metrics` in a few aligned lines.
pub fn metrics(task: &TaskSection, metrics: &Metrics) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut lines = vec![
        ("pictures".into(), metrics.count.to_string()),
        ("MAE".into(), with_unit(task, metrics.mae)),
        ("RMSE".into(), with_unit(task, metrics.rmse)),
        (
            "bin of the value right".into(),
            percent(metrics.accuracy_expectation),
        ),
        (
            "most probable bin right".into(),
            percent(metrics.accuracy_argmax),
        ),
    ];
    for score in &metrics.cumulative_score {
        lines.push((format!("error at most {}", score.k), percent(score.score)));
    }
    if let Some(coverage) = metrics.interval_coverage {
        lines.push(("label within interval".into(), percent(coverage)));
    }
    aligned(&lines)
}

/// `parts` in a table headed by `title`, a line each.
pub fn parts(task: &TaskSection, title: &str, parts: &[Part]) -> String {
    let header = [title, "pictures", "MAE", "within interval", "mean width"];
    let mut rows = vec![header.map(String::from).to_vec()];
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    rows.extend(parts.iter().map(|part| {
        vec![
            part.name.clone(),
            part.count.to_string(),
            with_unit(task, part.mae),
            part.coverage.map_or("–".into(), percent),
            part.width
                .map_or("–".into(), |width| with_unit(task, width)),
        ]
    }));
    columns(&rows)
}

/// Names and values in two columns, a line each.
pub fn aligned(lines: &[(String, String)]) -> String {
    let longest = lines.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    lines
        .iter()
        .map(|(name, value)| format!("{}  {value}\n", padded(name, longest)))
        .collect()
}

/// Rows of one length as columns as wide as their widest cell.
pub fn columns(rows: &[Vec<String>]) -> String {
    let widest = |column: usize| rows.iter().map(|row| width(&row[column])).max();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate();
        let cells: Vec<String> = cells
            .map(|(column, cell)| padded(cell, widest(column).unwrap_or(0)))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// `text` filled up with spaces to `to` characters.
pub fn padded(text: &str, to: usize) -> String {
    format!("{text}{}", " ".repeat(to.saturating_sub(width(text))))
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// The end of a path matters most: its beginning makes room.
fn shortened(text: &str, to: usize) -> String {
    let surplus = width(text).saturating_sub(to);
    match surplus {
        0 => text.into(),
        _ => format!("…{}", text.chars().skip(surplus + 1).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_keep_their_end() {
        assert_eq!(shortened("photos/a.jpg", 20), "photos/a.jpg");
        assert_eq!(shortened("photos/ä/a.jpg", 7), "…/a.jpg");
    }

    #[test]
    fn columns_line_up() {
        let text = aligned(&[("a".into(), "1".into()), ("größe".into(), "2".into())]);
        assert_eq!(text, "a      1\ngröße  2\n");
    }

    #[test]
    fn decimals_follow_the_range() {
        let task = |high| TaskSection {
            name: String::new(),
            unit: "%".into(),
            range: [0.0, high],
        };
        assert_eq!(decimals(&task(9.0)), 2);
        assert_eq!(decimals(&task(100.0)), 1);
        assert_eq!(with_unit(&task(5000.0), 1912.34), "1912.3 %");
    }
}
