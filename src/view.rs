//! What of a picture is looked at, and which way up.
//!
//! Nothing is copied: a [`View`] names a part of a frame, and the resampler
//! reads it from there ([`crate::preprocess::Preprocessor::fit_view`]). Places
//! are given in *upright* pixels, those of the picture once it is turned.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::frame::{Frame, PixelFormat};

/// How every picture of a camera is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Framing {
    /// What makes the picture upright.
    pub turn: Turn,
    /// The part that counts; the whole picture without one.
    pub roi: Option<Roi>,
}

/// One of the eight ways to turn and mirror a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Rows of the frame are columns of the upright picture.
    swap: bool,
    /// The frame is read from right to left.
    reverse_x: bool,
    /// The frame is read from bottom to top.
    reverse_y: bool,
}

/// Quarter turns, clockwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rotation {
    /// As it comes.
    #[default]
    None,
    /// 90° clockwise.
    Right,
    /// Upside down.
    Half,
    /// 90° counter-clockwise.
    Left,
}

/// Mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    /// Left becomes right.
    Horizontal,
    /// Top becomes bottom.
    Vertical,
}

/// A region of interest, in pixels or in shares of the upright picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roi {
    /// Left, top, width, height.
    sides: [Length; 4],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Length {
    Pixels(u32),
    /// 0 to 1.
    Share(f64),
}

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Columns to its left.
    pub left: u32,
    /// Rows above it.
    pub top: u32,
    /// Its width, at least 1.
    pub width: u32,
    /// Its height, at least 1.
    pub height: u32,
}

/// A part of a frame, the right way up.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    frame: &'a Frame,
    turn: Turn,
    /// In upright pixels.
    region: Region,
}

/// A region that is not within the picture.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the region {region} leaves the upright picture of {width}×{height} pixels")]
pub struct RegionError {
    region: Region,
    width: u32,
    height: u32,
}

impl Framing {
    /// What of `frame` counts.
    ///
    /// # Errors
    /// [`RegionError`] when the region of interest leaves the picture.
    pub fn view<'a>(&self, frame: &'a Frame) -> Result<View<'a>, RegionError> {
        let whole = View::turned(frame, self.turn);
        match self.roi {
            None => Ok(whole),
            Some(roi) => whole.part(roi.region(whole.width(), whole.height())),
        }
    }
}

impl Turn {
    /// Rotates first, then mirrors.
    pub fn new(rotation: Rotation, flip: Option<Flip>) -> Self {
        let (swap, mut reverse_x, mut reverse_y) = match rotation {
            Rotation::None => (false, false, false),
            Rotation::Right => (true, false, true),
            Rotation::Half => (false, true, true),
            Rotation::Left => (true, true, false),
        };
        match (flip, swap) {
            (None, _) => {}
            (Some(Flip::Horizontal), false) | (Some(Flip::Vertical), true) => {
                reverse_x = !reverse_x;
            }
            (Some(Flip::Vertical), false) | (Some(Flip::Horizontal), true) => {
                reverse_y = !reverse_y;
            }
        }
        Self {
            swap,
            reverse_x,
            reverse_y,
        }
    }

    /// Whether the picture stays as it comes.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// Upright width and height of a frame, and the other way round.
    pub fn size(self, width: u32, height: u32) -> (u32, u32) {
        self.swapped(width, height)
    }

    /// A pair of horizontal and vertical, for the other side.
    pub(crate) fn swapped<T>(self, x: T, y: T) -> (T, T) {
        if self.swap { (y, x) } else { (x, y) }
    }

    /// Whether columns and rows of the frame run against the upright picture.
    pub(crate) fn reversed(self) -> (bool, bool) {
        (self.reverse_x, self.reverse_y)
    }

    /// Where the upright pixel (`x`, `y`) lies in a frame of `width × height`.
    pub(crate) fn source(self, x: u32, y: u32, width: u32, height: u32) -> (u32, u32) {
        let (x, y) = self.swapped(x, y);
        let x = if self.reverse_x { width - 1 - x } else { x };
        let y = if self.reverse_y { height - 1 - y } else { y };
        (x, y)
    }
}

impl Roi {
    /// The region within an upright picture of `width × height`. Edges that
    /// are given as shares are rounded to whole pixels.
    pub fn region(&self, width: u32, height: u32) -> Region {
        let [left, top, across, down] = self.sides;
        let (left, width) = span(left, across, width);
        let (top, height) = span(top, down, height);
        Region {
            left,
            top,
            width,
            height,
        }
    }
}

/// Start and length in pixels, of `whole`.
fn span(start: Length, length: Length, whole: u32) -> (u32, u32) {
    let pixels = |share: f64| (share * f64::from(whole)).round() as u32;
    let first = match start {
        Length::Pixels(pixels) => pixels,
        Length::Share(share) => pixels(share),
    };
    let length = match (start, length) {
        (_, Length::Pixels(pixels)) => pixels,
        // The far edge is rounded, so that neighbours share it.
        (Length::Share(start), Length::Share(share)) => pixels(start + share) - first,
        (Length::Pixels(_), Length::Share(share)) => pixels(share),
    };
    (first, length.max(1))
}

