//! The charts of a run.

use std::fmt::Write as _;

use numclip::bins::{Bin, index_of};

use super::{
    EpochPoint, EstimatePoint, RunReport, StepPoint,
    plot::{At, Axis, Plot, escape, figure},
};

/// More dots than this are thinned out evenly.
const MOST_DOTS: usize = 2000;

/// All charts that the report has data for.
pub(crate) fn all(report: &RunReport) -> Vec<String> {
    let mut figures = Vec::new();
    if !report.epochs.is_empty() || !report.steps.is_empty() {
        figures.push(loss(&report.steps, &report.epochs));
    }
    if !report.epochs.is_empty() {
        figures.push(error_over_time(report));
    }
    if !report.estimates.is_empty() {
        figures.push(estimate_against_label(report));
        figures.push(error_against_label(report));
        if report.bins.len() > 1 {
            figures.push(confusion(&report.bins, &report.estimates));
        }
        figures.extend(reliability(report));
    }
    if !report.steps.is_empty() {
        figures.push(learning_rate(&report.steps));
    }
    figures
}

fn loss(steps: &[StepPoint], epochs: &[EpochPoint]) -> String {
    let train: Vec<At> = epochs
        .iter()
        .map(|e| (e.epoch as f64, e.train_loss))
        .collect();
    let val: Vec<At> = epochs
        .iter()
        .filter_map(|e| Some((e.epoch as f64, e.val_loss?)))
        .collect();
    let smooth = smoothed(steps);
    let all = || train.iter().chain(&val).chain(&smooth);
    let mut plot = Plot::new(
        Axis::from_zero("epoch", all().map(|p| p.0)),
        Axis::from_zero("loss", all().map(|p| p.1)),
    );
    draw(&mut plot, "faint", "steps, smoothed", &smooth);
    draw(&mut plot, "first", "training", &train);
    draw(&mut plot, "second", "validation", &val);
    plot.finish("Loss")
}

fn error_over_time(report: &RunReport) -> String {
    let epochs = &report.epochs;
    let train: Vec<At> = epochs
        .iter()
        .map(|e| (e.epoch as f64, e.train_mae))
        .collect();
    let val: Vec<At> = epochs
        .iter()
        .filter_map(|e| Some((e.epoch as f64, e.val_mae?)))
        .collect();
    let all = || train.iter().chain(&val);
    let mut plot = Plot::new(
        Axis::from_zero("epoch", all().map(|p| p.0)),
        Axis::from_zero(
            &with_unit("mean absolute error", report),
            all().map(|p| p.1),
        ),
    );
    draw(&mut plot, "first", "training, augmented", &train);
    draw(&mut plot, "second", "validation", &val);
    if let Some(&(epoch, error)) = val.iter().min_by(|a, b| a.1.total_cmp(&b.1)) {
        let text = format!("best: {error:.3} after epoch {epoch}");
        plot.dots("second", 4.0, &[((epoch, error), text)]);
    }
    plot.finish("Error over time")
}

fn learning_rate(steps: &[StepPoint]) -> String {
    let points: Vec<At> = steps.iter().map(|s| (s.epoch, s.learning_rate)).collect();
    let points = thinned(&points);
    let mut plot = Plot::new(
        Axis::from_zero("epoch", points.iter().map(|p| p.0)),
        Axis::from_zero("learning rate", points.iter().map(|p| p.1)),
    );
    plot.line("first", &points);
    plot.finish("Learning rate")
}

fn estimate_against_label(report: &RunReport) -> String {
    let point = |e: &EstimatePoint| (f64::from(e.label), f64::from(e.value));
    let ends = || {
        report
            .estimates
            .iter()
            .flat_map(|e| [f64::from(e.label), f64::from(e.value)])
    };
    let mut plot = Plot::new(
        Axis::around(&with_unit("label", report), ends()),
        Axis::around(&with_unit("estimate", report), ends()),
    );
    let low = ends().fold(f64::INFINITY, f64::min);
    let high = ends().fold(f64::NEG_INFINITY, f64::max);
    let dots: Vec<(At, String)> = report
        .estimates
        .iter()
        .map(|e| {
            (
                point(e),
                format!("{}: label {}, estimate {:.2}", e.name, e.label, e.value),
            )
        })
        .collect();
    plot.dots("first", 2.2, &thinned(&dots));
    plot.line("rule", &[(low, low), (high, high)]);
    plot.finish(&titled("Estimate against label", report))
}

