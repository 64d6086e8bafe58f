//! Estimates as lines: JSON or CSV, in a file or on standard output.

use std::io::{self, ErrorKind, Write, stdout};

use super::file::{FileSettings, LineFile};
use super::{Answer, Sink, SinkError};
use crate::record::rfc3339;

/// The columns of a table. They never depend on the model or the source.
const COLUMNS: &str = "time,source,frame,value,low,high,smoothed,smoothed_low,smoothed_high,\
bin,label,probability,truth,subject,left,top,width,height,\
decode_ms,preprocess_ms,encode_ms,estimate_ms,total_ms,model,version";

/// How an estimate becomes a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON object.
    Json,
    /// One row of a table with a header.
    Csv,
}

/// Writes one line for every estimate.
pub struct Lines {
    form: Form,
    to: To,
    /// The line at hand.
    line: Vec<u8>,
}

enum To {
    Stdout,
    File(LineFile),
}

impl Lines {
    /// Lines of the given form to the file of `settings`. Says as well how many
    /// bytes of a torn line were cut off the file.
    ///
    /// # Errors
    /// [`SinkError`] when the file cannot be written.
    pub fn open(form: Form, settings: &FileSettings) -> Result<(Self, u64), SinkError> {
        if settings.is_stdout() {
            if form == Form::Csv {
                print(stdout().lock(), COLUMNS)?;
            }
            return Ok((Self::new(form, To::Stdout), 0));
        }
        let header = (form == Form::Csv).then_some(COLUMNS);
        let (file, torn) = LineFile::open(settings.clone(), header)?;
        Ok((Self::new(form, To::File(file)), torn))
    }

    fn new(form: Form, to: To) -> Self {
        let line = Vec::new();
        Self { form, to, line }
    }
}

impl Sink for Lines {
    fn put(&mut self, answer: &Answer) -> Result<(), SinkError> {
        self.line.clear();
        match self.form {
            Form::Json => answer.write_json(&mut self.line),
            Form::Csv => self.line.extend_from_slice(row(answer).as_bytes()),
        }
        let line = str::from_utf8(&self.line).unwrap_or_default();
        match &mut self.to {
            To::Stdout => print(stdout().lock(), line),
            To::File(file) => file.write(line),
        }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        match &mut self.to {
            To::Stdout => Ok(()),
            To::File(file) => file.sync(),
        }
    }

    fn keeps_all(&self) -> bool {
        true
    }
}

/// Writes `line` to `out`, which is standard output in one way or another.
///
/// # Errors
/// [`SinkError::Closed`] when its reader has left.
pub fn print(mut out: impl Write, line: &str) -> Result<(), SinkError> {
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => SinkError::Closed,
        _ => SinkError::Io {
            name: "standard output".into(),
            error,
        },
    })
}

fn row(answer: &Answer) -> String {
    let reading = &answer.reading;
    let (timed, manifest) = (&reading.timed, reading.bundle.manifest());
    let estimate = &timed.estimate;
    let number = |value: Option<f32>| value.map(|value| value.to_string()).unwrap_or_default();
    let smoothed = reading.smoothed;
    let smoothed_interval = smoothed.and_then(|smoothed| smoothed.interval);
    let subject = reading.subject;
    let side = |side: usize| subject.map(|subject| subject.region[side].to_string());
    let milliseconds = |time: std::time::Duration| format!("{:.3}", 1e3 * time.as_secs_f64());
    let cells = [
        rfc3339(reading.time),
        reading.name.as_deref().unwrap_or(&answer.source).into(),
        reading.frame.to_string(),
        estimate.value.to_string(),
        number(estimate.interval.map(|[low, _]| low)),
        number(estimate.interval.map(|[_, high]| high)),
        number(smoothed.map(|smoothed| smoothed.value)),
        number(smoothed_interval.map(|[low, _]| low)),
        number(smoothed_interval.map(|[_, high]| high)),
        estimate.bin.to_string(),
        manifest.bins.bin[estimate.bin].label.clone(),
        estimate.probabilities[estimate.bin].to_string(),
        number(reading.truth),
        subject
            .map(|subject| subject.id.to_string())
            .unwrap_or_default(),
        side(0).unwrap_or_default(),
        side(1).unwrap_or_default(),
        side(2).unwrap_or_default(),
        side(3).unwrap_or_default(),
        milliseconds(reading.decode),
        milliseconds(timed.preprocess),
        milliseconds(timed.encode),
        milliseconds(timed.estimation),
        milliseconds(reading.latency),
        manifest.model.name.clone(),
        manifest.model.version.clone(),
    ];
    joined(&cells).unwrap_or_default()
}

/// `cells` as one line, quoted where need be; line breaks become spaces.
fn joined(cells: &[String]) -> io::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(cells.iter().map(|cell| cell.replace(['\n', '\r'], " ")))?;
    let bytes = writer.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::super::samples::answer;
    use super::*;
    use crate::live::{Smoothed, Subject};

    #[test]
    fn rows_have_their_columns() {
        let mut answer = answer(7, 42.5);
        let reading = Arc::make_mut(&mut answer.reading);
        reading.name = Some("a \"b\",\nc.png".into());
        reading.smoothed = Some(Smoothed {
            value: 42.0,
            interval: None,
        });
        reading.subject = Some(Subject {
            id: 3,
            region: [1, 2, 30, 40],
        });
        let text = format!("{COLUMNS}\n{}\n", row(&answer));
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().unwrap().clone();
        let record = reader.records().next().unwrap().unwrap();
        let cell = |name| &record[header.iter().position(|column| column == name).unwrap()];
        for (name, expected) in [
            ("time", "2026-09-21T14:13:20.7Z"),
            ("source", "a \"b\", c.png"),
            ("frame", "7"),
            ("value", "42.5"),
            ("low", "41.5"),
            ("smoothed", "42"),
            ("smoothed_low", ""),
            ("label", "empty"),
            ("subject", "3"),
            ("height", "40"),
            ("encode_ms", "1.800"),
            ("model", "gauge"),
        ] {
            assert_eq!(cell(name), expected, "{name}");
        }
    }

    #[test]
    fn both_forms_reach_their_files() {
        let place = tempfile::tempdir().unwrap();
        for (form, lines) in [(Form::Json, 2), (Form::Csv, 3)] {
            let path = place.path().join("file");
            fs::write(&path, "").unwrap();
            let (mut sink, _) = Lines::open(form, &FileSettings::new(&path)).unwrap();
            sink.put(&answer(0, 1.0)).unwrap();
            sink.put(&answer(1, 2.0)).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count(), lines);
            if form == Form::Json {
                let last: serde_json::Value =
                    serde_json::from_str(text.lines().last().unwrap()).unwrap();
                assert_eq!((&last["frame"], &last["value"]), (&1.into(), &2.0.into()));
            }
        }
    }
}
