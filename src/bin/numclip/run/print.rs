//! Estimates on standard output, for a person to read.

use std::sync::Arc;

use numclip::bundle::Bundle;
use numclip::sink::lines::print;
use numclip::sink::{Answer, Sink, SinkError};

use crate::table::Layout;

/// Prints a table, row by row.
pub struct Printer {
    source: String,
    bundle: Arc<Bundle>,
    layout: Layout,
}

impl Printer {
    /// A table for estimates from `source` by the model of `bundle`.
    pub fn new(source: String, bundle: Arc<Bundle>) -> Self {
        Self {
            layout: layout(&source, &bundle),
            source,
            bundle,
        }
    }
}

impl Sink for Printer {
    fn put(&mut self, answer: &Answer) -> Result<(), SinkError> {
        let reading = &answer.reading;
        if !Arc::ptr_eq(&self.bundle, &reading.bundle) {
            self.bundle = Arc::clone(&reading.bundle);
            self.layout = layout(&self.source, &self.bundle);
        }
        let source = reading.name.as_deref().unwrap_or(&answer.source);
        let bins = &self.bundle.manifest().bins.bin;
        let mut estimate = reading.timed.estimate.clone();
        if let Some(smoothed) = reading.smoothed {
            (estimate.value, estimate.interval) = (smoothed.value, smoothed.interval);
        }
        let mut row = self.layout.row(source, &estimate, bins, reading.truth);
        if let Some(subject) = reading.subject {
            row += &format!("  subject {}", subject.id);
        }
        print(anstream::stdout().lock(), &row)
    }

    fn keeps_all(&self) -> bool {
        true
    }
}

fn layout(source: &str, bundle: &Bundle) -> Layout {
    Layout::new(bundle.manifest(), std::iter::once(source))
}