/// Median and quartiles of the error in ten equal parts of the labels' range.
fn error_against_label(report: &RunReport) -> String {
    let errors = parts_of_range(&report.estimates);
    let line = |share: f64| -> Vec<At> {
        errors
            .iter()
            .map(|(label, errors)| (*label, quantile(errors, share)))
            .collect()
    };
    let (lower, middle, upper) = (line(0.25), line(0.5), line(0.75));
    let (bottom, top) = (line(0.05), line(0.95));
    let all = || bottom.iter().chain(&top);
    let mut plot = Plot::new(
        Axis::around(
            &with_unit("label", report),
            report.estimates.iter().map(|e| f64::from(e.label)),
        ),
        Axis::from_zero(&with_unit("estimate − label", report), all().map(|p| p.1)),
    );
    plot.band("faint", &bottom, &top);
    plot.band("first", &lower, &upper);
    plot.line("rule", &[(f64::MIN, 0.0), (f64::MAX, 0.0)]);
    plot.line("first", &middle);
    plot.name("first", "median and quartiles");
    plot.name("faint", "5 to 95 %");
    plot.finish(&titled("Error against label", report))
}

/// Rows are the labels' bins, columns the estimates'; shade is the share of
/// the row.
fn confusion(bins: &[Bin], estimates: &[EstimatePoint]) -> String {
    let mut counts = vec![vec![0_usize; bins.len()]; bins.len()];
    for e in estimates {
        counts[index_of(bins, e.label)][index_of(bins, e.value)] += 1;
    }
    let (left, top, side) = (112.0, 14.0, 300.0 / bins.len() as f64);
    let mut svg = String::new();
    for (row, counts) in counts.iter().enumerate() {
        let total: usize = counts.iter().sum();
        let y = top + side * row as f64;
        let _ = write!(
            svg,
            r#"<text class="tick" text-anchor="end" x="{:.1}" y="{:.1}">{}</text>"#,
            left - 8.0,
            y + side / 2.0 + 4.0,
            escape(&shortened(&bins[row].label, 16))
        );
        for (column, &count) in counts.iter().enumerate() {
            let share = count as f64 / total.max(1) as f64;
            svg += &cell(left + side * column as f64, y, side, share, count);
        }
    }
    let bottom = top + 300.0;
    for (column, bin) in bins.iter().enumerate() {
        let x = left + side * (column as f64 + 0.5);
        let _ = write!(
            svg,
            r#"<text class="tick" text-anchor="end" transform="translate({x:.1} {:.1}) rotate(-40)">{}</text>"#,
            bottom + 14.0,
            escape(&shortened(&bin.label, 16))
        );
    }
    figure(
        "Confusion over bins (rows: label, columns: estimate)",
        "",
        480.0,
        bottom + 84.0,
        &svg,
    )
}

fn cell(x: f64, y: f64, side: f64, share: f64, count: usize) -> String {
    let text = if side < 18.0 || count == 0 {
        String::new()
    } else {
        count.to_string()
    };
    let hint = format!("{count}, {:.0} % of the row", share * 100.0);
    shaded(x, y, side, share, &hint, &text)
}

fn shaded(x: f64, y: f64, side: f64, share: f64, hint: &str, text: &str) -> String {
    let class = if share > 0.55 { "on" } else { "off" };
    format!(
        r#"<rect class="cell" x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="3" style="fill-opacity:{:.3}"><title>{}</title></rect><text class="count {class}" text-anchor="middle" x="{:.1}" y="{:.1}">{text}</text>"#,
        x + 1.0,
        y + 1.0,
        side - 2.0,
        side - 2.0,
        0.06 + 0.94 * share,
        escape(hint),
        x + side / 2.0,
        y + side / 2.0 + 4.0
    )
}

/// Cosine similarities of the bin embeddings; shade runs from the least to the
/// largest of them.
pub(crate) fn similarities(title: &str, labels: &[String], rows: &[Vec<f32>]) -> String {
    let all = || rows.iter().flatten().copied();
    let (low, high) = (
        all().fold(f32::MAX, f32::min),
        all().fold(f32::MIN, f32::max),
    );
    let (left, top, side) = (112.0, 14.0, 300.0 / rows.len().max(1) as f64);
    let mut svg = String::new();
    for (y, (row, label)) in rows.iter().zip(labels).enumerate() {
        let _ = write!(
            svg,
            r#"<text class="tick" text-anchor="end" x="{:.1}" y="{:.1}">{}</text>"#,
            left - 8.0,
            top + side * (y as f64 + 0.5) + 4.0,
            escape(&shortened(label, 16))
        );
        for (x, &value) in row.iter().enumerate() {
            let share = f64::from((value - low) / (high - low).max(f32::MIN_POSITIVE));
            let text = if side < 30.0 {
                String::new()
            } else {
                format!("{value:.2}")
            };
            let hint = format!("{label} and {}: {value:.4}", labels[x]);
            svg += &shaded(
                left + side * x as f64,
                top + side * y as f64,
                side,
                share,
                &hint,
                &text,
            );
        }
    }
    figure(title, "", 480.0, top + 314.0, &svg)
}

