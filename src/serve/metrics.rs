//! The state in the text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write as _};

use super::health::{Histogram, LATENCIES};
use super::screen::State;
use crate::live::Counts;
use crate::status::SinkStatus;

/// Media type of what [`text`] gives.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics. `clients` are those who watch at this moment: kind and number.
pub fn text(state: &State, clients: &[(&str, usize)]) -> String {
    let mut page = Page::default();
    page.identity(state);
    page.pipeline(state);
    page.latency(&state.latency);
    page.device(state);
    page.sinks(&state.status.sinks);
    page.clients(clients);
    page.0
}

/// What is counted: the name of the metric, what it says, where it stands.
type Count = (&'static str, &'static str, fn(&Counts) -> u64);

const COUNTS: [Count; 8] = [
    (
        "frames_captured_total",
        "Frames that the source gave.",
        |counts| counts.captured,
    ),
    (
        "frames_dropped_total",
        "Frames that a fresher one replaced.",
        |counts| counts.dropped,
    ),
    (
        "frames_skipped_total",
        "Frames that came sooner than wanted.",
        |counts| counts.skipped,
    ),
    (
        "frames_unchanged_total",
        "Frames that showed nothing new.",
        |counts| counts.unchanged,
    ),
    (
        "frames_unusable_total",
        "Frames that were no picture.",
        |counts| counts.unusable,
    ),
    ("estimates_total", "Estimates made.", |counts| {
        counts.readings
    }),
    (
        "estimates_unread_total",
        "Estimates that nobody took.",
        |counts| counts.unread,
    ),
    (
        "reconnects_total",
        "Times that the source was opened again.",
        |counts| counts.reconnects,
    ),
];

#[derive(Default)]
struct Page(String);

