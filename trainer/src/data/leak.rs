//! Leaks between splits: images and groups that are trained on and tested on.
//!
//! A copy is found by its bytes or by its look. Two looks are compared in two
//! steps: first by 240 bits, each telling whether a pixel is darker than its
//! right neighbour (the difference hash, at 16 × 16 pixels), then by the
//! correlation of their grey values. Mirror images are found as well; crops
//! and rotations are not.
//!
//! [`MOST_BITS`] and [`LEAST_CORRELATION`] were chosen on real data with a
//! prototype of the same two steps (256 bits instead of 240). Among 13 million
//! pairs of photographs of different tomatoes (FGrade) seven passed, and each
//! of the seven is the same photograph filed under two tomatoes; the next
//! pair, at 0.9956, shows two tomatoes. Among 18 million pairs of rendered
//! gauges none passed (the nearest had 0.973). Copies at JPEG quality 40, at
//! half the size, with less contrast or half the colour were found, and some
//! with 15 % more brightness.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    dataset::Dataset,
    fingerprint::{Fingerprint, Look, SIDE},
    split::Splits,
};

/// Most bits of 240 in which the looks of copies differ.
pub const MOST_BITS: u32 = 26;
/// Least correlation of the grey values of copies.
pub const LEAST_CORRELATION: f32 = 0.997;
/// Images whose grey values vary less than this (standard deviation, of 255)
/// all look alike and are compared by their bytes alone.
const LEAST_CONTRAST: f32 = 2.0;

/// Name of the images without labels where leaks are named.
pub const UNLABELLED: &str = "unlabelled";

/// What to do about leaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeakPolicy {
    /// Do not train.
    #[default]
    Refuse,
    /// Leave copies out of training and of the unlabelled images, and of validation where test has
    /// them. Rows and groups in two splits are refused all the same, and so are copies that leave
    /// nothing of a split.
    Drop,
    /// Train, and record the leaks with the run.
    Allow,
}

/// Something that two splits share.
#[derive(Clone, Debug, PartialEq)]
pub struct Leak {
    /// What they share.
    pub kind: LeakKind,
    /// The image of the split that comes first (train, val, test).
    pub first: Place,
    /// The image of the other split.
    pub second: Place,
}

/// What two splits share.
#[derive(Clone, Debug, PartialEq)]
pub enum LeakKind {
    /// The same row of the table.
    Row,
    /// A group.
    Group(String),
    /// The bytes of a file.
    Bytes,
    /// The look of an image, with its correlation.
    Look {
        /// Correlation of the grey values.
        correlation: f32,
        /// Whether one is the mirror image of the other.
        mirrored: bool,
    },
}

/// An image in a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Position in [`Dataset::samples`].
    pub index: usize,
    /// Path as the table gives it.
    pub name: String,
    /// Line of the table.
    pub line: u64,
    /// Name of the split.
    pub split: &'static str,
}

/// All leaks between the splits of a data set, by kind and place in the table.
/// A pair is named once, by the strongest kind; a group once for two splits.
pub fn find(dataset: &Dataset, splits: &Splits, prints: &[Fingerprint]) -> Vec<Leak> {
    let sides = [
        ("train", &splits.train),
        ("val", &splits.val),
        ("test", &splits.test),
        (UNLABELLED, &splits.unlabelled),
    ];
    let looks: Vec<Option<Sketch>> = prints.par_iter().map(|p| Sketch::new(&p.look)).collect();
    let mut leaks = Vec::new();
    for (a, b) in [(0, 1), (0, 2), (1, 2), (3, 1), (3, 2)] {
        let pair = Pair {
            dataset,
            first: sides[a],
            second: sides[b],
        };
        leaks.extend(pair.same_rows());
        leaks.extend(pair.groups());
        leaks.extend(pair.same_bytes(prints));
        leaks.extend(pair.same_looks(prints, &looks));
    }
    leaks
}