impl FromStr for Roi {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected LEFT,TOP,WIDTH,HEIGHT, each in pixels (120), as a fraction (0.25) or in percent (25%)";
        let sides: Vec<Length> = text
            .split(',')
            .map(|side| side.trim().parse())
            .collect::<Result<_, ()>>()
            .map_err(|()| wrong())?;
        let sides: [Length; 4] = sides.try_into().map_err(|_| wrong())?;
        let beyond = |start: usize| match (sides[start], sides[start + 2]) {
            (Length::Share(start), Length::Share(length)) => start + length > 1.0 + 1e-9,
            _ => false,
        };
        if beyond(0) || beyond(1) {
            return Err("the region leaves the picture".into());
        }
        let is_empty = |side| matches!(side, Length::Pixels(0)) || side == Length::Share(0.0);
        if is_empty(sides[2]) || is_empty(sides[3]) {
            return Err("the region is empty".into());
        }
        Ok(Self { sides })
    }
}

impl FromStr for Length {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Pixels).map_err(|_| ());
        }
        let share: f64 = match text.strip_suffix('%') {
            Some(percent) => percent.parse::<f64>().map_err(|_| ())? / 100.0,
            None => text.parse().map_err(|_| ())?,
        };
        (0.0..=1.0)
            .contains(&share)
            .then_some(Self::Share(share))
            .ok_or(())
    }
}

impl FromStr for Rotation {
    type Err = String;

    fn from_str(degrees: &str) -> Result<Self, String> {
        match degrees {
            "0" => Ok(Self::None),
            "90" => Ok(Self::Right),
            "180" => Ok(Self::Half),
            "270" => Ok(Self::Left),
            _ => Err("expected 0, 90, 180 or 270 (degrees clockwise)".into()),
        }
    }
}

impl FromStr for Flip {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "horizontal" => Ok(Self::Horizontal),
            "vertical" => Ok(Self::Vertical),
            _ => Err("expected horizontal or vertical".into()),
        }
    }
}

impl Region {
    /// A whole picture.
    pub fn whole(width: u32, height: u32) -> Self {
        Self {
            left: 0,
            top: 0,
            width,
            height,
        }
    }

    /// Left, top, width, height.
    pub fn to_array(self) -> [u32; 4] {
        [self.left, self.top, self.width, self.height]
    }

    fn is_within(self, width: u32, height: u32) -> bool {
        let fits = |start: u32, length: u32, whole: u32| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= whole)
        };
        fits(self.left, self.width, width) && fits(self.top, self.height, height)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [left, top, width, height] = self.to_array();
        write!(f, "{left},{top},{width},{height}")
    }
}

impl<'a> View<'a> {
    /// All of `frame`, as it is.
    pub fn whole(frame: &'a Frame) -> Self {
        Self::turned(frame, Turn::default())
    }

    /// All of `frame`, turned.
    pub fn turned(frame: &'a Frame, turn: Turn) -> Self {
        let (width, height) = turn.size(frame.width(), frame.height());
        Self {
            frame,
            turn,
            region: Region::whole(width, height),
        }
    }

    /// The part that covers `region` of the whole upright picture, whatever
    /// part this view shows.
    ///
    /// # Errors
    /// [`RegionError`] when `region` leaves the picture.
    pub fn part(&self, region: Region) -> Result<Self, RegionError> {
        let (width, height) = self.turn.size(self.frame.width(), self.frame.height());
        if !region.is_within(width, height) {
            return Err(RegionError {
                region,
                width,
                height,
            });
        }
        Ok(Self { region, ..*self })
    }

    /// Width of the part, upright.
    pub fn width(&self) -> u32 {
        self.region.width
    }

    /// Height of the part, upright.
    pub fn height(&self) -> u32 {
        self.region.height
    }

    /// The part, in upright pixels.
    pub fn region(&self) -> Region {
        self.region
    }

