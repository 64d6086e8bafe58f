//! Compares the towers of a CLIP checkpoint with what another program made of them.
//!
//! ```text
//! cargo run --release -p numclip-trainer --example compare_clip -- ViT-B-16.pt expected.safetensors
//! ```
//!
//! The second file holds `images` `[N, 3, S, S]`, `image_features` `[N, D]`, `tokens` `[M, L]` (int64)
//! and `text_features` `[M, D]`, none of them normalised.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use numclip_trainer::checkpoint::Checkpoint;
use numclip_trainer::clip::{ClipFile, Hints};
use numclip_trainer::model::ImageEncoder;
use numclip_trainer::text::TextTower;

const END_OF_TEXT: u16 = 49_407;

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = std::env::args().skip(1).map(PathBuf::from);
    let (Some(model), Some(expected)) = (files.next(), files.next()) else {
        return Err(
            "expected two files: a CLIP checkpoint and the features to compare with".into(),
        );
    };
    let expected = Checkpoint::open(&expected)?;
    let device = Device::flex();
    let start = Instant::now();
    let file = ClipFile::open(&model, &Hints::default())?;
    let images = images(&expected, &device)?;
    let encoder = ImageEncoder::clip(&file, images.dims()[2], &device)?;
    println!("image tower read in {:.2?}", start.elapsed());
    let start = Instant::now();
    let features = encoder.forward(images).into_data();
    println!("images embedded in {:.2?}", start.elapsed());
    compare(
        "image features",
        features,
        &expected.values("image_features")?,
    );
    let tower = TextTower::load(&model, &Hints::default(), &device)?;
    let tokens = tokens(&expected)?;
    let ends: Vec<usize> = tokens.iter().map(|tokens| tokens.len() - 1).collect();
    let features = tower.features(tower.embed(&tokens), &ends).into_data();
    compare(
        "text features",
        features,
        &expected.values("text_features")?,
    );
    Ok(())
}

fn images(file: &Checkpoint, device: &Device) -> Result<Tensor<4>, Box<dyn Error>> {
    let values = file.values("images")?;
    let shape = file.tensors()["images"].shape.clone();
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}

/// Token sequences up to their ends.
fn tokens(file: &Checkpoint) -> Result<Vec<Vec<u16>>, Box<dyn Error>> {
    let bytes = file.raw("tokens")?;
    let (chunks, _) = bytes.as_chunks::<8>();
    let tokens: Vec<u16> = chunks
        .iter()
        .map(|b| i64::from_le_bytes(*b) as u16)
        .collect();
    let length = file.tensors()["tokens"].shape[1];
    let until_end = |row: &[u16]| {
        let end = row.iter().position(|token| *token == END_OF_TEXT);
        row[..end.map_or(row.len(), |end| end + 1)].to_vec()
    };
    Ok(tokens.chunks(length).map(until_end).collect())
}

fn compare(what: &str, got: TensorData, expected: &[f32]) {
    let got: Vec<f32> = got.iter().collect();
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let errors = got.iter().zip(expected).map(|(g, e)| (g - e).abs());
    let error = errors.fold(0.0, f32::max) / largest;
    println!(
        "{what}: {} values, largest difference {error:.1e} of the largest value",
        got.len()
    );
}