/// What a metric is.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Page {
    fn identity(&mut self, state: &State) {
        let (status, model) = (&state.status, &state.status.model);
        self.head("numclip_build_info", Kind::Gauge, "Version of numclip.");
        self.line("numclip_build_info", &[("version", status.version)], 1);
        self.head("numclip_model_info", Kind::Gauge, "The model that runs.");
        let labels = [
            ("name", model.name.as_str()),
            ("version", &model.version),
            ("sha256", &model.sha256),
            ("engine", &model.engine),
            ("task", &state.task.name),
            ("unit", &state.task.unit),
        ];
        self.line("numclip_model_info", &labels, 1);
        let swaps = "Times that a model was put in place of another.";
        self.one("model_swaps_total", Kind::Counter, swaps, model.swaps);
    }

    fn pipeline(&mut self, state: &State) {
        let (status, camera) = (&state.status, &state.camera);
        let gauges: [(&str, &str, f64); 4] = [
            (
                "healthy",
                "1 while frames come or need not.",
                u8::from(camera.is_well()).into(),
            ),
            ("fps", "Estimates in a second, of late.", status.fps.into()),
            ("silent_seconds", "Time since a frame came.", state.silent),
            ("uptime_seconds", "Time since the start.", status.uptime),
        ];
        for (name, help, value) in gauges {
            self.one(name, Kind::Gauge, help, value);
        }
        for (name, help, count) in COUNTS {
            self.one(name, Kind::Counter, help, count(&status.counts));
        }
        if let Some(value) = state.value {
            let help = "The latest estimate, in the unit of the model.";
            self.one("value", Kind::Gauge, help, value);
        }
    }

    fn latency(&mut self, latency: &Histogram) {
        const NAME: &str = "numclip_latency_seconds";
        let help = "From the arrival of a frame to its estimate.";
        self.head(NAME, Kind::Histogram, help);
        let mut below = 0;
        for (end, count) in LATENCIES.iter().zip(latency.counts) {
            below += count;
            let labels = [("le", end.to_string())];
            self.line("numclip_latency_seconds_bucket", &labels, below);
        }
        let all = [("le", "+Inf")];
        self.line("numclip_latency_seconds_bucket", &all, latency.count);
        self.line::<&str>("numclip_latency_seconds_sum", &[], latency.sum);
        self.line::<&str>("numclip_latency_seconds_count", &[], latency.count);
    }

    fn device(&mut self, state: &State) {
        let device = &state.status.device;
        if let Some(degrees) = device.temperature {
            let help = "The hottest sensor of the machine.";
            self.one("temperature_celsius", Kind::Gauge, help, degrees);
        }
        if let Some(throttled) = device.throttled {
            let help = "1 while the processor runs slower than it could.";
            self.one("throttled", Kind::Gauge, help, u8::from(throttled));
        }
        if let Some(bytes) = device.memory {
            // A name that every exporter uses.
            const NAME: &str = "process_resident_memory_bytes";
            self.head(NAME, Kind::Gauge, "Memory of this process.");
            self.line::<&str>(NAME, &[], bytes);
        }
        if let Some(bytes) = device.memory_free {
            let help = "Memory that the machine has left.";
            self.one("memory_free_bytes", Kind::Gauge, help, bytes);
        }
    }

    fn sinks(&mut self, sinks: &[SinkStatus]) {
        type Count = fn(&SinkStatus) -> u64;
        let counts: [(&str, Kind, &str, Count); 4] = [
            (
                "taken_total",
                Kind::Counter,
                "Estimates that a sink took.",
                |sink| sink.taken,
            ),
            (
                "failed_total",
                Kind::Counter,
                "Estimates that a sink failed to keep.",
                |sink| sink.failed,
            ),
            (
                "dropped_total",
                Kind::Counter,
                "Estimates that a sink was too slow for.",
                |sink| sink.dropped,
            ),
            (
                "waiting",
                Kind::Gauge,
                "Estimates that wait for a sink.",
                |sink| sink.waiting,
            ),
        ];
        for (name, kind, help, count) in counts {
            let name = format!("numclip_sink_{name}");
            self.head(&name, kind, help);
            for sink in sinks {
                self.line(&name, &[("sink", &sink.name)], count(sink));
            }
        }
    }

    fn clients(&mut self, clients: &[(&str, usize)]) {
        const NAME: &str = "numclip_http_clients";
        self.head(NAME, Kind::Gauge, "Clients that watch.");
        for (kind, count) in clients {
            self.line(NAME, &[("kind", kind)], count);
        }
    }

    /// A metric of numclip without labels.
    fn one(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        let name = format!("numclip_{name}");
        self.head(&name, kind, help);
        self.line::<&str>(&name, &[], value);
    }

    fn head(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line<T: AsRef<str>>(&mut self, name: &str, labels: &[(&str, T)], value: impl Display) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let text = escaped(text.as_ref());
            self.write(format_args!("{before}{label}=\"{text}\""));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        self.write(format_args!(" {value}\n"));
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.0.write_fmt(text);
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_histogram_counts_all_that_is_below() {
        let mut latency = Histogram::default();
        for milliseconds in [1, 3, 3, 70, 9000] {
            latency.observe(Duration::from_millis(milliseconds));
        }
        let mut page = Page::default();
        page.latency(&latency);
        for line in [
            "_bucket{le=\"0.001\"} 1",
            "_bucket{le=\"0.005\"} 3",
            "_bucket{le=\"0.05\"} 3",
            "_bucket{le=\"5\"} 4",
            "_bucket{le=\"+Inf\"} 5",
            "_count 5",
            "_sum 9.077",
        ] {
            let line = format!("\nnumclip_latency_seconds{line}");
            assert!(page.0.contains(&line), "{line} in {}", page.0);
        }
    }

    #[test]
    fn labels_keep_their_quotes() {
        let mut page = Page::default();
        page.line("x", &[("a", "1\"2\\3\n4"), ("b", "")], 0.5);
        assert_eq!(page.0, "x{a=\"1\\\"2\\\\3\\n4\",b=\"\"} 0.5\n");
    }
}