/// Lines about leaks for a person to read: how many of each kind, and the
/// first of them.
pub fn summary(leaks: &[Leak]) -> Vec<String> {
    const MOST: usize = 8;
    let mut kinds: BTreeMap<usize, Vec<&Leak>> = BTreeMap::new();
    for leak in leaks {
        kinds.entry(leak.kind.rank()).or_default().push(leak);
    }
    let mut lines = Vec::new();
    for leaks in kinds.values() {
        lines.push(format!("{} {}:", leaks.len(), leaks[0].kind.title()));
        lines.extend(leaks.iter().take(MOST).map(|leak| format!("  {leak}")));
        if leaks.len() > MOST {
            lines.push(format!("  and {} more", leaks.len() - MOST));
        }
    }
    lines
}

/// Takes the copies out of the earlier split of each leak. `false`, and nothing taken, where that
/// does not mend all of them or would leave nothing to train on or to validate on.
pub fn drop_copies(splits: &mut Splits, leaks: &[Leak]) -> bool {
    let copies = |split: &str| -> HashSet<usize> {
        let of_split = leaks.iter().filter(|leak| leak.first.split == split);
        of_split.map(|leak| leak.first.index).collect()
    };
    let (train, val, unlabelled) = (copies("train"), copies("val"), copies(UNLABELLED));
    let empties = |all: &[usize], copies: &HashSet<usize>| {
        !copies.is_empty() && all.iter().all(|index| copies.contains(index))
    };
    if !leaks.iter().all(Leak::is_copy)
        || empties(&splits.train, &train)
        || empties(&splits.val, &val)
    {
        return false;
    }
    splits.train.retain(|index| !train.contains(index));
    splits.val.retain(|index| !val.contains(index));
    splits
        .unlabelled
        .retain(|index| !unlabelled.contains(index));
    true
}

impl Leak {
    /// Whether leaving out one image mends it. A row in two splits was put there by the task file.
    pub fn is_copy(&self) -> bool {
        !matches!(self.kind, LeakKind::Row | LeakKind::Group(_))
    }
}

impl LeakKind {
    fn rank(&self) -> usize {
        match self {
            Self::Row => 0,
            Self::Group(_) => 1,
            Self::Bytes => 2,
            Self::Look { .. } => 3,
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::Row => "image(s) in two splits",
            Self::Group(_) => "group(s) in two splits",
            Self::Bytes => "pair(s) of identical files in two splits",
            Self::Look { .. } => "pair(s) of images in two splits that look the same",
        }
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            kind,
            first,
            second,
        } = self;
        match kind {
            LeakKind::Row => write!(
                f,
                "{} (line {}) is in {} and in {}",
                first.name, first.line, first.split, second.split
            ),
            LeakKind::Group(group) => write!(
                f,
                "group `{group}` is in {} (line {}) and in {} (line {})",
                first.split, first.line, second.split, second.line
            ),
            LeakKind::Bytes => write!(f, "{first} = {second}"),
            LeakKind::Look {
                correlation,
                mirrored,
            } => {
                let mirrored = if *mirrored { ", mirrored" } else { "" };
                write!(
                    f,
                    "{first} ~ {second}, correlation {correlation:.4}{mirrored}"
                )
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} ({}, line {})", self.name, self.split, self.line)
    }
}

type Side<'a> = (&'static str, &'a Vec<usize>);

/// Two splits.
struct Pair<'a> {
    dataset: &'a Dataset,
    first: Side<'a>,
    second: Side<'a>,
}

