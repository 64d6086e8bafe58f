//! What a picture of a gauge shows, as plain values.

use serde::{Deserialize, Serialize};

/// Colour as red, green, blue, 0–255.
pub type Rgb = [u8; 3];

/// Everything that decides the pixels of one picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GaugeSpec {
    /// Reading in percent of the scale, 0–100: the label.
    pub value: f32,
    /// Printed scale.
    pub scale: Scale,
    /// Face of the gauge.
    pub dial: Dial,
    /// Pointer.
    pub needle: Needle,
    /// Housing around the dial.
    pub case: Case,
    /// Where the camera stands.
    pub view: View,
    /// Lamps, shadows and reflections.
    pub light: Light,
    /// What is behind the gauge.
    pub backdrop: Backdrop,
    /// What the camera does to the picture.
    pub photo: Photo,
}

/// Printed scale: angles, numerals and divisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// Angle of 0 %, degrees clockwise from twelve o'clock, −150 to −90.
    pub start: f32,
    /// Degrees from 0 % to 100 %, clockwise, 180–300.
    pub sweep: f32,
    /// Numerals at the major ticks, evenly spread from 0 % to 100 %.
    pub numerals: Vec<String>,
    /// Minor divisions in one major division, at least 1.
    pub minor: u32,
    /// Unit printed on the dial.
    pub unit: String,
}

/// Face of the gauge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dial {
    /// Paper or enamel colour.
    pub face: Rgb,
    /// Colour of ticks, numerals and texts.
    pub ink: Rgb,
    /// Outer radius of the ticks, in dial radii.
    pub tick_radius: f32,
    /// Length of the major ticks, in dial radii.
    pub tick_length: f32,
    /// Width of the major ticks, in dial radii.
    pub tick_width: f32,
    /// An arc joins the outer ends of the ticks.
    pub rim: bool,
    /// Height of the numerals, in dial radii.
    pub numeral_size: f32,
    /// Numerals turn with the scale rather than stand upright.
    pub numerals_turn: bool,
    /// Distance from the ticks to the middle of the numerals, in dial radii.
    pub numeral_gap: f32,
    /// Extra stroke around glyphs, as a share of their height.
    pub boldness: f32,
    /// Monospaced lettering instead of proportional.
    pub monospaced: bool,
    /// Position of the unit below (positive) or above the centre, in dial radii.
    pub unit_position: f32,
    /// Small print such as the accuracy class; may be empty.
    pub small_print: String,
    /// Coloured parts of the scale.
    pub zones: Vec<Zone>,
    /// Dirt and yellowing, 0 (new) to 1.
    pub dirt: f32,
    /// Seed of the dirt's pattern.
    pub dirt_seed: u64,
}

/// Coloured part of the scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Zone {
    /// First reading, percent of scale.
    pub from: f32,
    /// Last reading, percent of scale.
    pub to: f32,
    /// Colour.
    pub color: Rgb,
    /// Width of the band, in dial radii.
    pub width: f32,
}

/// Shape of the pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NeedleShape {
    /// Same width from hub to tip.
    Line,
    /// Narrows steadily towards the tip.
    Taper,
    /// Thin shaft with an arrow head.
    Arrow,
    /// Wide at a third of its length, pointed at both ends.
    Lance,
}

/// Pointer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Needle {
    /// Outline.
    pub shape: NeedleShape,
    /// Colour.
    pub color: Rgb,
    /// Hub to tip, in dial radii.
    pub length: f32,
    /// Width at the hub, in dial radii.
    pub width: f32,
    /// Length behind the hub, in dial radii; 0 for none.
    pub tail: f32,
    /// The tail ends in a round counterweight.
    pub counterweight: bool,
    /// Radius of the hub cap, in dial radii.
    pub hub: f32,
    /// Colour of the hub cap.
    pub hub_color: Rgb,
    /// Height above the dial, in dial radii: gives parallax and shadow.
    pub height: f32,
}

/// Housing around the dial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Base colour of the bezel.
    pub color: Rgb,
    /// Strength of the bright and dark streaks of metal, 0 (matt paint) to 1.
    pub gloss: f32,
    /// Width of the bezel, in dial radii.
    pub width: f32,
    /// Height of the bezel above the dial, in dial radii.
    pub depth: f32,
    /// Depth of the body behind the dial, in dial radii.
    pub body: f32,
    /// Width of a mounting flange with screws, in dial radii; 0 for none.
    pub flange: f32,
}

