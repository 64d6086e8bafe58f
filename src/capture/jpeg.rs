//! JPEG pictures out of an endless stream of bytes.
//!
//! Cameras, ffmpeg and web streams all put whole JPEG files one after the
//! other, with or without headers between them. The stream is cut at the
//! markers (ITU-T T.81, annex B): segments are stepped over by their length,
//! so a thumbnail inside one is not taken for a picture, and a picture that
//! breaks off is dropped as soon as the next one begins.

use std::io::{self, Read};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::decode::{self, MAX_SIDE};
use crate::frame::{Frame, PixelFormat};

/// The longest picture that is waited for, in bytes.
const MAX_BYTES: usize = 32 << 20;
/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;

const START: u8 = 0xD8;
const END: u8 = 0xD9;
const SCAN: u8 = 0xDA;

/// Cuts a stream of bytes into JPEG pictures.
pub struct JpegStream<R> {
    input: R,
    /// Bytes read and not yet given out lie in `..filled`.
    bytes: Vec<u8>,
    filled: usize,
    /// Where the picture at hand begins.
    start: usize,
    /// How far it has been looked through.
    at: usize,
    place: Place,
    torn: u64,
}

/// Where in a picture the stream stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Outside,
    Segments,
    CodedData,
}

enum Step {
    Whole(Range<usize>),
    Onwards,
    MoreBytes,
}

impl<R: Read> JpegStream<R> {
    /// A stream that reads from `input`.
    pub fn new(input: R) -> Self {
        Self {
            input,
            bytes: Vec::new(),
            filled: 0,
            start: 0,
            at: 0,
            place: Place::Outside,
            torn: 0,
        }
    }

