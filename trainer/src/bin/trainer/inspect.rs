//! `trainer inspect`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use numclip_trainer::clip::{Activation, Finding, Hints, ImageShape, TransformerShape};
use numclip_trainer::inspect::{Clip, Description, Encoder, Model, RunWeights, inspect};
use numclip_trainer::model::{Architecture, Norm, Padding, tiny};

/// Say what a weight file is, and how a task file uses it.
///
/// Reads CLIP checkpoints (OpenAI, OpenCLIP, Hugging Face, TinyCLIP), image encoders to start from
/// (timm, torchvision), bin embeddings, and what a run of the trainer learned; safetensors and
/// PyTorch files, of which nothing is executed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  trainer inspect ViT-B-16.pt
  trainer inspect runs/gauge
  trainer inspect model.safetensors --json | jq .model")]
pub struct Inspect {
    /// Weight file, or folder of a run
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A name and what is to be said of it.
type Line = (&'static str, String);

impl Inspect {
    pub fn run(self) -> Result<()> {
        let description = inspect(&self.file, &Hints::default())?;
        match self.json {
            true => println!("{}", serde_json::to_string(&description)?),
            false => print(&description),
        }
        Ok(())
    }
}

fn print(description: &Description) {
    let file = format!(
        "{}, {:.1} MiB, {} tensors",
        description.container,
        description.bytes as f64 / f64::from(1 << 20),
        description.tensors
    );
    let (model, task) = match &description.model {
        Model::Clip(clip) => (clip_lines(clip), clip_task(clip, &description.file)),
        Model::Encoder(encoder) => (
            encoder_lines(encoder),
            encoder_task(encoder, &description.file),
        ),
        Model::Run(run) => (run_lines(run), Vec::new()),
        Model::BinEmbeddings { bins, width } => {
            let text = format!("bin embeddings: {bins} bins, {width} values each");
            let task = ["[text]".to_owned(), key("embeddings", &description.file)];
            (vec![("model", text)], task.to_vec())
        }
        Model::Unknown { names } => {
            let text = format!("unknown; its tensors: {}", names.join(", "));
            (vec![("model", text)], Vec::new())
        }
    };
    println!("{}", description.file.display());
    let common = [("file", file), ("sha256", description.sha256.clone())];
    let mut lines = Vec::from(common);
    if !matches!(description.model, Model::Run(_)) {
        lines.push(("parameters", parameters(description)));
    }
    for (name, text) in lines.into_iter().chain(model) {
        println!("  {name:<12} {text}");
    }
    if !task.is_empty() {
        println!("\nIn a task file:\n");
        task.iter().for_each(|line| println!("  {line}"));
    }
}

fn parameters(description: &Description) -> String {
    let types = description.values.iter();
    let types: Vec<_> = types
        .map(|(name, count)| format!("{} {name}", short(*count)))
        .collect();
    format!("{} ({})", short(description.parameters()), types.join(", "))
}

/// A number with three digits and its order of magnitude.
fn short(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{:.1} k", count as f64 / 1e3),
        _ => format!("{:.1} M", count as f64 / 1e6),
    }
}

fn clip_lines(clip: &Clip) -> Vec<Line> {
    let mut lines = vec![("model", format!("CLIP, named as by {}", clip.names))];
    lines.extend(clip.image.as_ref().map(|shape| ("image", image(shape))));
    lines.extend(clip.text.as_ref().map(|shape| {
        let text = format!(
            "{}, {} of {} tokens → {}",
            blocks(&shape.transformer),
            shape.context_length,
            shape.vocabulary,
            shape.embedding
        );
        ("text", text)
    }));
    lines.extend(
        clip.logit_scale
            .map(|scale| ("logit scale", format!("{scale:.2}"))),
    );
    lines.extend(
        clip.problems
            .iter()
            .map(|problem| ("problem", problem.clone())),
    );
    lines.extend(clip.findings.iter().map(finding));
    if clip.problems.is_empty() && clip.findings.is_empty() {
        lines.push(("complete", "nothing is missing or left over".into()));
    }
    lines
}

fn image(shape: &ImageShape) -> String {
    match shape {
        ImageShape::Vit(vit) => format!(
            "ViT, {} px in patches of {}, {} → {}",
            vit.image,
            vit.patch,
            blocks(&vit.transformer),
            vit.embedding
        ),
        ImageShape::ResNet(net) => format!(
            "ResNet, {} px, width {}, stages of {:?} blocks, {}-head pool → {}",
            net.image, net.width, net.stages, net.heads, net.embedding
        ),
    }
}

fn blocks(shape: &TransformerShape) -> String {
    let activation = match shape.activation {
        Activation::QuickGelu => "quick-GELU",
        Activation::Gelu => "GELU",
    };
    format!(
        "{} blocks of width {}, {}-head attention, {activation} of {}",
        shape.layers, shape.width, shape.heads, shape.mlp
    )
}

fn finding(finding: &Finding) -> Line {
    match finding {
        Finding::Missing { name } => ("missing", name.clone()),
        Finding::Extra { name } => ("left over", name.clone()),
        Finding::Shape {
            name,
            got,
            expected,
        } => ("shape", format!("{name} is {got:?}, expected {expected:?}")),
    }
}

fn clip_task(clip: &Clip, file: &Path) -> Vec<String> {
    match (&clip.image, &clip.text) {
        (Some(_), _) => vec![
            "[model]".into(),
            "architecture = \"clip\"".into(),
            key("init", file),
        ],
        (None, Some(_)) => vec!["[text]".into(), key("weights", file)],
        (None, None) => Vec::new(),
    }
}

fn encoder_lines(encoder: &Encoder) -> Vec<Line> {
    let mut lines = vec![("model", encoder.format.clone())];
    match (&encoder.problem, encoder.architecture) {
        (Some(problem), _) => lines.push(("problem", problem.clone())),
        (None, Some(architecture)) => {
            let text = format!("fits architecture = \"{}\"", label(architecture));
            lines.push(("complete", text));
        }
        (None, None) => {}
    }
    lines
}

fn encoder_task(encoder: &Encoder, file: &Path) -> Vec<String> {
    let Some(architecture) = encoder.architecture else {
        return Vec::new();
    };
    let mut lines = vec![
        "[model]".into(),
        format!("architecture = \"{}\"", label(architecture)),
        key("init", file),
    ];
    if encoder.padding == Padding::Same {
        lines.push("padding = \"same\"".into());
    }
    if encoder.norm == Norm::Folded {
        lines.push("norm = \"folded\"".into());
    }
    if let Some(patch) = encoder.patch.filter(|patch| *patch != tiny::PATCH) {
        lines.push(format!("patch = {patch}"));
    }
    lines
}

fn run_lines(run: &RunWeights) -> Vec<Line> {
    let kind = match run.resumable {
        true => "state of a run, to be resumed from",
        false => "weights of a run",
    };
    let mut lines = vec![("model", kind.to_owned())];
    lines.extend(run.task.iter().map(|task| ("task", task.clone())));
    lines.extend(run.architecture.map(|it| ("encoder", label(it))));
    if let Some(provenance) = &run.provenance {
        lines.push(("bins", provenance.text.to_string()));
        lines.extend(
            provenance
                .init
                .iter()
                .map(|init| ("began with", init.file.clone())),
        );
        let teacher = provenance.teacher.iter();
        lines.extend(teacher.map(|teacher| ("teacher", teacher.to_string())));
        lines.push(("data", provenance.data_digest.clone()));
    }
    let parts = run.parts.iter();
    let parts: Vec<_> = parts
        .map(|(name, count)| format!("{name} {}", short(*count)))
        .collect();
    lines.push(("parameters", parts.join(", ")));
    lines
}

fn label(architecture: Architecture) -> String {
    let value = serde_json::to_value(architecture).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

fn key(name: &str, file: &Path) -> String {
    let file = toml::Value::from(file.display().to_string());
    format!("{name} = {file}")
}