    /// The picture that is looked at.
    pub fn frame(&self) -> &'a Frame {
        self.frame
    }

    /// What makes it upright.
    pub fn turn(&self) -> Turn {
        self.turn
    }

    /// The pixel at (`x`, `y`) of the part, RGB.
    ///
    /// # Panics
    /// When there is no such pixel.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        let (left, top) = (self.region.left + x, self.region.top + y);
        let (width, height) = (self.frame.width(), self.frame.height());
        let (x, y) = self.turn.source(left, top, width, height);
        let at = (y as usize * width as usize + x as usize) * 3;
        let pixels = self.frame.pixels();
        [pixels[at], pixels[at + 1], pixels[at + 2]]
    }

    /// The part in pixels of the frame as it came.
    pub(crate) fn source_region(&self) -> Region {
        let Region {
            left,
            top,
            width,
            height,
        } = self.region;
        let (frame_width, frame_height) = (self.frame.width(), self.frame.height());
        let (left, top) = self.turn.swapped(left, top);
        let (width, height) = self.turn.swapped(width, height);
        let (reverse_x, reverse_y) = self.turn.reversed();
        Region {
            left: match reverse_x {
                true => frame_width - left - width,
                false => left,
            },
            top: match reverse_y {
                true => frame_height - top - height,
                false => top,
            },
            width,
            height,
        }
    }

    /// A frame of its own with the pixels of the part.
    pub fn to_frame(&self) -> Frame {
        let (width, height) = (self.width(), self.height());
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let pixels = places.flat_map(|(x, y)| self.pixel(x, y)).collect();
        match Frame::new(width, height, PixelFormat::Rgb, pixels) {
            Ok(frame) => frame,
            Err(_) => unreachable!("a part has at least one pixel, and all of them were given"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(width: u32, height: u32, text: &str) -> Frame {
        Frame::new(width, height, PixelFormat::Grey, text.into()).unwrap()
    }

    fn read(view: &View<'_>) -> String {
        let frame = view.to_frame();
        let rows = frame.pixels().chunks(3 * frame.width() as usize);
        let rows: Vec<String> = rows
            .map(|row| row.iter().step_by(3).map(|&level| level as char).collect())
            .collect();
        rows.join("/")
    }

    #[test]
    fn the_eight_turns_of_a_picture() {
        let frame = letters(3, 2, "abcdef");
        for (degrees, flip, expected) in [
            ("0", None, "abc/def"),
            ("90", None, "da/eb/fc"),
            ("180", None, "fed/cba"),
            ("270", None, "cf/be/ad"),
            ("0", Some(Flip::Horizontal), "cba/fed"),
            ("0", Some(Flip::Vertical), "def/abc"),
            ("90", Some(Flip::Horizontal), "ad/be/cf"),
            ("90", Some(Flip::Vertical), "fc/eb/da"),
        ] {
            let turn = Turn::new(degrees.parse().unwrap(), flip);
            assert_eq!(read(&View::turned(&frame, turn)), expected);
        }
    }

    #[test]
    fn a_part_is_the_same_pixels_wherever_they_lie() {
        let frame = letters(4, 3, "abcdefghijkl");
        for rotation in [
            Rotation::None,
            Rotation::Right,
            Rotation::Half,
            Rotation::Left,
        ] {
            for flip in [None, Some(Flip::Horizontal), Some(Flip::Vertical)] {
                let turn = Turn::new(rotation, flip);
                let upright = View::turned(&frame, turn).to_frame();
                let region = Region {
                    left: 1,
                    top: 0,
                    width: 2,
                    height: 2,
                };
                let direct = View::turned(&frame, turn).part(region).unwrap();
                assert_eq!(
                    direct.to_frame(),
                    View::whole(&upright).part(region).unwrap().to_frame()
                );
                let source = View::whole(&frame).part(direct.source_region()).unwrap();
                let mut pixels = [read(&direct), read(&source)].map(String::into_bytes);
                pixels.iter_mut().for_each(|pixels| pixels.sort_unstable());
                assert_eq!(pixels[0], pixels[1]);
            }
        }
    }

    #[test]
    fn regions_come_in_pixels_fractions_and_percent() {
        let region = |text: &str| text.parse::<Roi>().unwrap().region(640, 480).to_array();
        assert_eq!(region("10,20,30,40"), [10, 20, 30, 40]);
        assert_eq!(region("0.5,25%,0.5,75%"), [320, 120, 320, 360]);
        assert_eq!(region("0, 0, 100%, 1.0"), [0, 0, 640, 480]);
        for (text, reason) in [
            ("1,2,3", "expected LEFT"),
            ("a,2,3,4", "expected LEFT"),
            ("-1,2,3,4", "expected LEFT"),
            ("0,0,101%,1", "expected LEFT"),
            ("0,0,NaN,1", "expected LEFT"),
            ("0,0,0,5", "empty"),
            ("0.5,0.0,0.6,1.0", "leaves the picture"),
        ] {
            let error = text.parse::<Roi>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_region_that_leaves_the_picture_is_named() {
        let frame = letters(3, 2, "abcdef");
        let roi = |text: &str| Framing {
            turn: Turn::new(Rotation::Right, None),
            roi: Some(text.parse().unwrap()),
        };
        assert_eq!(read(&roi("0,0,2,3").view(&frame).unwrap()), "da/eb/fc");
        let error = roi("0,0,3,2").view(&frame).unwrap_err().to_string();
        assert!(error.contains("0,0,3,2 leaves the upright picture of 2×3"));
        assert!(roi("1,0,4294967295,1").view(&frame).is_err());
    }
}
