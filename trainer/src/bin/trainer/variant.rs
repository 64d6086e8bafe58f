//! The flags by which a run departs from its task file.

use clap::{Args, ValueEnum};
use numclip_trainer::data::LeakPolicy;
use numclip_trainer::data::protocol::{Class, FoldSource};
use numclip_trainer::study::{Set, Variant};

/// What `fit` and `plan` share.
#[derive(Args)]
pub struct Changes {
    /// Thin the C largest classes of the training images to a share S
    #[arg(long, value_name = "C:S", value_parser = parse_shift)]
    shift: Option<(usize, f32)>,
    /// What --few-shot and --shift count images by [default: as the task file says, or label]
    #[arg(long, value_enum, requires = "classes")]
    per: Option<Per>,
    /// Where folds come from [default: as the task file says, or auto]
    #[arg(long, value_enum, requires = "cross_validation")]
    folds_from: Option<From>,
    /// What to do about images and groups that splits share [default: as the task file says, or refuse]
    #[arg(long, value_enum)]
    leaks: Option<Leaks>,
    /// Any value of the task file by its dotted key; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Set>,
}

/// What a single run adds to them.
#[derive(Args)]
pub struct Single {
    /// Test on fold N of K, train on the others
    #[arg(long, value_name = "N/K", value_parser = parse_fold, conflicts_with = "leave_out")]
    fold: Option<(usize, usize)>,
    /// Test on this group, train on the others
    #[arg(long, value_name = "GROUP")]
    leave_out: Option<String>,
    /// Train on so many images of each label or bin
    #[arg(long, value_name = "IMAGES")]
    few_shot: Option<usize>,
    /// Seed of weights, order, augmentation and few-shot draws
    #[arg(long, value_parser = parse_seed)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Per {
    Label,
    Bin,
}

#[derive(Clone, Copy, ValueEnum)]
enum From {
    /// The split column where there is one, else the groups
    Auto,
    /// The values of the split column
    Column,
    /// Whole groups, dealt out evenly
    Groups,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Leaks {
    /// Do not train
    Refuse,
    /// Leave copies out of training
    Drop,
    /// Train, and record them with the run
    Allow,
}

impl Leaks {
    /// The same for a task file.
    pub fn policy(self) -> LeakPolicy {
        match self {
            Self::Refuse => LeakPolicy::Refuse,
            Self::Drop => LeakPolicy::Drop,
            Self::Allow => LeakPolicy::Allow,
        }
    }
}

impl Changes {
    /// These changes alone.
    pub fn variant(&self) -> Variant {
        Variant {
            folds_from: self.folds_from.map(From::source),
            shift: self.shift,
            per: self.per.map(Per::class),
            leaks: self.leaks.map(Leaks::policy),
            set: self.set.clone(),
            ..Variant::default()
        }
    }
}

impl Per {
    fn class(self) -> Class {
        match self {
            Self::Label => Class::Label,
            Self::Bin => Class::Bin,
        }
    }
}

impl From {
    fn source(self) -> FoldSource {
        match self {
            Self::Auto => FoldSource::Auto,
            Self::Column => FoldSource::Column,
            Self::Groups => FoldSource::Groups,
        }
    }
}

impl Single {
    /// All changes of a single run.
    pub fn variant(&self, changes: &Changes) -> Variant {
        Variant {
            fold: self.fold,
            leave_out: self.leave_out.clone(),
            few_shot: self.few_shot,
            seed: self.seed,
            ..changes.variant()
        }
    }
}

/// A seed that a task file can hold: TOML has no larger numbers.
pub fn parse_seed(text: &str) -> Result<u64, String> {
    let seed = text.parse::<i64>().ok();
    let seed = seed.and_then(|seed| u64::try_from(seed).ok());
    seed.ok_or_else(|| format!("expected a number from 0 to {}", i64::MAX))
}

/// An address to listen on or to call.
pub fn parse_address(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    match !host.is_empty() && port.parse::<u16>().is_ok() {
        true => Ok(text.into()),
        false => Err("expected HOST:PORT such as 10.0.0.2:29500".into()),
    }
}

fn parse_fold(text: &str) -> Result<(usize, usize), String> {
    let parse = || {
        let (number, of) = text.split_once('/')?;
        Some((number.parse().ok()?, of.parse().ok()?))
    };
    match parse() {
        Some((number, of)) if (1..=of).contains(&number) && of > 1 => Ok((number, of)),
        _ => Err("expected N/K such as 2/5, counted from 1".into()),
    }
}

fn parse_shift(text: &str) -> Result<(usize, f32), String> {
    let parse = || {
        let (classes, keep) = text.split_once(':')?;
        Some((classes.parse().ok()?, keep.parse().ok()?))
    };
    parse().ok_or_else(|| "expected CLASSES:SHARE such as 10:0.1".into())
}