/// Share of labels inside the interval, from the narrowest fifth of the
/// intervals to the widest: good intervals hold the same share throughout.
fn reliability(report: &RunReport) -> Option<String> {
    let mut held: Vec<(f64, bool)> = report
        .estimates
        .iter()
        .filter_map(|e| {
            let [low, high] = e.interval?;
            Some((f64::from(high - low), (low..=high).contains(&e.label)))
        })
        .collect();
    if held.len() < 5 {
        return None;
    }
    held.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut plot = Plot::new(
        Axis::around("fifth of the images, narrowest intervals first", [0.0, 5.0]),
        Axis::around("labels inside, %", [0.0, 100.0]),
    );
    for fifth in 0..5 {
        let part = &held[held.len() * fifth / 5..held.len() * (fifth + 1) / 5];
        let inside =
            100.0 * part.iter().filter(|(_, inside)| *inside).count() as f64 / part.len() as f64;
        let width = part.iter().map(|(width, _)| width).sum::<f64>() / part.len() as f64;
        let text = format!("{inside:.1} % inside, mean width {width:.2}");
        plot.bar("first", (fifth as f64 + 0.5, inside), 0.7, &text);
    }
    if let Some(wanted) = report.coverage {
        let wanted = f64::from(wanted) * 100.0;
        plot.line("rule", &[(0.0, wanted), (5.0, wanted)]);
        plot.name("rule", &format!("meant: {wanted:.0} %"));
    }
    Some(plot.finish(&titled("Reliability of the intervals", report)))
}

fn draw(plot: &mut Plot, series: &str, name: &str, points: &[At]) {
    if !points.is_empty() {
        plot.line(series, points);
        plot.name(series, name);
    }
}

/// Exponential mean of the step losses over about twenty steps, thinned.
fn smoothed(steps: &[StepPoint]) -> Vec<At> {
    let mut mean = None;
    let smooth: Vec<At> = steps
        .iter()
        .filter(|step| step.loss.is_finite())
        .map(|step| {
            let last = mean.unwrap_or(step.loss);
            let next = last + (step.loss - last) * 0.05;
            mean = Some(next);
            (step.epoch, next)
        })
        .collect();
    thinned(&smooth)
}

/// Every n-th element, so that few enough remain.
fn thinned<T: Clone>(all: &[T]) -> Vec<T> {
    let step = all.len().div_ceil(MOST_DOTS).max(1);
    all.iter().step_by(step).cloned().collect()
}

/// Errors in ten equal parts of the labels' range, each with the middle of its
/// labels; ascending errors, no empty parts.
fn parts_of_range(estimates: &[EstimatePoint]) -> Vec<(f64, Vec<f64>)> {
    let labels = || estimates.iter().map(|e| f64::from(e.label));
    let low = labels().fold(f64::INFINITY, f64::min);
    let span = labels().fold(f64::NEG_INFINITY, f64::max) - low;
    let mut parts = vec![(0.0, Vec::new()); 10];
    for e in estimates {
        let share = if span > 0.0 {
            (f64::from(e.label) - low) / span
        } else {
            0.0
        };
        let (sum, errors) = &mut parts[((share * 10.0) as usize).min(9)];
        *sum += f64::from(e.label);
        errors.push(f64::from(e.value - e.label));
    }
    parts.retain(|(_, errors)| !errors.is_empty());
    for (label, errors) in &mut parts {
        *label /= errors.len() as f64;
        errors.sort_by(f64::total_cmp);
    }
    parts
}

/// Value below which a share of ascending numbers lies.
fn quantile(ascending: &[f64], share: f64) -> f64 {
    let place = share * (ascending.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    ascending[low] + (ascending[high] - ascending[low]) * place.fract()
}

fn with_unit(name: &str, report: &RunReport) -> String {
    match report.unit.as_str() {
        "" => name.into(),
        unit => format!("{name}, {unit}"),
    }
}

fn titled(title: &str, report: &RunReport) -> String {
    match report.estimates_of.as_str() {
        "" => title.into(),
        of => format!("{title} ({of})"),
    }
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::example, *};

    #[test]
    fn quantiles_of_known_numbers() {
        let ascending = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(quantile(&ascending, 0.5), 3.0);
        assert_eq!(quantile(&ascending, 0.25), 2.0);
        assert_eq!(quantile(&ascending, 0.9), 4.6);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
    }

    #[test]
    fn confusion_counts_by_bin() {
        let report = example();
        // One unit too high: label 48 is estimated as 49, label 50 and above
        // are in the upper bin already.
        let svg = confusion(&report.bins, &report.estimates);
        assert!(svg.contains("25, 100 % of the row"), "{svg}");
    }

    #[test]
    fn every_part_has_its_figure() {
        let figures = all(&example());
        assert_eq!(figures.len(), 7);
    }

    #[test]
    fn thinning_keeps_few_and_the_first() {
        let all: Vec<usize> = (0..10_000).collect();
        let few = thinned(&all);
        assert!(few.len() <= MOST_DOTS && few[0] == 0);
        assert_eq!(thinned(&all[..10]), all[..10]);
    }
}
