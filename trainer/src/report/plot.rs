//! Charts as SVG: axes, lines, dots, bands and bars.

use std::fmt::Write as _;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;

/// Point of a chart, in the units of its axes.
pub(crate) type At = (f64, f64);

/// Numbers along one side of a chart.
pub(crate) struct Axis {
    low: f64,
    high: f64,
    step: f64,
    label: String,
}

/// Chart under construction.
pub(crate) struct Plot {
    x: Axis,
    y: Axis,
    marks: String,
    legend: String,
}

impl Axis {
    /// Covers all finite values, with round numbers at its ends.
    pub(crate) fn around(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let finite = values.into_iter().filter(|v| v.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            (low.min(v), high.max(v))
        });
        let (low, high) = match high - low {
            span if span > 0.0 => (low, high),
            0.0 => (low - 0.5, high + 0.5),
            _ => (0.0, 1.0),
        };
        let step = round_step((high - low) / 5.0);
        Self {
            low: (low / step + 1e-9).floor() * step,
            high: (high / step - 1e-9).ceil() * step,
            step,
            label: label.into(),
        }
    }

    /// As [`Axis::around`], with zero among the values.
    pub(crate) fn from_zero(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        Self::around(label, values.into_iter().chain([0.0]))
    }

    fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let count = ((self.high - self.low) / self.step).round() as u32;
        (0..=count).map(|i| self.low + self.step * f64::from(i))
    }

    fn numeral(&self, value: f64) -> String {
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        let value = if value.abs() < self.step * 1e-6 {
            0.0
        } else {
            value
        };
        if self.step < 1e-3 {
            let power = self.high.abs().max(self.low.abs()).log10().floor() as i32;
            return match value {
                0.0 => "0".into(),
                _ => format!("{:.1}e{power}", value / 10_f64.powi(power)),
            };
        }
        format!("{value:.digits$}")
    }
}

/// The nearest of 1, 2, 5, 10, … at or above `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|f| f * power >= rough * 0.999)
        .unwrap_or(10.0);
    factor * power
}

impl Plot {
    /// An empty chart.
    pub(crate) fn new(x: Axis, y: Axis) -> Self {
        Self {
            x,
            y,
            marks: String::new(),
            legend: String::new(),
        }
    }

    /// Line through the finite ones of some points; `series` is a colour class.
    pub(crate) fn line(&mut self, series: &str, points: &[At]) {
        let path = self.path(points);
        let _ = write!(
            self.marks,
            r#"<polyline class="line {series}" points="{path}"/>"#
        );
    }

    /// Area between a lower and an upper line.
    pub(crate) fn band(&mut self, series: &str, lower: &[At], upper: &[At]) {
        let outline: Vec<At> = lower.iter().chain(upper.iter().rev()).copied().collect();
        let path = self.path(&outline);
        let _ = write!(
            self.marks,
            r#"<polygon class="band {series}" points="{path}"/>"#
        );
    }

    /// Dots with a text shown when pointed at.
    pub(crate) fn dots(&mut self, series: &str, radius: f64, points: &[(At, String)]) {
        for ((x, y), text) in points
            .iter()
            .filter(|((x, y), _)| x.is_finite() && y.is_finite())
        {
            let (x, y) = (self.across(*x), self.up(*y));
            let _ = write!(
                self.marks,
                r#"<circle class="dot {series}" cx="{x:.1}" cy="{y:.1}" r="{radius}"><title>{}</title></circle>"#,
                escape(text)
            );
        }
    }

    /// Upright bar from zero, `width` wide in units of the x axis.
    pub(crate) fn bar(&mut self, series: &str, (x, y): At, width: f64, text: &str) {
        let (left, right) = (self.across(x - width / 2.0), self.across(x + width / 2.0));
        let (top, bottom) = (self.up(y), self.up(0.0));
        let _ = write!(
            self.marks,
            r#"<rect class="bar {series}" x="{left:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" rx="2"><title>{}</title></rect>"#,
            right - left,
            bottom - top,
            escape(text)
        );
    }

    /// Entry of the legend.
    pub(crate) fn name(&mut self, series: &str, name: &str) {
        let _ = write!(
            self.legend,
            r#"<span><i class="{series}"></i>{}</span>"#,
            escape(name)
        );
    }

    /// The chart as a figure with its title.
    pub(crate) fn finish(self, title: &str) -> String {
        let axes = self.axes();
        figure(title, &self.legend, WIDTH, HEIGHT, &(axes + &self.marks))
    }

    fn axes(&self) -> String {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut svg = String::new();
        for tick in self.y.ticks() {
            let y = self.up(tick);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}"/><text class="tick" text-anchor="end" x="{:.1}" y="{:.1}">{}</text>"#,
                LEFT - 6.0,
                y + 4.0,
                self.y.numeral(tick)
            );
        }
        for tick in self.x.ticks() {
            let _ = write!(
                svg,
                r#"<text class="tick" text-anchor="middle" x="{:.1}" y="{:.1}">{}</text>"#,
                self.across(tick),
                bottom + 17.0,
                self.x.numeral(tick)
            );
        }
        let middle = (TOP + bottom) / 2.0;
        let _ = write!(
            svg,
            r#"<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/><text class="label" text-anchor="middle" x="{:.1}" y="{:.1}">{}</text><text class="label" text-anchor="middle" transform="translate(12 {middle:.1}) rotate(-90)">{}</text>"#,
            (LEFT + right) / 2.0,
            HEIGHT - 8.0,
            escape(&self.x.label),
            escape(&self.y.label)
        );
        svg
    }

    fn path(&self, points: &[At]) -> String {
        let finite = points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite());
        let place = |&(x, y): &At| format!("{:.1},{:.1}", self.across(x), self.up(y));
        finite.map(place).collect::<Vec<_>>().join(" ")
    }

    fn across(&self, x: f64) -> f64 {
        LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT)
    }

    fn up(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.share(y) * (HEIGHT - TOP - BOTTOM)
    }
}

/// Titled SVG of the given size.
pub(crate) fn figure(title: &str, legend: &str, width: f64, height: f64, content: &str) -> String {
    let title = escape(title);
    format!(
        r#"<figure><figcaption>{title}<div class="legend">{legend}</div></figcaption><svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{content}</svg></figure>"#
    )
}

/// Text made safe for HTML and for attributes.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_begin_and_end_at_round_numbers() {
        let axis = Axis::around("", [3.2, 97.0]);
        assert_eq!(
            axis.ticks().collect::<Vec<_>>(),
            [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
        );
        let axis = Axis::around("", [0.12, 0.48]);
        let numerals: Vec<String> = axis.ticks().map(|t| axis.numeral(t)).collect();
        assert_eq!(numerals, ["0.1", "0.2", "0.3", "0.4", "0.5"]);
        let axis = Axis::from_zero("", [1e-4, 5e-4]);
        assert_eq!(axis.numeral(5e-4), "5.0e-4");
    }

    #[test]
    fn values_that_span_nothing_still_have_an_axis() {
        for values in [vec![], vec![2.0], vec![f64::NAN], vec![f64::INFINITY]] {
            let axis = Axis::around("", values);
            assert!(axis.low < axis.high && axis.ticks().count() < 20);
        }
    }
}
