//! A few shapes and words on an opaque picture.

use ab_glyph::{Font as _, FontRef, Glyph, ScaleFont as _, point};
use epaint_default_fonts::UBUNTU_LIGHT;
use image::{RgbImage, RgbaImage};
use tiny_skia::{
    FillRule, Paint, Path, PathBuilder, Pixmap, PremultipliedColorU8, Rect, Transform,
};

/// Red, green, blue.
#[derive(Clone, Copy)]
pub struct Color(pub u8, pub u8, pub u8);

/// A picture to draw on; lengths in pixels, y downwards.
pub struct Canvas {
    pixels: Pixmap,
    font: FontRef<'static>,
}

impl Canvas {
    /// A canvas of one colour; both sides are at least 1.
    pub fn new(width: u32, height: u32, color: Color) -> Self {
        let mut pixels =
            Pixmap::new(width.max(1), height.max(1)).expect("sides of pictures are small");
        pixels.fill(color.into());
        let font = FontRef::try_from_slice(UBUNTU_LIGHT).expect("the embedded font is whole");
        Self { pixels, font }
    }

    /// The canvas without its alpha channel, which is opaque throughout.
    pub fn into_image(self) -> RgbImage {
        let (width, height) = (self.pixels.width(), self.pixels.height());
        let image = RgbaImage::from_raw(width, height, self.pixels.take());
        image::DynamicImage::from(image.unwrap_or_default()).into_rgb8()
    }

    /// Copies `picture` to the place whose upper left corner is given.
    pub fn picture(&mut self, left: u32, top: u32, picture: &RgbImage) {
        for (x, y, pixel) in picture.enumerate_pixels() {
            let [red, green, blue] = pixel.0;
            self.set(left + x, top + y, Color(red, green, blue), 1.0);
        }
    }

    /// A filled rectangle.
    pub fn rect(&mut self, left: f32, top: f32, width: f32, height: f32, color: Color) {
        if let Some(rect) = Rect::from_xywh(left, top, width, height) {
            self.fill(&PathBuilder::from_rect(rect), color);
        }
    }

    /// A filled rectangle with round ends; one narrower than high becomes an
    /// upright ellipse.
    pub fn bar(&mut self, left: f32, top: f32, width: f32, height: f32, color: Color) {
        let radius = height / 2.0;
        if width < height {
            let oval = Rect::from_xywh(left, top, width, height).and_then(PathBuilder::from_oval);
            if let Some(oval) = oval {
                self.fill(&oval, color);
            }
            return;
        }
        self.disc(left + radius, top + radius, radius, color);
        self.disc(left + width - radius, top + radius, radius, color);
        self.rect(left + radius, top, width - height, height, color);
    }

    /// A filled circle.
    pub fn disc(&mut self, x: f32, y: f32, radius: f32, color: Color) {
        if let Some(circle) = PathBuilder::from_circle(x, y, radius) {
            self.fill(&circle, color);
        }
    }

    /// A filled triangle.
    pub fn triangle(&mut self, corners: [(f32, f32); 3], color: Color) {
        let mut path = PathBuilder::new();
        path.move_to(corners[0].0, corners[0].1);
        path.line_to(corners[1].0, corners[1].1);
        path.line_to(corners[2].0, corners[2].1);
        path.close();
        if let Some(path) = path.finish() {
            self.fill(&path, color);
        }
    }

    /// Writes `text` from `left` on its baseline and gives the place where it
    /// ends.
    pub fn text(&mut self, left: f32, baseline: f32, size: f32, color: Color, text: &str) -> f32 {
        let (glyphs, width) = self.lay_out(size, text);
        for mut glyph in glyphs {
            glyph.position.x += left;
            glyph.position.y = baseline;
            self.glyph(glyph, color);
        }
        left + width
    }

    /// Width of `text` in pixels.
    pub fn width_of(&self, size: f32, text: &str) -> f32 {
        self.lay_out(size, text).1
    }

    /// As much of `text` as fits into `width`, with an ellipsis where it is cut.
    pub fn fitted(&self, size: f32, text: &str, width: f32) -> String {
        if self.width_of(size, text) <= width {
            return text.into();
        }
        let mut kept: Vec<char> = text.chars().collect();
        loop {
            let cut: String = kept.iter().chain(&['…']).collect();
            if kept.pop().is_none() || self.width_of(size, &cut) <= width {
                return cut;
            }
        }
    }

