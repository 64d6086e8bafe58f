//! `trainer plan`

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{ArgGroup, Args};
use numclip_trainer::config::Config;
use numclip_trainer::study::{Plan as Study, Set, Variant, variant};

use crate::variant::Changes;

/// Print the commands of a study, one per line.
///
/// Every combination of folds, seeds, few-shot sizes and alternatives is a run
/// in a folder of its own. The commands are independent of each other; each may
/// be run again, and then goes on where it stopped.
#[derive(Args)]
#[command(
    group(ArgGroup::new("classes").args(["few_shot", "shift"]).multiple(true)),
    group(ArgGroup::new("cross_validation").args(["folds"])),
    after_help = "\
Examples:
  trainer plan task.toml --folds 5 --seeds 3
  trainer plan task.toml --folds 5 | xargs -d '\\n' -n 1 -P 2 sh -c
  trainer plan task.toml --few-shot 1,2,4,8 --seeds 5 > runs.txt
  sbatch --array=1-20 --wrap 'sh -c \"$(sed -n ${SLURM_ARRAY_TASK_ID}p runs.txt)\"'
  trainer plan task.toml --vary model.head.regressor.kind=ssr,expectation --seeds 5
  trainer report runs/age-*"
)]
pub struct Plan {
    /// Task file
    #[arg(value_name = "TASK.toml")]
    task: PathBuf,
    /// Cross-validation in so many folds
    #[arg(
        long,
        value_name = "K",
        default_value_t = 0,
        conflicts_with = "leave_group_out"
    )]
    folds: usize,
    /// Test on each group in turn
    #[arg(long)]
    leave_group_out: bool,
    /// Training images of each label or bin, such as 1,2,4,8,16,32,64
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    few_shot: Vec<usize>,
    /// So many seeds, counted up from that of the task file
    #[arg(long, value_name = "N", default_value_t = 0)]
    seeds: u64,
    /// Alternatives of one value of the task file; may be repeated
    #[arg(long, value_name = "KEY=A,B,…")]
    vary: Vec<String>,
    #[command(flatten)]
    changes: Changes,
    /// Folder that the runs go into
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
    /// One JSON object per run instead of a command
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub fn run(self) -> Result<()> {
        let config = self.changes.variant().read(&self.task)?;
        let first = config.train.seed;
        let study = Study {
            base: self.changes.variant(),
            folds: self.folds,
            groups: match self.leave_group_out {
                true => variant::groups(&config)?,
                false => Vec::new(),
            },
            few_shot: self.few_shot.clone(),
            seeds: (first..first.saturating_add(self.seeds)).collect(),
            variants: alternatives(&self.vary)?,
        };
        let variants = study.variants();
        for variant in &variants {
            variant.read(&self.task)?;
            println!("{}", self.line(&config, variant)?);
        }
        eprintln!("{} runs", variants.len());
        Ok(())
    }

    fn line(&self, config: &Config, variant: &Variant) -> Result<String> {
        let folder = variant.folder(&self.runs, &config.task.name);
        let mut args = vec!["fit".to_owned(), self.task.display().to_string()];
        args.extend(variant.flags());
        args.extend([
            "--out".into(),
            folder.display().to_string(),
            "--requeue".into(),
        ]);
        if self.json {
            let run = serde_json::json!({
                "run": folder,
                "args": args,
                "fold": variant.fold.map(|(number, _)| number),
                "leave_out": variant.leave_out,
                "few_shot": variant.few_shot,
                "seed": variant.seed,
            });
            return Ok(run.to_string());
        }
        let program = env::args().next().unwrap_or_else(|| "trainer".into());
        let words = [program].into_iter().chain(args);
        Ok(words
            .map(|word| quoted(&word))
            .collect::<Vec<_>>()
            .join(" "))
    }
}

/// Every combination of the alternatives of each key.
fn alternatives(vary: &[String]) -> Result<Vec<Vec<Set>>> {
    let mut all: Vec<Vec<Set>> = Vec::new();
    for pair in vary {
        let (key, values) = pair.split_once('=').unwrap_or((pair, ""));
        let values: Vec<Set> = values
            .split(',')
            .map(|value| format!("{key}={value}").parse().map_err(anyhow::Error::msg))
            .collect::<Result<_>>()?;
        let before = if all.is_empty() {
            vec![Vec::new()]
        } else {
            all
        };
        all = before
            .iter()
            .flat_map(|set| {
                values
                    .iter()
                    .map(move |value| [set.as_slice(), std::slice::from_ref(value)].concat())
            })
            .collect();
    }
    Ok(all)
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Where `fit` puts a run without `--out`.
pub fn default_folder(config: &Config, variant: &Variant) -> PathBuf {
    variant.folder(Path::new("runs"), &config.task.name)
}
