//! Times an int8 encoder and prints one line for each line read from stdin:
//! the milliseconds of as many runs as that line says. At the end of stdin,
//! the embedding of the image. Made for `compare.py`, which takes turns
//! between engines.
//!
//! `encoder ENCODER.onnx SIZE DIM IMAGE.f32`

use std::io::{BufRead, stdin};
use std::time::Instant;

use numclip::encode::Model as _;
use numclip::encode::int8::Int8Model;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, size, dim, image] = arguments.as_slice() else {
        return Err("expected: encoder ENCODER.onnx SIZE DIM IMAGE.f32".into());
    };
    let model = Int8Model::from_bytes(file, &std::fs::read(file)?, size.parse()?, dim.parse()?)?;
    let mut session = model.session()?;
    let image: Vec<f32> = std::fs::read(image)?
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect();
    eprintln!("{}", model.kernels().unwrap_or_default());
    for line in stdin().lock().lines() {
        let mut times = Vec::new();
        for _ in 0..line?.trim().parse::<usize>()? {
            let start = Instant::now();
            session.encode(&image)?;
            times.push(format!("{:.4}", 1e3 * start.elapsed().as_secs_f64()));
        }
        println!("{}", times.join(" "));
    }
    let embedding: Vec<String> = session.encode(&image)?.iter().map(f32::to_string).collect();
    println!("{}", embedding.join(" "));
    Ok(())
}
