//! The tables, with what is published of them and where.

/// A table of the literature.
#[derive(Debug)]
pub struct Paper {
    /// Name on the command line.
    pub name: &'static str,
    /// What is estimated, on which images.
    pub title: &'static str,
    /// Where the published figures are from.
    pub source: &'static str,
    /// What the owner's folder holds.
    pub files: &'static str,
    /// How images become labels and folds here, and where that differs from the literature.
    pub protocol: &'static str,
    /// Number of folds.
    pub folds: usize,
    /// The published figures.
    pub figures: &'static [Figure],
    /// The task file.
    pub(super) task: &'static str,
    /// What the published runs set beside it when they start from CLIP.
    pub(super) tuning: &'static str,
}

/// A published figure.
#[derive(Debug)]
pub struct Figure {
    /// Key of the measure: `mae`, `accuracy`.
    pub measure: &'static str,
    /// The unit of the quantity, or `%`.
    pub unit: &'static str,
    /// Its value in that unit; none where no source is at hand.
    pub reported: Option<f64>,
}

const NUMCLIP: &str = "Du et al., NumCLIP, ECCV 2024";

const RANKS: &str = r#"
"text.tune" = { ranks = true }
"train.optimizer.groups" = [{ path = "text", lr = 1e-4 }]
"#;

const RANKS_AND_CONTEXT: &str = r#"
"text.tune" = { ranks = true, context = "shared" }
"train.optimizer.groups" = [{ path = "text", lr = 1e-4 }]
"#;

/// All tables.
pub const PAPERS: [Paper; 4] = [
    Paper {
        name: "morph",
        title: "age from a face, MORPH II",
        source: NUMCLIP,
        files: "\
list files (*.txt) of `path age`, one for each fold or named train, val and test, with the paths
from the folder; or, without lists, the album itself: images named PERSON_NxAGE.jpg as their owner
names them (009055_1M54.JPG: person 009055, picture 1, male, 54 years)",
        protocol: "\
the person is read off the file's name. Without lists for the folds, the 5 folds are of whole
persons, which need not be those of the published runs",
        folds: 5,
        figures: &[mae("years", Some(2.08))],
        task: include_str!("../../tasks/age.toml"),
        tuning: RANKS,
    },
    Paper {
        name: "hci",
        title: "decade of a historical colour photograph, HCI",
        source: NUMCLIP,
        files: "folders 1930s, 1940s, 1950s, 1960s and 1970s of images, at most three levels down",
        protocol: "10 folds, the decades spread evenly",
        folds: 10,
        figures: &[accuracy(Some(69.61)), mae("decades", Some(0.35))],
        task: include_str!("../../tasks/dating.toml"),
        tuning: RANKS,
    },
    Paper {
        name: "aesthetics",
        title: "aesthetics of a photograph, Image Aesthetics Dataset",
        source: NUMCLIP,
        files: "\
list files (*.txt) of `path grade [grade…]`, grades 1 to 5, one for each fold, or named train, val
and test, or a single one, with the paths from the folder",
        protocol: "\
the label is the median of an image's grades (the upper one of two); 5 folds unless the lists
name others",
        folds: 5,
        figures: &[accuracy(Some(76.53)), mae("grades", Some(0.23))],
        task: include_str!("../../tasks/aesthetics.toml"),
        tuning: RANKS_AND_CONTEXT,
    },
    Paper {
        name: "adience",
        title: "age group of a face, Adience",
        source: "no figures of a published table are at hand",
        files: "\
fold_0_data.txt to fold_4_data.txt (or fold_frontal_0_data.txt to fold_frontal_4_data.txt), and
beside them the images: aligned/USER/landmark_aligned_face.FACE.IMAGE, or
faces/USER/coarse_tilt_aligned_face.FACE.IMAGE",
        protocol: "\
the owner's 5 folds, which are of whole persons; 8 age groups, of which the first is 0. An age that
is no group but lies inside one counts there ((27, 32) in 25-32, 29 in 25-32); all others, such as
(8, 23), 35 and None, are left out. MAE counts groups",
        folds: 5,
        figures: &[accuracy(None), mae("groups", None)],
        task: include_str!("../../tasks/adience.toml"),
        tuning: RANKS,
    },
];

impl Paper {
    /// A table by its name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PAPERS.iter().find(|paper| paper.name == name)
    }
}

const fn mae(unit: &'static str, reported: Option<f64>) -> Figure {
    Figure {
        measure: "mae",
        unit,
        reported,
    }
}

const fn accuracy(reported: Option<f64>) -> Figure {
    Figure {
        measure: "accuracy",
        unit: "%",
        reported,
    }
}