impl Pair<'_> {
    fn leak(&self, kind: LeakKind, first: usize, second: usize) -> Leak {
        let place = |index: usize, split| Place {
            index,
            name: self.dataset.samples()[index].name.clone(),
            line: self.dataset.samples()[index].line,
            split,
        };
        Leak {
            kind,
            first: place(first, self.first.0),
            second: place(second, self.second.0),
        }
    }

    fn same_rows(&self) -> Vec<Leak> {
        let second: HashSet<usize> = self.second.1.iter().copied().collect();
        let shared = self.first.1.iter().filter(|index| second.contains(index));
        shared.map(|&i| self.leak(LeakKind::Row, i, i)).collect()
    }

    fn groups(&self) -> Vec<Leak> {
        let group = |index: usize| self.dataset.samples()[index].group.as_deref();
        let mut second: BTreeMap<&str, usize> = BTreeMap::new();
        for &index in self.second.1 {
            if let Some(group) = group(index) {
                second.entry(group).or_insert(index);
            }
        }
        let mut leaks = Vec::new();
        for &index in self.first.1 {
            let shared = group(index).and_then(|name| second.remove_entry(name));
            if let Some((name, other)) = shared {
                leaks.push(self.leak(LeakKind::Group(name.into()), index, other));
            }
        }
        leaks
    }

    fn same_bytes(&self, prints: &[Fingerprint]) -> Vec<Leak> {
        let mut second: HashMap<&[u8; 32], Vec<usize>> = HashMap::new();
        for &index in self.second.1 {
            second.entry(&prints[index].sha256).or_default().push(index);
        }
        let pairs = self.first.1.iter().flat_map(|&a| {
            let copies = second.get(&prints[a].sha256).into_iter().flatten();
            copies.filter(move |&&b| a != b).map(move |&b| (a, b))
        });
        pairs
            .map(|(a, b)| self.leak(LeakKind::Bytes, a, b))
            .collect()
    }

    fn same_looks(&self, prints: &[Fingerprint], looks: &[Option<Sketch>]) -> Vec<Leak> {
        let alike = |&a: &usize| -> Vec<Leak> {
            let Some(look) = &looks[a] else {
                return Vec::new();
            };
            let others = self.second.1.iter().filter(|&&b| a != b);
            others
                .filter_map(|&b| Some((b, look.compare(looks[b].as_ref()?)?)))
                .filter(|&(b, _)| prints[a].sha256 != prints[b].sha256)
                .map(|(b, kind)| self.leak(kind, a, b))
                .collect()
        };
        self.first.1.par_iter().flat_map_iter(alike).collect()
    }
}

type Bits = [u64; 4];

/// A look ready to be compared.
struct Sketch {
    bits: Bits,
    mirrored_bits: Bits,
    /// Grey values of mean 0 and length 1.
    grey: Vec<f32>,
}

impl Sketch {
    /// None for an image without contrast.
    fn new(look: &Look) -> Option<Self> {
        let mean = look.iter().map(|&v| f32::from(v)).sum::<f32>() / look.len() as f32;
        let mut grey: Vec<f32> = look.iter().map(|&v| f32::from(v) - mean).collect();
        let length = grey.iter().map(|v| v * v).sum::<f32>().sqrt();
        if length / SIDE as f32 <= LEAST_CONTRAST {
            return None;
        }
        grey.iter_mut().for_each(|v| *v /= length);
        Some(Self {
            bits: bits(look),
            mirrored_bits: bits(&mirrored(look)),
            grey,
        })
    }

    fn compare(&self, other: &Self) -> Option<LeakKind> {
        let correlation = if near(&self.bits, &other.bits) {
            let pairs = self.grey.iter().zip(&other.grey);
            pairs.map(|(a, b)| a * b).sum::<f32>()
        } else {
            0.0
        };
        if correlation >= LEAST_CORRELATION {
            return Some(LeakKind::Look {
                correlation,
                mirrored: false,
            });
        }
        if !near(&self.bits, &other.mirrored_bits) {
            return None;
        }
        let rows = self
            .grey
            .chunks_exact(SIDE)
            .zip(other.grey.chunks_exact(SIDE));
        let correlation = rows
            .flat_map(|(a, b)| a.iter().zip(b.iter().rev()))
            .map(|(a, b)| a * b)
            .sum::<f32>();
        (correlation >= LEAST_CORRELATION).then_some(LeakKind::Look {
            correlation,
            mirrored: true,
        })
    }
}

/// Most pairs are told apart by the first sixty-four bits.
fn near(a: &Bits, b: &Bits) -> bool {
    let mut differ = 0;
    a.iter().zip(b).all(|(a, b)| {
        differ += (a ^ b).count_ones();
        differ <= MOST_BITS
    })
}

fn mirrored(look: &Look) -> Look {
    let mut mirrored = *look;
    mirrored.chunks_exact_mut(SIDE).for_each(<[u8]>::reverse);
    mirrored
}

/// Fifteen bits of each row, sixteen to leave it at a round place.
fn bits(look: &Look) -> Bits {
    let mut bits = [0; 4];
    for (y, row) in look.chunks_exact(SIDE).enumerate() {
        for (x, pair) in row.windows(2).enumerate() {
            let at = y * SIDE + x;
            bits[at / 64] |= u64::from(pair[1] > pair[0]) << (at % 64);
        }
    }
    bits
}

#[cfg(test)]
mod tests;