    /// The next whole picture, or `None` at the end of the stream.
    ///
    /// # Errors
    /// What reading gives.
    pub fn next_picture(&mut self) -> io::Result<Option<&[u8]>> {
        self.forget_given();
        loop {
            match self.step() {
                Step::Whole(range) => return Ok(Some(&self.bytes[range])),
                Step::Onwards => {}
                Step::MoreBytes => {
                    if self.read_more()? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Pictures that broke off so far.
    pub fn torn(&self) -> u64 {
        self.torn
    }

    /// Moves what is still of use to the front.
    fn forget_given(&mut self) {
        let from = match self.place {
            Place::Outside => self.at,
            _ => self.start,
        };
        self.bytes.copy_within(from..self.filled, 0);
        self.filled -= from;
        self.at -= from;
        self.start = 0;
    }

    fn read_more(&mut self) -> io::Result<usize> {
        if self.place == Place::Outside {
            self.forget_given();
        }
        if self.bytes.len() < self.filled + CHUNK {
            self.bytes.resize(self.filled + CHUNK, 0);
        }
        loop {
            match self.input.read(&mut self.bytes[self.filled..]) {
                Ok(count) => {
                    self.filled += count;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn step(&mut self) -> Step {
        if self.place != Place::Outside && self.at - self.start > MAX_BYTES {
            self.tear();
        }
        match self.place {
            Place::Outside => self.find_start(),
            Place::Segments => self.skip_segment(),
            Place::CodedData => self.skip_coded_data(),
        }
    }

    /// Gives the picture at hand up.
    fn tear(&mut self) {
        self.torn += 1;
        self.place = Place::Outside;
        self.at = self.at.min(self.filled);
    }

    fn begin(&mut self, start: usize) -> Step {
        self.start = start;
        self.at = start + 2;
        self.place = Place::Segments;
        Step::Onwards
    }

    fn find_start(&mut self) -> Step {
        match self.next_ff() {
            None => {
                self.at = self.filled;
                Step::MoreBytes
            }
            Some(ff) => match self.byte(ff + 1) {
                Some(START) => self.begin(ff),
                Some(_) => self.go_to(ff + 1),
                None => {
                    self.at = ff;
                    Step::MoreBytes
                }
            },
        }
    }

    fn skip_segment(&mut self) -> Step {
        let (Some(ff), Some(marker)) = (self.byte(self.at), self.byte(self.at + 1)) else {
            return Step::MoreBytes;
        };
        match (ff, marker) {
            (0xFF, 0xFF) => self.go_to(self.at + 1),
            (0xFF, START) => {
                self.torn += 1;
                self.begin(self.at)
            }
            (0xFF, END) => self.finish(self.at + 2),
            // Markers without a length: restarts and the like.
            (0xFF, 0x01 | 0xD0..=0xD7) => self.go_to(self.at + 2),
            (0xFF, 0x02..) => match (self.byte(self.at + 2), self.byte(self.at + 3)) {
                (Some(high), Some(low)) => {
                    self.skip_length(marker, u16::from_be_bytes([high, low]))
                }
                _ => Step::MoreBytes,
            },
            _ => {
                self.tear();
                Step::Onwards
            }
        }
    }

    fn skip_length(&mut self, marker: u8, length: u16) -> Step {
        if length < 2 {
            self.tear();
            return Step::Onwards;
        }
        if marker == SCAN {
            self.place = Place::CodedData;
        }
        self.go_to(self.at + 2 + usize::from(length))
    }

    fn skip_coded_data(&mut self) -> Step {
        match self.next_ff() {
            None => {
                self.at = self.at.max(self.filled);
                Step::MoreBytes
            }
            Some(ff) => match self.byte(ff + 1) {
                Some(0x00 | 0xD0..=0xD7) => self.go_to(ff + 2),
                Some(0xFF) => self.go_to(ff + 1),
                Some(_) => {
                    self.place = Place::Segments;
                    self.go_to(ff)
                }
                None => {
                    self.at = ff;
                    Step::MoreBytes
                }
            },
        }
    }

    fn finish(&mut self, end: usize) -> Step {
        self.at = end;
        self.place = Place::Outside;
        Step::Whole(self.start..end)
    }

    fn go_to(&mut self, at: usize) -> Step {
        self.at = at;
        Step::Onwards
    }

    fn next_ff(&self) -> Option<usize> {
        let rest = self.bytes[..self.filled].get(self.at..)?;
        let offset = rest.iter().position(|&byte| byte == 0xFF)?;
        Some(self.at + offset)
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes[..self.filled].get(at).copied()
    }
}

/// Decodes a JPEG picture into the memory of `pixels`. Grey becomes RGB;
/// damage that the decoder notices is an error, never a half grey picture.
///
/// # Errors
/// What the decoder says.
pub fn decode(bytes: &[u8], mut pixels: Vec<u8>) -> Result<Frame, String> {
    let side = MAX_SIDE as usize;
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(side)
        .set_max_height(side)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    // The bytes are anybody's: a decoder that trips must not end the stream.
    let size = catch_unwind(AssertUnwindSafe(|| -> Result<_, String> {
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        decoder
            .decode_headers()
            .map_err(|error| error.to_string())?;
        let (Some(size), Some(length)) = (decoder.dimensions(), decoder.output_buffer_size())
        else {
            return Err("no size in its header".into());
        };
        if length as u64 > decode::MAX_BYTES {
            let (width, height) = size;
            let most = decode::MAX_BYTES >> 20;
            return Err(format!(
                "{width}×{height} pixels, more than {most} MiB of them"
            ));
        }
        pixels.resize(length, 0);
        decoder
            .decode_into(&mut pixels)
            .map_err(|error| error.to_string())?;
        Ok(size)
    }));
    let (width, height) = size.map_err(|_| "the decoder gave up on it")??;
    Frame::new(width as u32, height as u32, PixelFormat::Rgb, pixels)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::{GrayImage, ImageBuffer, RgbImage};
    use proptest::prelude::*;

    fn picture(seed: u32) -> Vec<u8> {
        let image = RgbImage::from_fn(40 + seed, 24, |x, y| {
            image::Rgb([(x * 5 + seed * 40) as u8, (y * 9) as u8, (x * y) as u8])
        });
        let mut bytes = Vec::new();
        image
            .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 80))
            .unwrap();
        bytes
    }

    /// Gives a few bytes at a time, as pipes and sockets do.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(into.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn cut(bytes: &[u8], step: usize) -> (Vec<Vec<u8>>, u64) {
        let mut stream = JpegStream::new(Dribble(bytes, step));
        let mut pictures = Vec::new();
        while let Some(picture) = stream.next_picture().unwrap() {
            pictures.push(picture.to_vec());
        }
        (pictures, stream.torn())
    }

    #[test]
    fn pictures_come_whole_whatever_lies_between() {
        let pictures: Vec<_> = (0..4).map(picture).collect();
        let header = b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n".to_vec();
        let stream = [
            b"garbage \xFF\xFF\x00\xFF".to_vec(),
            pictures[0].clone(),
            pictures[1].clone(),
            header,
            pictures[2].clone(),
            vec![0xFF; 7],
            pictures[3].clone(),
        ]
        .concat();
        for step in [1, 2, 3, 1000, 1 << 20] {
            assert_eq!(cut(&stream, step), (pictures.clone(), 0), "step {step}");
        }
    }

    #[test]
    fn a_torn_picture_is_dropped_and_the_next_is_whole() {
        let (first, second) = (picture(1), picture(2));
        let torn_at = |keep: usize| cut(&[&first[..keep], &second, &first].concat(), 50);
        for missing in [2, 9, 60] {
            let whole = vec![second.clone(), first.clone()];
            assert_eq!(torn_at(first.len() - missing), (whole, 1), "{missing}");
        }
        // A length that lost its segment may swallow the picture behind it.
        for keep in [3, 25, first.len() / 2] {
            let (pictures, _) = torn_at(keep);
            assert!(pictures.last() == Some(&first), "{keep}");
        }
    }

    #[test]
    fn a_thumbnail_inside_a_segment_is_not_a_picture() {
        let (outer, thumbnail) = (picture(1), picture(2));
        let mut segment = vec![0xFF, 0xE1];
        segment.extend(u16::try_from(thumbnail.len() + 2).unwrap().to_be_bytes());
        segment.extend(&thumbnail);
        let whole = [&outer[..2], &segment, &outer[2..]].concat();
        assert_eq!(cut(&whole, 10), (vec![whole.clone()], 0));
    }

    #[test]
    fn colour_and_grey_become_rgb_in_the_memory_given() {
        let frame = decode(&picture(3), Vec::new()).unwrap();
        let expected = image::load_from_memory(&picture(3)).unwrap().into_rgb8();
        assert_eq!((frame.width(), frame.height()), (43, 24));
        assert_eq!(frame.pixels(), expected.as_raw().as_slice());
        let grey: GrayImage = ImageBuffer::from_fn(9, 7, |x, _| image::Luma([x as u8 * 20]));
        let mut bytes = Vec::new();
        grey.write_with_encoder(JpegEncoder::new(&mut bytes))
            .unwrap();
        let memory = Vec::with_capacity(1 << 16);
        let place = memory.as_ptr();
        let frame = decode(&bytes, memory).unwrap();
        assert_eq!(frame.pixels().as_ptr(), place);
        assert_eq!(frame.pixels().len(), 9 * 7 * 3);
    }

    #[test]
    fn a_header_alone_takes_no_memory() {
        let mut bytes = picture(1);
        let frame = bytes
            .windows(2)
            .position(|pair| pair == [0xFF, 0xC0])
            .unwrap();
        // Height and width follow the marker, the length and the precision.
        bytes[frame + 5..][..4].copy_from_slice(&[0x40, 0, 0x40, 0]);
        let error = decode(&bytes, Vec::new()).unwrap_err();
        assert!(error.contains("16384×16384 pixels"), "{error}");
    }

    #[test]
    fn a_picture_that_breaks_off_is_refused() {
        let whole = picture(1);
        assert!(decode(&whole[..whole.len() / 2], Vec::new()).is_err());
        assert!(decode(&[], Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_stumble(bytes in prop::collection::vec(prop_oneof![Just(0xFF_u8), any::<u8>(), 0xD0..0xE2_u8], 0..400), step in 1..64_usize) {
            let (pictures, _) = cut(&bytes, step);
            prop_assert!(pictures.iter().all(|p| p.starts_with(&[0xFF, START]) && p.ends_with(&[0xFF, END])));
            for picture in pictures {
                let _ = decode(&picture, Vec::new());
            }
        }
    }
}
