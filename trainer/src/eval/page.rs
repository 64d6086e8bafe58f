//! An evaluation as one page: measures, charts, parts, the worst images.

use std::fmt::Write as _;
use std::io::Cursor;
use std::path::Path;

use base64::Engine as _;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, RgbImage};
use numclip::decode;
use rayon::prelude::*;

use super::{Evaluation, Part, Row};
use crate::report::page::{document, table};
use crate::report::plot::escape;
use crate::report::{RunReport, figures};

/// Images on the contact sheet.
const WORST: usize = 24;
/// Groups listed.
const GROUPS: usize = 20;
/// Longer side of an image on the contact sheet, in pixels.
const THUMBNAIL: u32 = 200;

/// The whole page.
pub fn render(evaluation: &Evaluation) -> String {
    let title = format!("{}: evaluation", evaluation.task);
    let mut body = measures(evaluation);
    let charts = RunReport {
        unit: evaluation.unit.clone(),
        bins: evaluation.bins.clone(),
        estimates: evaluation.points(),
        coverage: evaluation.meant_coverage,
        ..RunReport::default()
    };
    for warning in &evaluation.warnings {
        let _ = write!(body, "<p><b>Warning:</b> {}</p>", escape(warning));
    }
    let mut charts = figures::all(&charts);
    let ordinality = &evaluation.ordinality;
    charts.push(figures::similarities(
        &format!(
            "Similarity of the bin embeddings (ordinality {:.2})",
            ordinality.score
        ),
        &ordinality.labels,
        &ordinality.similarities,
    ));
    let _ = write!(body, r#"<div class="figures">{}</div>"#, charts.concat());
    body += &parts("By bin of the label", &evaluation.by_bin, evaluation);
    body += &parts("By range of the label", &evaluation.by_range, evaluation);
    let groups = &evaluation.by_group;
    if !groups.is_empty() {
        let shown = groups.len().min(GROUPS);
        let heading = format!(
            "By group: the {shown} largest errors of {} groups",
            groups.len()
        );
        body += &parts(&heading, &groups[..shown], evaluation);
    }
    body += &worst(evaluation);
    if !evaluation.skipped.is_empty() {
        let names = evaluation.skipped.join("\n");
        let _ = write!(
            body,
            "<h2>{} images that could not be read</h2><pre>{}</pre>",
            evaluation.skipped.len(),
            escape(&names)
        );
    }
    let subtitle = format!(
        "{}, on {} images: {}",
        evaluation.subject, evaluation.count, evaluation.images
    );
    document(&title, &subtitle, &body)
}

fn measures(evaluation: &Evaluation) -> String {
    let rows: Vec<Vec<String>> = evaluation
        .measures
        .iter()
        .map(|measure| {
            let interval = measure.interval.map_or(String::new(), |[low, high]| {
                format!("{} to {}", measure.text(low), measure.text(high))
            });
            vec![
                measure.name(&evaluation.unit),
                measure.text(measure.value),
                interval,
            ]
        })
        .collect();
    let heading = match evaluation.unit.as_str() {
        "" | "%" => "Results".to_owned(),
        unit => format!("Results, in {unit} or per cent of the images"),
    };
    let interval = format!("95 % interval, {}s resampled", evaluation.resampled);
    table(&heading, &["", "value", &interval], &rows)
}

fn parts(heading: &str, parts: &[Part], evaluation: &Evaluation) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let rows: Vec<Vec<String>> = parts
        .iter()
        .map(|part| {
            let mut row = vec![
                part.name.clone(),
                part.count.to_string(),
                format!("{:.3}", part.mae),
                format!("{:+.3}", part.bias),
                percent(part.accuracy),
            ];
            row.extend(part.coverage.map(percent));
            row
        })
        .collect();
    let mut columns = vec!["", "images", "MAE", "estimate − label", "bin right"];
    if evaluation.meant_coverage.is_some() {
        columns.push("inside interval");
    }
    table(heading, &columns, &rows)
}

/// The images with the largest errors.
fn worst(evaluation: &Evaluation) -> String {
    let mut rows: Vec<&Row> = evaluation.rows.iter().collect();
    let error = |row: &Row| (row.value - row.label).abs();
    rows.sort_by(|a, b| error(b).total_cmp(&error(a)));
    rows.truncate(WORST);
    let cards: Vec<String> = rows.par_iter().map(|row| card(row)).collect();
    format!(
        r#"<h2>Largest errors</h2><div class="sheet">{}</div>"#,
        cards.concat()
    )
}

fn card(row: &Row) -> String {
    let picture = thumbnail(&row.path).map_or(String::new(), |jpeg| {
        let data = base64::engine::general_purpose::STANDARD.encode(jpeg);
        format!(r#"<img alt="" src="data:image/jpeg;base64,{data}">"#)
    });
    let name = row.path.file_name().unwrap_or(row.path.as_os_str());
    format!(
        "<figure>{picture}<figcaption>label {}, estimate {:.2}<br><small>{}</small></figcaption></figure>",
        row.label,
        row.value,
        escape(&name.to_string_lossy())
    )
}

/// None where the image cannot be read any more.
fn thumbnail(path: &Path) -> Option<Vec<u8>> {
    let frame = decode::open(path).ok()?;
    let image = RgbImage::from_raw(frame.width(), frame.height(), frame.pixels().to_vec())?;
    let image = DynamicImage::from(image);
    let small = match image.width().max(image.height()) > THUMBNAIL {
        true => image.thumbnail(THUMBNAIL, THUMBNAIL),
        false => image,
    };
    let mut jpeg = Cursor::new(Vec::new());
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, 80);
    small.write_with_encoder(encoder).ok()?;
    Some(jpeg.into_inner())
}
