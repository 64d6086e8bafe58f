//! The same measures for some of the images: by bin, by range, by group.

use std::collections::BTreeMap;

use numclip::bins::{Bin, index_of};

use super::{Part, Row};

/// Parts of the task's range that errors are listed for.
const RANGES: usize = 10;

/// Rows by bin of the label, by tenth of `range`, and by group with the
/// largest error first. Parts without images are left out.
pub fn parts(rows: &[Row], bins: &[Bin], [low, high]: [f32; 2]) -> [Vec<Part>; 3] {
    let step = (high - low) / RANGES as f32;
    let tenth = |row: &Row| (((row.label - low) / step) as usize).min(RANGES - 1);
    let range = |tenth: usize| {
        let start = low + step * tenth as f32;
        format!("{} to {}", rounded(start), rounded(start + step))
    };
    let by_bin = split(rows, bins, |row| Some(index_of(bins, row.label)));
    let by_range = split(rows, bins, |row| Some(tenth(row)));
    let mut by_group: Vec<Part> = split(rows, bins, |row| row.group.as_deref())
        .into_iter()
        .map(|(name, part)| Part {
            name: name.into(),
            ..part
        })
        .collect();
    by_group.sort_by(|a, b| b.mae.total_cmp(&a.mae));
    let name = |index: usize| bins[index].label.clone();
    [
        by_bin
            .into_iter()
            .map(|(bin, part)| Part {
                name: name(bin),
                ..part
            })
            .collect(),
        by_range
            .into_iter()
            .map(|(tenth, part)| Part {
                name: range(tenth),
                ..part
            })
            .collect(),
        by_group,
    ]
}

fn split<'a, K: Ord>(
    rows: &'a [Row],
    bins: &[Bin],
    key: impl Fn(&'a Row) -> Option<K>,
) -> Vec<(K, Part)> {
    let mut parts: BTreeMap<K, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        if let Some(key) = key(row) {
            parts.entry(key).or_default().push(row);
        }
    }
    let of = |(key, rows): (K, Vec<&Row>)| (key, part(&rows, bins));
    parts.into_iter().map(of).collect()
}

fn part(rows: &[&Row], bins: &[Bin]) -> Part {
    let mean =
        |f: &dyn Fn(&Row) -> f64| rows.iter().map(|row| f(row)).sum::<f64>() / rows.len() as f64;
    let right = |row: &Row| index_of(bins, row.value) == index_of(bins, row.label);
    let share = |hit: bool| if hit { 1.0 } else { 0.0 };
    Part {
        name: String::new(),
        count: rows.len(),
        mae: mean(&|row| f64::from((row.value - row.label).abs())),
        bias: mean(&|row| f64::from(row.value - row.label)),
        accuracy: mean(&|row| share(right(row))),
        coverage: rows
            .iter()
            .all(|row| row.low.is_some())
            .then(|| mean(&|row| share(row.covers()))),
    }
}

fn rounded(value: f32) -> f32 {
    (value * 100.0).round() / 100.0
}
