//! Pictures in, estimates out, with the least that a program needs: a bundle,
//! one engine, no command line. A start for programs of your own.
//!
//! ```text
//! cargo build --release -p numclip-estimate
//! target/release/estimate models/gauge models/gauge/samples/*.jpg
//! ```

use std::path::Path;
use std::process::ExitCode;

use numclip::bundle::Bundle;
use numclip::decode;
use numclip::pipeline::{Pipeline, Worker};
use serde_json::json;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<ExitCode, Error> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = arguments
        .next()
        .ok_or("expected: estimate BUNDLE PICTURE…")?;
    let pipeline = Pipeline::new(Bundle::open(folder.as_ref())?, None)?;
    let mut worker = pipeline.worker()?;
    let mut code = ExitCode::SUCCESS;
    for picture in arguments {
        match line(&mut worker, picture.as_ref()) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("{error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// The estimate for one picture, as a line of JSON.
fn line(worker: &mut Worker<'_>, picture: &Path) -> Result<String, Error> {
    let estimate = worker.estimate(&decode::open(picture)?)?.estimate;
    let line = json!({
        "source": picture.display().to_string(),
        "value": estimate.value,
        "interval": estimate.interval,
        "bin": estimate.bin,
    });
    Ok(line.to_string())
}