    /// Glyphs from x = 0 on, and how far they reach.
    fn lay_out(&self, size: f32, text: &str) -> (Vec<Glyph>, f32) {
        let font = self.font.as_scaled(size);
        let (mut glyphs, mut x): (Vec<Glyph>, f32) = (Vec::new(), 0.0);
        for character in text.chars() {
            let id = font.glyph_id(character);
            if let Some(last) = glyphs.last() {
                x += font.kern(last.id, id);
            }
            glyphs.push(id.with_scale_and_position(size, point(x, 0.0)));
            x += font.h_advance(id);
        }
        (glyphs, x)
    }

    fn glyph(&mut self, glyph: Glyph, color: Color) {
        let Some(outline) = self.font.outline_glyph(glyph) else {
            return;
        };
        let corner = outline.px_bounds().min;
        outline.draw(|x, y, coverage| {
            let (x, y) = (corner.x + x as f32, corner.y + y as f32);
            if x >= 0.0 && y >= 0.0 {
                self.set(x as u32, y as u32, color, coverage);
            }
        });
    }

    fn fill(&mut self, path: &Path, color: Color) {
        let mut paint = Paint {
            anti_alias: true,
            ..Paint::default()
        };
        paint.set_color(color.into());
        self.pixels
            .fill_path(path, &paint, FillRule::Winding, Transform::identity(), None);
    }

    /// Lays `color` over a pixel, which stays opaque; outside there is none.
    fn set(&mut self, x: u32, y: u32, color: Color, coverage: f32) {
        let (width, height) = (self.pixels.width(), self.pixels.height());
        if x >= width || y >= height {
            return;
        }
        let pixel = &mut self.pixels.pixels_mut()[(y * width + x) as usize];
        let share = coverage.clamp(0.0, 1.0);
        let mix = |new: u8, old: u8| {
            (f32::from(new) * share + f32::from(old) * (1.0 - share)).round() as u8
        };
        let mixed = PremultipliedColorU8::from_rgba(
            mix(color.0, pixel.red()),
            mix(color.1, pixel.green()),
            mix(color.2, pixel.blue()),
            255,
        );
        *pixel = mixed.unwrap_or(*pixel);
    }
}

impl From<Color> for tiny_skia::Color {
    fn from(color: Color) -> Self {
        Self::from_rgba8(color.0, color.1, color.2, 255)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLACK: Color = Color(0, 0, 0);
    const WHITE: Color = Color(255, 255, 255);

    /// Pixels that are darker than the paper: left, top, right, bottom.
    fn extent(canvas: Canvas) -> Option<[u32; 4]> {
        let image = canvas.into_image();
        let dark = image
            .enumerate_pixels()
            .filter(|(.., pixel)| pixel.0[0] < 128);
        dark.map(|(x, y, _)| [x, y, x, y]).reduce(|a, b| {
            [
                a[0].min(b[0]),
                a[1].min(b[1]),
                a[2].max(b[2]),
                a[3].max(b[3]),
            ]
        })
    }

    #[test]
    fn shapes_fill_their_place() {
        let mut canvas = Canvas::new(40, 20, WHITE);
        canvas.bar(5.0, 4.0, 30.0, 10.0, BLACK);
        assert_eq!(extent(canvas), Some([5, 4, 34, 13]));
        let mut canvas = Canvas::new(40, 20, WHITE);
        canvas.rect(30.0, 10.0, 100.0, 100.0, BLACK);
        assert_eq!(extent(canvas), Some([30, 10, 39, 19]));
    }

    #[test]
    fn text_stands_on_its_baseline_and_keeps_to_its_width() {
        let mut canvas = Canvas::new(200, 60, WHITE);
        let width = canvas.width_of(30.0, "HxE");
        assert_eq!(canvas.text(10.0, 40.0, 30.0, BLACK, "HxE"), 10.0 + width);
        let [left, top, right, bottom] = extent(canvas).unwrap();
        assert!(
            left >= 10 && (right as f32) < 10.0 + width && bottom == 39,
            "{left} {right} {bottom}"
        );
        assert!((15..25).contains(&top), "{top}");
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        let canvas = Canvas::new(1, 1, WHITE);
        assert_eq!(canvas.fitted(17.0, "ripe", 100.0), "ripe");
        let cut = canvas.fitted(17.0, "a very long name of a bin", 100.0);
        assert!(
            cut.ends_with('…') && canvas.width_of(17.0, &cut) <= 100.0,
            "{cut}"
        );
    }
}
