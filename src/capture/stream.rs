//! Frames one after the other on a pipe or socket: plain pixels of a known
//! size, or binary PPM/PGM pictures that state theirs.

use std::io::{self, BufRead, Read};

use super::{Encoding, Shot, SourceError};
use crate::decode::{MAX_BYTES, MAX_SIDE};
use crate::frame::PixelFormat;

/// Reads one frame of plain pixels into `buffer`.
///
/// # Errors
/// [`SourceError::End`] at the end, [`SourceError::Lost`] when it comes in the
/// middle of a frame or reading fails.
pub fn read_pixels(
    input: &mut impl Read,
    (width, height): (u32, u32),
    format: PixelFormat,
    mut buffer: Vec<u8>,
) -> Result<Shot, SourceError> {
    buffer.resize(
        width as usize * height as usize * format.bytes_per_pixel(),
        0,
    );
    // The first byte tells when the frame came, and whether there is one.
    if read_first(input, &mut buffer[..1])? == 0 {
        return Err(SourceError::End);
    }
    input.read_exact(&mut buffer[1..]).map_err(lost)?;
    Ok(Shot::now(
        buffer,
        Encoding::Pixels {
            width,
            height,
            format,
        },
    ))
}

/// Reads one binary PPM (`P6`) or PGM (`P5`) picture with 8 bits a sample.
///
/// # Errors
/// As [`read_pixels`]; [`SourceError::Lost`] also for any other format, after
/// which nobody knows where the next picture begins.
pub fn read_ppm(input: &mut impl BufRead, buffer: Vec<u8>) -> Result<Shot, SourceError> {
    let format = match token(input)?.as_str() {
        "" => return Err(SourceError::End),
        "P6" => PixelFormat::Rgb,
        "P5" => PixelFormat::Grey,
        other => return Err(not_ppm(&format!("begins with {other:?}"))),
    };
    let mut number = || -> Result<u32, SourceError> {
        let text = token(input)?;
        text.parse()
            .map_err(|_| not_ppm(&format!("{text:?} is no number")))
    };
    let (width, height, levels) = (number()?, number()?, number()?);
    let sides = 1..=MAX_SIDE;
    let bytes = u64::from(width) * u64::from(height) * 3;
    if !sides.contains(&width) || !sides.contains(&height) || bytes > MAX_BYTES || levels != 255 {
        return Err(not_ppm(&format!("{width}×{height} with {levels} levels")));
    }
    match read_pixels(input, (width, height), format, buffer) {
        Err(SourceError::End) => Err(lost(io::ErrorKind::UnexpectedEof.into())),
        result => result,
    }
}

/// What failed reading means: the other side is gone.
pub fn lost(error: io::Error) -> SourceError {
    SourceError::Lost(match error.kind() {
        io::ErrorKind::UnexpectedEof => "the stream ended in the middle of a frame".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no bytes came in time".into(),
        _ => error.to_string(),
    })
}

fn read_first(input: &mut impl Read, byte: &mut [u8]) -> Result<usize, SourceError> {
    loop {
        match input.read(byte) {
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(lost(error)),
        }
    }
}

/// A word of a PPM header and the one byte of space behind it; empty at the
/// end of the stream. Comments run to the end of their line.
fn token(input: &mut impl BufRead) -> Result<String, SourceError> {
    let mut word = String::new();
    let (mut comment, mut byte) = (false, [0]);
    while word.len() < 16 && read_first(input, &mut byte)? == 1 {
        match byte[0] {
            b'\n' if comment => comment = false,
            _ if comment => {}
            b'#' if word.is_empty() => comment = true,
            space if space.is_ascii_whitespace() => {
                if !word.is_empty() {
                    return Ok(word);
                }
            }
            other => word.push(other.into()),
        }
    }
    match word.len() {
        0 => Ok(word),
        _ => Err(not_ppm("its header breaks off")),
    }
}

fn not_ppm(what: &str) -> SourceError {
    SourceError::Lost(format!("not a stream of 8-bit PPM pictures: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(mut stream: &[u8]) -> (Vec<(u32, u32)>, SourceError) {
        let mut sizes = Vec::new();
        loop {
            match read_ppm(&mut stream, Vec::new()) {
                Ok(Shot {
                    encoding: Encoding::Pixels { width, height, .. },
                    ..
                }) => sizes.push((width, height)),
                Ok(shot) => panic!("{shot:?}"),
                Err(error) => return (sizes, error),
            }
        }
    }

    #[test]
    fn pictures_may_change_their_size() {
        let stream = b"P6\n2 1\n255\nabcdefP5 # grey\n# twice\n3 2 255\n123456P6 1 1 255 xyz";
        assert_eq!(
            sizes(stream),
            (vec![(2, 1), (3, 2), (1, 1)], SourceError::End)
        );
    }

    #[test]
    fn what_is_no_picture_is_lost() {
        for stream in [
            &b"P6\n2 1\n255\nabc"[..],
            b"P3\n1 1\n255\n1 2 3\n",
            b"P6\n0 1\n255\n",
            b"P6\n99999 99999\n255\n",
            b"P6\n1 1\n65535\nabcdef",
            b"P6\n1 x\n255\nabc",
            b"P6\n1",
            b"\xFF\xD8\xFF\xE0aaaaaaaaaaaaaaaaaaaaaaaaa",
        ] {
            let (pictures, error) = sizes(stream);
            assert!(
                pictures.is_empty() && matches!(error, SourceError::Lost(_)),
                "{stream:?}: {error}"
            );
        }
    }

    #[test]
    fn raw_frames_end_between_frames_only() {
        let mut stream = &b"abcdefghi"[..];
        let mut read = || read_pixels(&mut stream, (2, 1), PixelFormat::Rgb, Vec::new());
        assert_eq!(read().unwrap().bytes, b"abcdef");
        assert!(matches!(read(), Err(SourceError::Lost(_))));
        assert_eq!(read().unwrap_err(), SourceError::End);
    }
}