/// Where the camera stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Angle between the camera's axis and the dial's, degrees.
    pub tilt: f32,
    /// Direction of the tilt, degrees.
    pub tilt_axis: f32,
    /// Turn of the gauge in the picture, degrees clockwise.
    pub roll: f32,
    /// Camera to dial, in dial radii; small values give strong perspective.
    pub distance: f32,
    /// Radius of the whole gauge, in halves of the picture's side.
    pub radius: f32,
    /// Middle of the gauge, in halves of the picture's side from its middle.
    pub offset: [f32; 2],
}

/// Reflection on the glass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Glare {
    /// Middle, in dial radii.
    pub at: [f32; 2],
    /// Half width and half height, in dial radii.
    pub size: [f32; 2],
    /// Turn, degrees.
    pub turn: f32,
    /// Opacity in the middle, 0–1.
    pub strength: f32,
    /// A window with panes rather than a soft spot.
    pub window: bool,
}

/// Lamps, shadows and reflections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Light {
    /// Direction the light comes from, degrees clockwise from twelve o'clock.
    pub from: f32,
    /// Length of a shadow for an object of height 1.
    pub slant: f32,
    /// Opacity of shadows, 0–1.
    pub shadow: f32,
    /// Brightness change across the picture, 0–1.
    pub falloff: f32,
    /// Darkening of one side by something in the way, 0–1; 0 for none.
    pub shade: f32,
    /// Position of the shade's edge from the middle, in halves of the side.
    pub shade_edge: f32,
    /// Direction of the shade, degrees.
    pub shade_from: f32,
    /// Reflections on the glass.
    pub glares: Vec<Glare>,
}

/// What is behind the gauge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackdropStyle {
    /// Painted wall.
    Wall,
    /// Sheet metal with seams and screws.
    Panel,
    /// Pipes and cables.
    Pipes,
    /// Boxes and discs of any colour.
    Clutter,
    /// Far lights out of focus.
    Lights,
}

/// Backdrop and the seed of its layout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backdrop {
    /// Kind of surroundings.
    pub style: BackdropStyle,
    /// Colour at one side.
    pub first: Rgb,
    /// Colour at the other side.
    pub second: Rgb,
    /// Strength of the surface texture, 0–1.
    pub texture: f32,
    /// Blur, as a share of the picture's side.
    pub defocus: f32,
    /// Seed of the layout.
    pub seed: u64,
}

/// What the camera does to the picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Photo {
    /// Gain on all channels; 1 is neutral.
    pub exposure: f32,
    /// Contrast about middle grey; 1 is neutral.
    pub contrast: f32,
    /// Saturation; 1 is neutral, 0 is grey.
    pub saturation: f32,
    /// Gains on red, green and blue.
    pub white_balance: [f32; 3],
    /// Darkening of the corners, 0–1.
    pub vignette: f32,
    /// Standard deviation of the lens blur, as a share of the side.
    pub blur: f32,
    /// Length of the motion blur, as a share of the side; 0 for none.
    pub motion: f32,
    /// Direction of the motion, degrees.
    pub motion_angle: f32,
    /// Standard deviation of the sensor noise at middle grey, 0–255.
    pub noise: f32,
    /// Seed of the noise.
    pub noise_seed: u64,
    /// Quality of the camera's own JPEG compression, if any.
    pub jpeg: Option<u8>,
}

impl Scale {
    /// Angle of a reading, degrees clockwise from twelve o'clock.
    pub fn angle(&self, percent: f32) -> f32 {
        self.start + self.sweep * percent / 100.0
    }
}

impl Case {
    /// Radius of the bezel's outer edge, or the flange's, in dial radii.
    pub fn outer_radius(&self) -> f32 {
        1.0 + self.width + self.flange
    }
}

impl Photo {
    /// A perfect camera: nothing is changed.
    pub fn clean() -> Self {
        Self {
            exposure: 1.0,
            contrast: 1.0,
            saturation: 1.0,
            white_balance: [1.0; 3],
            vignette: 0.0,
            blur: 0.0,
            motion: 0.0,
            motion_angle: 0.0,
            noise: 0.0,
            noise_seed: 0,
            jpeg: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_follow_the_scale() {
        let scale = Scale {
            start: -135.0,
            sweep: 270.0,
            numerals: vec!["0".into(), "10".into()],
            minor: 1,
            unit: String::new(),
        };
        assert_eq!(scale.angle(0.0), -135.0);
        assert_eq!(scale.angle(50.0), 0.0);
        assert_eq!(scale.angle(100.0), 135.0);
    }
}
