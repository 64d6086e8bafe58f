//! Embeds pictures with every engine of this build, for `parity.py`: writes
//! `tensors.f32` (`[pictures, 3, size, size]`) and `ENGINE.f32`
//! (`[pictures, dim]`) to a folder, in the order of the arguments.
//!
//! `parity BUNDLE FOLDER PICTURE…`

use std::fs;
use std::path::Path;

use numclip::bundle::Bundle;
use numclip::decode;
use numclip::encode::{self, Engine};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, folder, pictures @ ..] = arguments.as_slice() else {
        return Err("expected: parity BUNDLE FOLDER PICTURE…".into());
    };
    let bundle = Bundle::open(bundle.as_ref())?;
    let plan = &bundle.manifest().preprocess;
    let mut tensors = Vec::with_capacity(pictures.len());
    for picture in pictures {
        tensors.push(plan.tensor(&decode::open(picture.as_ref())?));
    }
    write(folder, "tensors", &tensors)?;
    for &engine in Engine::ALL {
        let mut session = encode::load(&bundle, Some(engine))?.model.session()?;
        let embeddings = tensors.iter().map(|tensor| session.encode(tensor));
        write(
            folder,
            engine.name(),
            &embeddings.collect::<Result<Vec<_>, _>>()?,
        )?;
        println!("{engine}");
    }
    Ok(())
}

fn write(folder: &str, name: &str, rows: &[Vec<f32>]) -> Result<(), Error> {
    let values = rows.iter().flatten();
    let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
    Ok(fs::write(
        Path::new(folder).join(format!("{name}.f32")),
        bytes,
    )?)
}
